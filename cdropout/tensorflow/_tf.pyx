"""The TensorFlow op that applies masks.

It is registered through TensorFlow's C functions, whose addresses are found at run time. TensorFlow is not required to
build this module. The declarations of the functions are those of tensorflow/c/tf_status.h, tf_tensor.h, ops.h and
kernels.h, with ``void*`` for pointers to TensorFlow's structs, and int for its enums.

The op is ``y = CdropoutApplyV1(x, mask_id, rate, noise_shape)``:

x, y
    Tensors of the same shape and float type. The shape begins with that of the mask ids; the other axes are those of one
    mask. y may use the memory of x.
mask_id
    int64[..., 2]. A mask id consists of the seed and the call number of one mask. Each is a uint64 that is stored as
    the int64 with the same bits.
rate
    float64. There is one rate for all mask ids, or one rate per mask id.
noise_shape
    int64[n], aligned with the last axes of x, or any scalar for a mask without broadcast axes. An entry is 1, the length of
    the axis of x, or AXIS_LENGTH, which stands for that length. An axis whose entry is 1 or missing is a broadcast axis.

The only attribute is the type of x and y. All other arguments are inputs: a program can compute inputs, but not attributes,
and a float attribute would be rounded to float32.
"""
import ctypes
import threading

from libc.math cimport NAN
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport INT64_MIN, int64_t, uint64_t, uintptr_t
from libc.stdio cimport snprintf

from cdropout cimport cdropout_axis, cdropout_mask
from cdropout._core.dispatch cimport kernels
from cdropout._core.dtypes import FLOATS
from cdropout._core.dtypes cimport TENSORFLOW, by_number, types
from cdropout._core.engine cimport Operation, apply_masks
from cdropout._core.executor cimport uninterruptible_pool
from cdropout._core.view cimport MAX_DIMS, View

C_NAMES = {"float16": "half", "float32": "float", "float64": "double"}    # names of types in definitions of ops
NAME = "CdropoutApplyV1"              # the name has to change if the inputs change
AXIS_LENGTH = INT64_MIN

cdef enum:
    INVALID_ARGUMENT = 3              # error code

cdef enum:                            # indices of the inputs
    X
    MASK_ID
    RATE
    NOISE_SHAPE
    INPUT_COUNT

cdef struct Functions:                # TensorFlow's functions, in the order of SYMBOLS
    void* (*new_status)() noexcept nogil
    void (*delete_status)(void* status) noexcept nogil
    void (*set_status)(void* status, int code, const char* message) noexcept nogil
    int (*get_code)(void* status) noexcept nogil
    const char* (*message)(void* status) noexcept nogil
    void* (*new_op)(const char* name) noexcept nogil
    void (*add_attr)(void* op, const char* spec) noexcept nogil
    void (*add_input)(void* op, const char* spec) noexcept nogil
    void (*add_output)(void* op, const char* spec) noexcept nogil
    void (*set_shape_function)(void* op, void (*function)(void* context, void* status) noexcept nogil) noexcept nogil
    void (*register_op)(void* op, void* status) noexcept nogil
    void* (*new_shape)() noexcept nogil
    void (*delete_shape)(void* shape) noexcept nogil
    void (*get_input_shape)(void* context, int i, void* shape, void* status) noexcept nogil
    void (*set_output_shape)(void* context, int i, void* shape, void* status) noexcept nogil
    void* (*new_kernel)(
        const char* op, const char* device, void* (*create)(void* construction) noexcept nogil,
        void (*compute)(void* kernel, void* context) noexcept nogil, void (*delete)(void* kernel) noexcept nogil
    ) noexcept nogil
    void (*register_kernel)(const char* name, void* kernel, void* status) noexcept nogil
    void (*fail)(void* context, void* status) noexcept nogil
    void (*get_input)(void* context, int i, void** tensor, void* status) noexcept nogil
    void* (*forward_or_allocate)(
        void* context, const int* candidates, int n, int output, const int64_t* dims, int ndim, int* forwarded, void* status
    ) noexcept nogil
    int (*get_ndim)(const void* tensor) noexcept nogil
    int64_t (*get_length)(const void* tensor, int axis) noexcept nogil
    int (*get_dtype)(const void* tensor) noexcept nogil
    void* (*get_data)(const void* tensor) noexcept nogil
    int64_t (*get_size)(const void* tensor) noexcept nogil
    void (*delete_tensor)(void* tensor) noexcept nogil

SYMBOLS = [
    "TF_NewStatus", "TF_DeleteStatus", "TF_SetStatus", "TF_GetCode", "TF_Message", "TF_NewOpDefinitionBuilder",
    "TF_OpDefinitionBuilderAddAttr", "TF_OpDefinitionBuilderAddInput", "TF_OpDefinitionBuilderAddOutput",
    "TF_OpDefinitionBuilderSetShapeInferenceFunction", "TF_RegisterOpDefinition", "TF_NewShapeHandle",
    "TF_DeleteShapeHandle", "TF_ShapeInferenceContextGetInput", "TF_ShapeInferenceContextSetOutput", "TF_NewKernelBuilder",
    "TF_RegisterKernelBuilder", "TF_OpKernelContext_Failure", "TF_GetInput", "TF_ForwardInputOrAllocateOutput",
    "TF_NumDims", "TF_Dim", "TF_TensorType", "TF_TensorData", "TF_TensorElementCount", "TF_DeleteTensor",
]

cdef Functions tf


# ---- the kernel ---------------------------------------------------------------------------------

cdef struct Call:                     # the checked inputs of one call
    Operation operation               # for the first mask and its part of x; apply_masks sets the mask
    size_t mask_count
    const int64_t* mask_ids           # seed and call number of each mask
    size_t rate_count                 # number of rates: 1, or one per mask
    const double* rates
    int64_t shape[MAX_DIMS]           # shape of x and y
    int x_ndim
    char error[200]                   # error message, or an empty string


cdef void check_masks(Call* call, void** inputs) noexcept nogil:
    """Fill `call` from x, mask_id and rate. If the shape of one of them is not valid, set the error."""
    cdef View* view = &call.operation.view
    cdef int mask_id_ndim = tf.get_ndim(inputs[MASK_ID]) - 1    # number of dimensions of the mask ids
    cdef int x_ndim = tf.get_ndim(inputs[X])
    cdef int i
    call.x_ndim = x_ndim
    view.ndim = x_ndim - mask_id_ndim
    view.start = 0
    if x_ndim > MAX_DIMS:
        snprintf(call.error, sizeof(call.error), "x has to have at most 64 dimensions, but got %d", x_ndim)
        return
    if mask_id_ndim < 0 or view.ndim < 0 or tf.get_length(inputs[MASK_ID], mask_id_ndim) != 2:
        snprintf(call.error, sizeof(call.error), "the last axis of mask_id has to contain a seed and a call number")
        return
    for i in range(x_ndim):
        call.shape[i] = tf.get_length(inputs[X], i)
    call.mask_count = 1
    for i in range(mask_id_ndim):
        call.mask_count *= <size_t>call.shape[i]
        if call.shape[i] != tf.get_length(inputs[MASK_ID], i):
            snprintf(call.error, sizeof(call.error), "the shape of x has to begin with the dimensions of mask_id")
            return
    call.operation.dtype = by_number(TENSORFLOW, tf.get_dtype(inputs[X])).code    # never NULL: TensorFlow checks the type
    view.x = <const char*>tf.get_data(inputs[X])
    call.mask_ids = <const int64_t*>tf.get_data(inputs[MASK_ID])
    call.rates = <const double*>tf.get_data(inputs[RATE])
    call.rate_count = <size_t>tf.get_size(inputs[RATE])
    if call.rate_count != 1 and call.rate_count != call.mask_count:
        snprintf(call.error, sizeof(call.error), "rate has to be one number, or one per mask")


cdef void check_rates(Call* call) noexcept nogil:
    cdef cdropout_mask mask
    cdef double p
    cdef size_t i
    for i in range(call.rate_count):
        p = call.rates[i]
        if kernels.mask_init(&mask, 0, 0, p) < 0:
            p = p if p == p else NAN      # the message must not show the sign of a NaN
            snprintf(call.error, sizeof(call.error), "dropout probability has to be between 0 and 1, but got %.17g", p)


cdef void check_noise_shape(Call* call, const void* noise_shape) noexcept nogil:
    """Set the axes of the view, in which x and y are contiguous. If noise_shape does not fit x, set the error."""
    cdef const int64_t* entries = <const int64_t*>tf.get_data(noise_shape)
    cdef bint is_scalar = tf.get_ndim(noise_shape) == 0
    cdef int ndim = call.operation.view.ndim
    cdef int64_t extra = 0 if is_scalar else tf.get_size(noise_shape) - ndim    # surplus entries; < 0 if entries are missing
    cdef int64_t mask_length, length, i
    cdef int64_t stride = <int64_t>types[<int>call.operation.dtype].itemsize
    cdef int64_t mask_stride = 1
    cdef cdropout_axis* axis
    for i in range(ndim - 1, -1, -1):
        axis = &call.operation.view.axes[i]
        length = call.shape[call.x_ndim - ndim + i]
        mask_length = length if is_scalar else entries[extra + i] if extra + i >= 0 else 1
        if mask_length == INT64_MIN:
            mask_length = length
        if mask_length != 1 and mask_length != length:
            snprintf(call.error, sizeof(call.error), "noise_shape has to contain 1 or the length of each axis of x, "
                     "but got %lld for an axis of length %lld", <long long>mask_length, <long long>length)
            return
        axis.length = <size_t>length
        axis.x = axis.y = <ptrdiff_t>stride
        axis.mask = 0 if mask_length == 1 else mask_stride
        stride *= length
        mask_stride *= mask_length
    for i in range(extra):
        if entries[i] != 1:
            snprintf(call.error, sizeof(call.error), "noise_shape must not have more axes than x")


cdef void init_mask(cdropout_mask* mask, const void* checked, size_t i) noexcept nogil:
    """Initialize the mask with index i."""
    cdef const Call* call = <const Call*>checked
    cdef const int64_t* id = call.mask_ids + 2 * i
    kernels.mask_init(mask, <uint64_t>id[0], <uint64_t>id[1], call.rates[i if call.rate_count > 1 else 0])


cdef void check_and_apply(void* context, void** inputs, void* status) noexcept nogil:
    """Check the inputs, then allocate and write the output, or set the status to an error."""
    cdef Call call
    cdef int candidate = X
    cdef void* y
    call.error[0] = 0
    check_masks(&call, inputs)
    if not call.error[0]:
        check_rates(&call)
    if not call.error[0]:
        check_noise_shape(&call, inputs[NOISE_SHAPE])
    if call.error[0]:
        tf.set_status(status, INVALID_ARGUMENT, call.error)
        return
    tf.delete_tensor(inputs[X])       # TensorFlow keeps the memory of x, and uses it for y if nothing else refers to x
    inputs[X] = NULL
    y = tf.forward_or_allocate(context, &candidate, 1, 0, call.shape, call.x_ndim, NULL, status)
    if tf.get_code(status) == 0:
        call.operation.view.y = <char*>tf.get_data(y)
        apply_masks(&call.operation, uninterruptible_pool, call.mask_count, init_mask, &call)
    if y != NULL:
        tf.delete_tensor(y)


cdef void execute(void* kernel, void* context) noexcept nogil:
    """Execute one call of the op."""
    cdef void* status = tf.new_status()
    cdef void* inputs[INPUT_COUNT]
    cdef int i
    for i in range(INPUT_COUNT):
        inputs[i] = NULL
        if tf.get_code(status) == 0:
            tf.get_input(context, i, &inputs[i], status)
    if tf.get_code(status) == 0:
        check_and_apply(context, inputs, status)
    if tf.get_code(status) != 0:
        tf.fail(context, status)
    for i in range(INPUT_COUNT):
        if inputs[i] != NULL:
            tf.delete_tensor(inputs[i])
    tf.delete_status(status)


# ---- registration -------------------------------------------------------------------------------


cdef void infer_shape(void* context, void* status) noexcept nogil:
    """Set the shape of y to that of x."""
    cdef void* shape = tf.new_shape()
    tf.get_input_shape(context, X, shape, status)
    if tf.get_code(status) == 0:
        tf.set_output_shape(context, 0, shape, status)
    tf.delete_shape(shape)


cdef check_status(void* status):
    if tf.get_code(status) != 0:
        raise RuntimeError(tf.message(status).decode())


cdef define(bytes name):
    """Register the op and its kernel. TensorFlow ends the process if the name is already registered."""
    cdef void* status = tf.new_status()
    cdef void* op = tf.new_op(name)
    for spec in (b"x: T", b"mask_id: int64", b"rate: double", b"noise_shape: int64"):
        tf.add_input(op, spec)
    tf.add_output(op, "y: T")
    names = ", ".join([C_NAMES.get(dtype, dtype) for dtype in FLOATS])
    tf.add_attr(op, f"T: {{{names}}}".encode())
    tf.set_shape_function(op, infer_shape)
    try:
        tf.register_op(op, status)
        check_status(status)
        tf.register_kernel(name, tf.new_kernel(name, "CPU", NULL, execute, NULL), status)
        check_status(status)
    finally:
        tf.delete_status(status)


lock = threading.Lock()


def register(str path, is_registered, symbols=SYMBOLS):
    """Register the op unless it is already registered.

    Parameters
    ----------
    path : str
        The path of a library that has TensorFlow's C functions, or is linked with a library that has them.
    is_registered : callable
        A function that takes the name of an op and returns whether TensorFlow has an op of this name.
    symbols : list of str
        The names of the C functions, in the order of the members of `Functions`.

    Returns
    -------
    bool
        True if this call registered the op.

    Raises
    ------
    AttributeError
        If a function is missing. The op is then not registered.
    OSError
        If the library cannot be loaded.
    RuntimeError
        If TensorFlow does not accept the op.
    """
    cdef size_t i
    library = ctypes.CDLL(path)
    addresses = [ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value for symbol in symbols]
    with lock:
        if is_registered(NAME):
            return False
        for i in range(sizeof(Functions) // sizeof(void*)):
            (<void**>&tf)[i] = <void*><uintptr_t>addresses[i]
        define(NAME.encode())
    return True

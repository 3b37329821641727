"""Application of masks to CPU tensors, which are read by DLPack, or by their attributes before PyTorch 2.10.

This module is compiled to reduce the overhead of small calls.
"""
from cpython.exc cimport PyErr_Clear
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t

import torch

from cdropout cimport CDROPOUT_BOOL, CDROPOUT_FLOAT32, cdropout_axis
from cdropout.torch._draw cimport LazyMask, raise_unexpected
from cdropout._core.dtypes cimport ElementType, by_dlpack, types
from cdropout._core.engine cimport Operation, may_be_interrupted, prepare, run_prepared, stride_along, use_mask, use_shift
from cdropout._core.mask cimport broadcast_strides
from cdropout.torch._openmp cimport executor_of_pytorch
from cdropout._core.executor cimport Executor
from cdropout._core.view cimport MAX_DIMS, View, arrange, overlaps_itself

# ---- tensors as C structs -----------------------------------------------------------------------

cdef enum:
    DLPACK_CPU = 1                    # the device type kDLCPU
    MAX_READ_DIMS = 128               # maximum number of axes in `read_attributes`, including those of length 1

cdef struct TensorView:               # DLTensor, followed by memory that shape and strides may point to
    char* data
    int32_t device, device_index, ndim
    uint8_t type_code, bits
    uint16_t lanes
    int64_t* shape
    int64_t* strides                  # in elements
    uint64_t offset                   # in bytes
    int64_t numbers[2 * MAX_READ_DIMS]

cdef struct ExchangeTable:            # DLPackExchangeAPI of version 1
    uint32_t major, minor
    void* previous
    void* unused[3]
    int (*read)(void* tensor, TensorView* view) noexcept

cdef object Tensor = torch.Tensor
cdef object Parameter = torch.nn.Parameter
cdef object empty_like = torch.empty_like
cdef object is_grad_enabled = torch.is_grad_enabled
cdef object forward_ad = torch.autograd.forward_ad
# The first two functions have no public equivalents in PyTorch; torch.jit.is_tracing takes longer than the third
cdef object transforms_active = torch._C._are_functorch_transforms_active
cdef object active_modes = torch._C._len_torch_dispatch_stack
cdef object tracing_state = torch._C._get_tracing_state
cdef const ExchangeTable* exchange = NULL
if hasattr(Tensor, "__dlpack_c_exchange_api__"):  # since PyTorch 2.10
    exchange = <const ExchangeTable*>PyCapsule_GetPointer(Tensor.__dlpack_c_exchange_api__, "dlpack_exchange_api")
    if exchange.major != 1:
        raise ImportError(f"cdropout reads PyTorch's tensors by DLPack 1, but found DLPack {exchange.major}")

cdef dict TYPE_CODES = {              # DLPack's type code and number of bits
    torch.float16: (2, 16), torch.float32: (2, 32), torch.float64: (2, 64), torch.bfloat16: (4, 16), torch.bool: (6, 8)
}


cdef bint read(x, TensorView* view):
    """Read x into view. Return False if x cannot be read, for example if x has no memory or an unknown type.

    The view must not be moved, since its pointers may refer to the member `numbers`.
    """
    if exchange == NULL:
        if not read_attributes(x, view):
            return False
    elif exchange.read(<void*>x, view):
        PyErr_Clear()
        return False
    view.data += view.offset
    return True


cdef bint read_attributes(x, TensorView* view):
    """Read x into view by its Python attributes. Return False unless x is a strided CPU tensor of a known type."""
    cdef int i
    type_code = TYPE_CODES.get(x.dtype)
    if type_code is None or x.layout is not torch.strided or x.is_nested or x.device.type != "cpu":
        return False
    if x.dim() > MAX_READ_DIMS:
        return False
    try:
        view.data = <char*><uintptr_t>x.data_ptr()
    except RuntimeError:              # x is wrapped by a transform
        return False
    view.type_code, view.bits = type_code
    view.device, view.lanes, view.offset, view.ndim = DLPACK_CPU, 1, 0, x.dim()
    view.shape, view.strides = &view.numbers[0], &view.numbers[MAX_READ_DIMS]
    for i, length, stride in zip(range(view.ndim), x.shape, x.stride()):
        view.shape[i], view.strides[i] = length, stride
    return True


cdef const ElementType* type_of(const TensorView* view) noexcept nogil:
    """Return the type of the elements, which may be bool, or NULL if the type is not supported."""
    return by_dlpack(view.type_code, view.bits) if view.lanes == 1 else NULL


cdef size_t size_of(const TensorView* view) noexcept nogil:
    cdef size_t size = 1
    cdef int i
    for i in range(view.ndim):
        size *= view.shape[i]
    return size


cdef bint read_tensor(x, TensorView* view):
    """Read x into view. Return whether `apply_mask` supports x.

    A supported x is on the CPU and of a supported float type. It is a Tensor or a Parameter; other subclasses of Tensor are
    not supported. Its values are those in its memory, unlike those of a lazily negated tensor.
    """
    cdef const ElementType* dtype
    if type(x) is not Tensor and type(x) is not Parameter:
        return False
    if not read(x, view):
        return False
    dtype = type_of(view)
    return (
        view.device == DLPACK_CPU and dtype != NULL and dtype.code != CDROPOUT_BOOL and not x.is_neg()
        and (view.data != NULL or size_of(view) == 0)
    )


def is_supported(x):
    """Return whether `apply_mask` supports x."""
    cdef TensorView view
    return read_tensor(x, &view)


def runs_eagerly(x):
    """Return whether x is supported and not empty, and no transform, tracer or dispatch mode is active."""
    cdef TensorView view
    return (
        not transforms_active() and not active_modes() and tracing_state() is None
        and read_tensor(x, &view) and size_of(&view) != 0
    )


# ---- overlaps -----------------------------------------------------------------------------------


def elements_overlap(shape, strides):
    """Return whether elements of a tensor may share memory. `strides` are in elements."""
    cdef View view
    lengths = [(length, stride) for length, stride in zip(shape, strides) if length != 1]
    # A tensor with more than MAX_DIMS axes longer than 1 has over 2**MAX_DIMS elements, which must overlap in any memory
    if 0 in shape or len(lengths) > MAX_DIMS:
        return 0 not in shape
    for i, (length, stride) in enumerate(lengths):
        view.axes[i] = cdropout_axis(length, 0, stride, 0)
    view.x = NULL
    view.y = NULL
    view.start = 0
    arrange(&view, len(lengths), view.axes)
    return overlaps_itself(&view, 1)


# ---- tensors from PyTorch's functions -----------------------------------------------------------


cdef bint is_new(y, TensorView* view, const TensorView* x, const ElementType* dtype):
    """Read y into view. Return whether y is a CPU tensor of type `dtype` with the shape of x, new memory and no overlaps."""
    cdef int64_t step = 1
    cdef bint dense = True
    cdef int i
    if type(y) is not Tensor or not read(y, view):
        return False
    if view.device != DLPACK_CPU or type_of(view) != dtype or view.ndim != x.ndim:
        return False
    for i in range(x.ndim - 1, -1, -1):
        if view.shape[i] != x.shape[i]:
            return False
        dense = dense and (view.strides[i] == step or view.shape[i] == 1)
        step *= view.shape[i]
    if size_of(view) and (view.data == NULL or view.data == x.data):
        return False
    return dense or not elements_overlap(y.shape, y.stride())


cdef check_new(y, TensorView* view, const TensorView* x, const ElementType* dtype, name):
    """Raise RuntimeError unless `is_new` accepts y, the result of torch.`name`, which a mode may have replaced."""
    if not is_new(y, view, x, dtype):
        raise_unexpected(y, name)


# ---- masks on tensors ---------------------------------------------------------------------------


cdef fill_view(View* view, const TensorView* x, const TensorView* y, uint64_t start, tuple strides):
    """Fill a View from x, y, and the start and strides of the mask. If `strides` is None, the mask is in C order.

    Axes of length 1 are omitted. A tensor that is not empty has at most MAX_DIMS axes of other lengths.
    """
    cdef ptrdiff_t itemsize = x.bits // 8
    cdef int64_t step = 1
    cdef int axis = 0
    cdef int i
    if size_of(x) == 0:
        view.ndim, view.axes[0].length = 1, 0
        return
    for i in range(x.ndim):
        axis += x.shape[i] != 1
    view.x, view.y, view.start, view.ndim = x.data, y.data, start, axis
    for i in range(x.ndim - 1, -1, -1):
        if x.shape[i] != 1:
            axis -= 1
            view.axes[axis] = cdropout_axis(
                x.shape[i], itemsize * x.strides[i], itemsize * y.strides[i], stride_along(i, strides, step)
            )
        step *= x.shape[i]


cdef tuple mask_strides(const TensorView* x, LazyMask mask):
    """Return the strides of the mask along the axes of x, or None for C order."""
    cdef int i
    if mask.broadcast_axes:
        return broadcast_strides(tuple([x.shape[i] for i in range(x.ndim)]), mask.broadcast_axes)
    return mask.strides


cpdef apply_mask(x, LazyMask mask):
    """Apply a mask to x. Return the result in the memory order of x, or None if x is not supported.

    The result is x itself if `mask.inplace` is true. Memory is allocated before the mask is drawn. If a signal handler
    raises an exception, a draw by this call is undone.
    """
    cdef Operation operation, keep_operation
    cdef TensorView source, target, wide, keep
    cdef TensorView* x_view = &source
    cdef TensorView* y_view = &target
    cdef const Executor* executor
    cdef size_t max_threads
    cdef bint drawn_before = mask.drawn
    if not read_tensor(x, &source):
        return None
    if mask.keep is not None:
        check_new(mask.keep, &keep, &source, &types[<int>CDROPOUT_BOOL], "empty")
        fill_view(&keep_operation.view, &keep, &keep, mask.start, None)
        keep_operation.dtype = CDROPOUT_BOOL
    if mask.inplace:
        y, y_view = x, &source
    else:
        y = empty_like(x)
        check_new(y, &target, &source, type_of(&source), "empty_like")
    copy = float32_copy(x, &source, &wide, mask)
    if copy is not None:
        x_view = y_view = &wide
    fill_view(&operation.view, x_view, y_view, mask.start, mask_strides(x_view, mask))
    operation.dtype = type_of(x_view).code
    use_mask(&operation, &mask.id)
    if mask.shifts:
        use_shift(&operation, mask.shift, mask.constant)
    executor = executor_of_pytorch()
    max_threads = torch.get_num_threads() if size_of(&source) >= executor.parallel_min else 1
    prepare(&operation, executor, max_threads)
    mask.draw(may_be_interrupted(&operation))
    try:
        run_prepared(&operation)
        if mask.keep is not None:
            use_mask(&keep_operation, &mask.id)
            prepare(&keep_operation, executor, max_threads)
            run_prepared(&keep_operation)
        if copy is not None:
            y.copy_(copy)
    except BaseException:             # a signal handler raised an exception or forked
        if not drawn_before:
            mask.undo_draw()
        raise
    if not drawn_before:
        mask.release()
    return y


def apply_window(x, y, LazyMask mask, uint64_t start, tuple strides):
    """Apply a window of a drawn mask to x, and write the result to y.

    y is x, or a tensor of the same shape and type that does not overlap x. The window begins at the position `start` of the
    mask stream, and `strides` contains its strides along the axes of x. Both tensors must be supported.
    """
    cdef Operation operation
    cdef TensorView source, target
    cdef const Executor* executor = executor_of_pytorch()
    read_tensor(x, &source)
    read_tensor(y, &target)
    fill_view(&operation.view, &source, &target, start, strides)
    operation.dtype = type_of(&source).code
    use_mask(&operation, &mask.id)
    prepare(&operation, executor, torch.get_num_threads() if size_of(&source) >= executor.parallel_min else 1)
    run_prepared(&operation)


cdef float32_copy(x, const TensorView* source, TensorView* wide, LazyMask mask):
    """Return a float32 copy of x and read the copy into `wide`, or return None if no copy is needed.

    Alpha dropout of a 16-bit type needs the copy, because its kernel supports only float32 and float64.
    """
    if not mask.shifts or type_of(source).itemsize >= 4 or size_of(source) == 0:
        return None
    copy = x.to(torch.float32, copy=True, memory_format=torch.preserve_format)
    check_new(copy, wide, source, &types[<int>CDROPOUT_FLOAT32], "Tensor.to")
    return copy


def apply_mask_to_gradient(gy, LazyMask mask):
    """Apply the derivative of a mask to gy, out of place, and return the result.

    Return None if gy is not supported, or if this operation has to be recorded for a derivative in reverse or forward mode.
    """
    if forward_ad._current_level >= 0 or (gy.requires_grad and is_grad_enabled()):
        return None
    return apply_mask(gy, mask.derivative())

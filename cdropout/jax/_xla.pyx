"""The XLA custom call that applies the masks of JAX keys.

The structs are those parts of XLA's foreign function interface (jaxlib's xla/ffi/api/c_api.h, version 0.3) that this module
uses. The order and the types of their members must match that header. Each struct begins with its size. In most structs, a
list of extensions follows.

The call is ``y = cdropout(key, x, p, window)``:

key
    uint32[..., 2] or uint32[..., 4]. A key consists of the seed, or of the seed and the call number, and determines one
    mask.
x, y
    Float arrays of the same type and shape. The shape begins with that of the keys; the other dimensions are those of a
    mask. y may be x.
p
    float32, float64, or uint32[2] with the bits of a float64. There is one p for all keys, or one p per key.
window
    uint32[n, 4] with an offset and a length for each of the n axes of a mask. Along an axis, the mask has this length, and
    x begins at this offset of the mask. A length of 0 stands for the length of x. If the length is 1, the axis is a
    broadcast axis.

In a uint32 operand, each 64-bit number consists of two elements, with the higher half first.

The call has no attributes, because in some programs, for example after jax.random.fold_in, jaxlib 0.5 to 0.7 reads
attributes as JSON and ends the process. Moreover, a program can compute an operand, such as p or the offset of a shard, but
not an attribute. The window contains offsets and lengths instead of a start and strides, because the latter are 64-bit
products, and JAX has no 64-bit integers by default. Moreover, a length can be 0 if a shape is known only at run time.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.math cimport NAN
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from cdropout cimport CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_axis, cdropout_dtype, cdropout_mask
from cdropout._core.dispatch cimport kernels
from cdropout._core.dtypes import FLOATS_TEXT
from cdropout._core.dtypes cimport XLA, ElementType, by_number, types
from cdropout._core.engine cimport Operation, apply_masks
from cdropout._core.executor cimport uninterruptible_pool
from cdropout._core.view cimport MAX_DIMS, View, count_elements

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/mman.h>
    #endif
    /* Advise the system to use huge pages for n bytes of new memory, as NumPy does. XLA allocates memory for
     * each result, and with small pages the system needs more time to provide the memory than dropout needs to fill it. */
    static void cd_use_huge_pages(char *memory, size_t n) {
    #ifdef MADV_HUGEPAGE
      size_t before = (size_t)-(uintptr_t)memory % 4096;
      if (n >= (size_t)1 << 22) madvise(memory + before, n - before, MADV_HUGEPAGE);
    #else
      (void)memory, (void)n;
    #endif
    }
    """
    void use_huge_pages "cd_use_huge_pages"(char* memory, size_t n) noexcept nogil

cdef enum:
    MAJOR = 0                         # version of the structs below
    MINOR = 3
    METADATA = 1                      # extension type; a call with this extension only requests the version of the structs
    INVALID_ARGUMENT = 3              # error code
    BUFFER = 1                        # type of an operand or a result
    EXECUTE = 3                       # stage of a call that may read and write the memory of buffers
    XLA_U32 = 8                       # dtype of keys, of windows and of p as bits

cdef struct Extension:
    size_t struct_size
    int type
    Extension* next

cdef struct Version:
    size_t struct_size
    Extension* extensions
    int major, minor

cdef struct Metadata:
    size_t struct_size
    Version version
    uint32_t traits

cdef struct MetadataExtension:
    Extension base
    Metadata* metadata

cdef struct NewError:
    size_t struct_size
    Extension* extensions
    const char* message
    int code

cdef struct Api:
    size_t struct_size
    Extension* extensions
    Version version
    const void* internal
    void* (*new_error)(NewError*) noexcept nogil

cdef struct Buffer:
    size_t struct_size
    Extension* extensions
    int dtype
    void* data
    int64_t rank
    int64_t* dims

cdef struct Buffers:                  # the operands or the results of a call
    size_t struct_size
    Extension* extensions
    int64_t size
    int* types
    Buffer** buffers

cdef struct Attributes:
    size_t struct_size
    Extension* extensions
    int64_t size
    int* types
    void** names
    void** values

cdef struct CallFrame:
    size_t struct_size
    Extension* extensions
    const Api* api
    void* context
    int stage
    Buffers operands
    Buffers results
    Attributes attributes


cdef struct Call:                     # the checked arguments of one custom call
    const Buffer* key
    const Buffer* x
    const Buffer* p
    const Buffer* window
    const Buffer* y
    size_t mask_count                 # number of keys
    size_t p_count                    # number of values of p: 1, or one per key
    Operation operation               # the operation for the first mask, without the mask itself

cdef size_t LARGEST = <size_t>-1 >> 1  # maximum number of bytes of a buffer, and of elements of a mask
cdef bytes x_text = (
    f"x has to be {FLOATS_TEXT}, with the shape of the keys and at most {MAX_DIMS} dimensions of a mask"
).encode()
cdef const char* x_message = x_text


cdef void* write_version(const CallFrame* frame) noexcept nogil:
    """Write the version of the structs, or XLA's version if that is older, since XLA rejects newer versions. Return NULL."""
    cdef Metadata* metadata = (<MetadataExtension*>frame.extensions).metadata
    if frame.extensions.struct_size < sizeof(MetadataExtension) or metadata == NULL:
        return NULL
    if metadata.struct_size < sizeof(size_t) + sizeof(Version) + sizeof(uint32_t):
        return NULL
    metadata.version.major = MAJOR
    metadata.version.minor = 1        # jaxlib 0.5 and 0.6 do not pass their version
    if frame.api != NULL:
        metadata.version.minor = min(<int>MINOR, frame.api.version.minor)    # the structs are the same in 0.1 to 0.3
    metadata.traits = 0
    return NULL


cdef void* new_error(const CallFrame* frame, const char* message) noexcept nogil:
    """Return a new XLA error with a copy of the message."""
    cdef NewError error = NewError(sizeof(NewError), NULL, message, INVALID_ARGUMENT)
    return frame.api.new_error(&error)


# ---- checks of the operands and the result ------------------------------------------------------


cdef bint multiply(size_t* product, uint64_t factor) noexcept nogil:
    """Multiply product[0] by factor and return True; if the result exceeds LARGEST, change nothing and return False."""
    if product[0] != 0 and factor > LARGEST // product[0]:
        return False
    product[0] *= <size_t>factor
    return True


cdef size_t itemsize_of(const Buffer* buffer) noexcept nogil:
    """Return the itemsize, or 0 if the dtype is not supported."""
    cdef const ElementType* element_type = by_number(XLA, buffer.dtype)
    if buffer.dtype == XLA_U32:
        return 4
    return element_type.itemsize if element_type != NULL else 0


cdef bint is_valid(const Buffer* buffer) noexcept nogil:
    """Return whether the buffer has valid dimensions and, if its dtype is supported, memory for its elements."""
    cdef size_t nbytes
    cdef int64_t i
    if buffer == NULL or buffer.struct_size < sizeof(Buffer) or buffer.rank < 0 or (buffer.rank > 0 and buffer.dims == NULL):
        return False
    nbytes = itemsize_of(buffer)
    for i in range(buffer.rank):
        if buffer.dims[i] < 0 or not multiply(&nbytes, <uint64_t>buffer.dims[i]):
            return False
    return buffer.data != NULL or nbytes == 0


cdef bint are_valid(const Buffers* buffers, int64_t count) noexcept nogil:
    cdef int64_t i
    if buffers.types == NULL or buffers.buffers == NULL:
        return False
    for i in range(count):
        if buffers.types[i] != BUFFER or not is_valid(buffers.buffers[i]):
            return False
    return True


cdef bint equal_dims(const Buffer* a, const Buffer* b, int64_t rank) noexcept nogil:
    """Return whether two buffers have the same first `rank` dimensions."""
    cdef int64_t i
    if a.rank < rank or b.rank < rank:
        return False
    for i in range(rank):
        if a.dims[i] != b.dims[i]:
            return False
    return True


cdef const char* check_frame(const CallFrame* frame) noexcept nogil:
    """Return an error message, or NULL if the sizes of the structs, the stage and the buffers of the call are valid."""
    if (frame.struct_size < sizeof(CallFrame) or frame.operands.struct_size < sizeof(Buffers)
            or frame.results.struct_size < sizeof(Buffers) or frame.attributes.struct_size < sizeof(Attributes)):
        return "cdropout does not support this version of XLA: its structs are too small"
    if frame.stage != EXECUTE:
        return "cdropout has to be registered for the execute stage only"
    if frame.operands.size != 4 or frame.results.size != 1 or frame.attributes.size != 0:
        return "cdropout takes the operands key, x, p and window and no attributes, and returns one result"
    if not are_valid(&frame.operands, 4) or not are_valid(&frame.results, 1):
        return "operands and results have to be buffers with memory for their dimensions"
    return NULL


cdef bint has_dtype(const Buffer* buffer, cdropout_dtype dtype) noexcept nogil:
    return buffer.dtype == types[<int>dtype].numbers[<int>XLA]


cdef bint has_dtype_of_p(const Buffer* p) noexcept nogil:
    """Return whether the elements of p are float32, float64, or pairs of uint32."""
    if p.dtype == XLA_U32:
        return p.rank > 0 and p.dims[p.rank - 1] == 2
    return has_dtype(p, CDROPOUT_FLOAT32) or has_dtype(p, CDROPOUT_FLOAT64)


cdef const char* check_types(Call* call) noexcept nogil:
    """Check the types and shapes. Set the members mask_count and p_count and return NULL, or return an error message."""
    cdef int64_t key_ndim = call.key.rank - 1           # number of dimensions of the keys
    cdef int64_t p_ndim = call.p.dtype == XLA_U32       # number of dimensions of one p
    cdef int64_t i
    if call.key.dtype != XLA_U32 or key_ndim < 0 or (call.key.dims[key_ndim] != 2 and call.key.dims[key_ndim] != 4):
        return "key has to be uint32[..., 2] or uint32[..., 4]"
    if (by_number(XLA, call.x.dtype) == NULL or not equal_dims(call.x, call.key, key_ndim)
            or call.x.rank - key_ndim > MAX_DIMS):
        return x_message
    if call.y.dtype != call.x.dtype or call.y.rank != call.x.rank or not equal_dims(call.y, call.x, call.x.rank):
        return "the result has to have the shape and type of x"
    if not has_dtype_of_p(call.p) or (
            call.p.rank != p_ndim and not (call.p.rank == key_ndim + p_ndim and equal_dims(call.p, call.key, key_ndim))):
        return "p has to be float32, float64 or uint32[2]: one for all keys, or one per key"
    if (call.window.dtype != XLA_U32 or call.window.rank != 2 or call.window.dims[0] != call.x.rank - key_ndim
            or call.window.dims[1] != 4):
        return "window has to be uint32[n, 4] for the n dimensions of a mask"
    call.mask_count = 1
    for i in range(key_ndim):
        call.mask_count *= <size_t>call.key.dims[i]
    call.p_count = 1 if call.p.rank == p_ndim else call.mask_count
    return NULL


cdef inline uint64_t to_uint64(const uint32_t* halves) noexcept nogil:
    return <uint64_t>halves[0] << 32 | halves[1]


cdef const char* check_window(Call* call) noexcept nogil:
    """Set the operation's dtype and view; x and y are in C order. Return NULL, or an error message for an invalid window."""
    cdef const uint32_t* window = <const uint32_t*>call.window.data
    cdef View* view = &call.operation.view
    cdef size_t itemsize = itemsize_of(call.x)
    cdef size_t size = 1              # number of elements of x along the visited axes
    cdef size_t stride = 1            # stride of the mask along the current axis
    cdef uint64_t offset, length, covered
    cdef cdropout_axis* axis
    cdef int64_t i
    call.operation.dtype = by_number(XLA, call.x.dtype).code
    view.x = <const char*>call.x.data
    view.y = <char*>call.y.data
    view.ndim = <int>(call.x.rank - (call.key.rank - 1))
    view.start = 0
    for i in range(view.ndim - 1, -1, -1):
        axis = &view.axes[i]
        axis.length = <size_t>call.x.dims[call.key.rank - 1 + i]
        offset = to_uint64(window + 4 * i)
        length = to_uint64(window + 4 * i + 2)
        if length == 0:
            length = axis.length
        covered = 1 if length == 1 else axis.length
        axis.x = axis.y = <ptrdiff_t>(size * itemsize)
        axis.mask = 0 if length == 1 else <int64_t>stride
        size *= axis.length
        view.start += offset * stride
        if covered > length or offset > length - covered or not multiply(&stride, length):
            return "window has to be part of a mask of fewer than 2**63 elements"
    return NULL


cdef double probability(const Call* call, size_t i) noexcept nogil:
    """Return p for the mask with index i."""
    cdef double p
    cdef uint64_t bits
    if call.p_count == 1:
        i = 0
    if has_dtype(call.p, CDROPOUT_FLOAT32):
        return (<const float*>call.p.data)[i]
    if has_dtype(call.p, CDROPOUT_FLOAT64):
        return (<const double*>call.p.data)[i]
    bits = to_uint64(<const uint32_t*>call.p.data + 2 * i)
    memcpy(&p, &bits, sizeof(p))
    return p


cdef void* check_call(const CallFrame* frame, Call* call) noexcept nogil:
    """Set all members of call and return NULL, or return an XLA error. Do not write to y."""
    cdef cdropout_mask mask
    cdef char text[100]
    cdef double p
    cdef size_t i
    cdef const char* message = check_frame(frame)
    if message == NULL:
        call.key, call.x, call.p, call.window = (
            frame.operands.buffers[0], frame.operands.buffers[1], frame.operands.buffers[2], frame.operands.buffers[3])
        call.y = frame.results.buffers[0]
        message = check_types(call)
    if message == NULL:
        message = check_window(call)
    if message != NULL:
        return new_error(frame, message)
    for i in range(call.p_count):
        p = probability(call, i)
        if kernels.mask_init(&mask, 0, 0, p) < 0:
            p = p if p == p else NAN      # the message must not show the sign of a NaN
            snprintf(text, sizeof(text), "dropout probability has to be between 0 and 1, but got %.17g", p)
            return new_error(frame, text)
    return NULL


# ---- execution -----------------------------------------------------------------------------------


cdef void init_mask(cdropout_mask* mask, const void* checked, size_t i) noexcept nogil:
    """Initialize the mask with index i. `seed_and_call` in jax/functional.py must return the same seed and call number."""
    cdef const Call* call = <const Call*>checked
    cdef int64_t key_length = call.key.dims[call.key.rank - 1]
    cdef const uint32_t* key = <const uint32_t*>call.key.data + i * <size_t>key_length
    kernels.mask_init(mask, to_uint64(key), to_uint64(key + 2) if key_length == 4 else 0, probability(call, i))


cdef void* execute(const CallFrame* frame) noexcept nogil:
    """Execute one custom call, or write the version if only the version is requested. Return NULL, or an XLA error."""
    cdef Call call
    cdef Operation* operation = &call.operation
    cdef void* error
    if frame.extensions != NULL and frame.extensions.type == METADATA:
        return write_version(frame)
    error = check_call(frame, &call)
    if error == NULL:
        if operation.view.x != operation.view.y:
            use_huge_pages(operation.view.y, count_elements(&operation.view) * call.mask_count * itemsize_of(call.y))
        apply_masks(operation, uninterruptible_pool, call.mask_count, init_mask, &call)
    return error


handler = PyCapsule_New(<void*>execute, NULL, NULL)

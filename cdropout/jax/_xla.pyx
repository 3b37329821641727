"""The XLA custom call that applies the masks of JAX keys.

The structs below are those of XLA's foreign function interface (jaxlib's xla/ffi/api/c_api.h, version 0.3), as far as they
are used. Their order and types must match it. Each begins with its size and a list of extensions.

The call is ``y = cdropout(key, x, p, window)``:

key
    uint32[..., 2] or uint32[..., 4]: the seed and the call number, higher words first. Each key has a mask of its own.
x, y
    Float arrays of one type and shape, which begins with the dimensions of the keys. The others are those of a mask.
    y may be x.
p
    float32, float64, or uint32[2] with the bits of a float64, higher word first; one for all keys, or one per key.
window
    uint32[n, 4] for the n dimensions of a mask: offset and length as 64-bit pairs, higher words first. x begins at
    `offset` in a mask of `length`. A length of 0 is the length of x; along an axis of length 1 one draw is shared.

There are no attributes: in some programs, as after jax.random.fold_in, jaxlib 0.5 to 0.7 reads those of a custom call as
JSON, fails, and ends the process. As operands, p and the offset of a shard may be computed by the program. An offset and a
length per axis, in place of a start and strides, spare it 64-bit products, and a shape may be known only when it runs.
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
    /* Let the system use large pages for n bytes of new memory, as NumPy does. XLA gets new memory for each result, and with
     * small pages the system needs more time to provide it than dropout needs to fill it. */
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
    MAJOR = 0                         # of the version that the structs were taken from
    MINOR = 3
    METADATA = 1                      # an extension: XLA asks for our version, and for nothing else
    INVALID_ARGUMENT = 3              # an error code
    BUFFER = 1                        # the kind of an operand or a result
    EXECUTE = 3                       # the stage in which buffers may be read
    XLA_U32 = 8                       # the type of keys and windows; dtypes.pyx has those of x

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

cdef struct Buffers:                  # the operands, and the results
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


cdef struct Call:                     # what has been checked
    const Buffer* key
    const Buffer* x
    const Buffer* p
    const Buffer* window
    const Buffer* y
    size_t masks                      # the number of keys
    size_t probabilities              # the number of p: 1, or one per key
    Operation operation               # on the part of x that the first mask is applied to, without the mask

cdef size_t LARGEST = <size_t>-1 >> 1  # the sizes and strides of memory fit in a ptrdiff_t
cdef bytes x_text = f"x has to be {FLOATS_TEXT}: the dimensions of the keys, and at most {MAX_DIMS} of a mask".encode()
cdef const char* x_message = x_text


cdef void* tell_version(const CallFrame* frame) noexcept nogil:
    """Claim XLA's version, at most that of the structs: older ones have the same, and newer ones take older handlers."""
    cdef Metadata* metadata = (<MetadataExtension*>frame.extensions).metadata
    if frame.extensions.struct_size < sizeof(MetadataExtension) or metadata == NULL:
        return NULL
    if metadata.struct_size < sizeof(size_t) + sizeof(Version) + sizeof(uint32_t):
        return NULL
    metadata.version.major = MAJOR
    metadata.version.minor = 1        # of jaxlib 0.5 and 0.6, which do not pass their api here
    if frame.api != NULL:
        metadata.version.minor = min(<int>MINOR, frame.api.version.minor)
    metadata.traits = 0
    return NULL


cdef void* error(const CallFrame* frame, const char* message) noexcept nogil:
    """Return a new error of XLA, which copies the message."""
    cdef NewError new = NewError(sizeof(NewError), NULL, message, INVALID_ARGUMENT)
    return frame.api.new_error(&new)


# ---- checks of the operands and the result ------------------------------------------------------


cdef bint multiply(size_t* product, uint64_t factor) noexcept nogil:
    """Multiply in place, and return True, if the product fits in a ptrdiff_t."""
    if product[0] != 0 and factor > LARGEST // product[0]:
        return False
    product[0] *= <size_t>factor
    return True


cdef size_t itemsize_of(const Buffer* buffer) noexcept nogil:
    """Return the bytes per element, or 0 for a type that is not used."""
    cdef const ElementType* kind = by_number(XLA, buffer.dtype)
    if buffer.dtype == XLA_U32:
        return 4
    return kind.itemsize if kind != NULL else 0


cdef bint is_sound(const Buffer* buffer) noexcept nogil:
    """Return whether the dimensions can be read, and elements of a type in use have memory."""
    cdef size_t nbytes
    cdef int64_t i
    if buffer == NULL or buffer.struct_size < sizeof(Buffer) or buffer.rank < 0 or (buffer.rank > 0 and buffer.dims == NULL):
        return False
    nbytes = itemsize_of(buffer)
    for i in range(buffer.rank):
        if buffer.dims[i] < 0 or not multiply(&nbytes, <uint64_t>buffer.dims[i]):
            return False
    return buffer.data != NULL or nbytes == 0


cdef bint are_sound(const Buffers* buffers, int64_t count) noexcept nogil:
    cdef int64_t i
    if buffers.types == NULL or buffers.buffers == NULL:
        return False
    for i in range(count):
        if buffers.types[i] != BUFFER or not is_sound(buffers.buffers[i]):
            return False
    return True


cdef bint begins_alike(const Buffer* a, const Buffer* b, int64_t rank) noexcept nogil:
    """Return whether the first `rank` dimensions of two buffers are the same."""
    cdef int64_t i
    if a.rank < rank or b.rank < rank:
        return False
    for i in range(rank):
        if a.dims[i] != b.dims[i]:
            return False
    return True


cdef const char* check_frame(const CallFrame* frame) noexcept nogil:
    """Return an error message, or NULL."""
    if (frame.struct_size < sizeof(CallFrame) or frame.operands.struct_size < sizeof(Buffers)
            or frame.results.struct_size < sizeof(Buffers) or frame.attributes.struct_size < sizeof(Attributes)):
        return "cdropout does not know this version of XLA: its structs are too small"
    if frame.stage != EXECUTE:
        return "cdropout has to be registered for the execute stage only"
    if frame.operands.size != 4 or frame.results.size != 1 or frame.attributes.size != 0:
        return "cdropout takes the operands key, x, p and window and no attributes, and returns one result"
    if not are_sound(&frame.operands, 4) or not are_sound(&frame.results, 1):
        return "cdropout takes buffers only, with memory for their dimensions"
    return NULL


cdef bint is_of(const Buffer* buffer, cdropout_dtype dtype) noexcept nogil:
    return buffer.dtype == types[<int>dtype].numbers[<int>XLA]


cdef bint holds_p(const Buffer* p) noexcept nogil:
    """Return whether the elements are float32 or float64, or the rows are the bits of a float64."""
    if p.dtype == XLA_U32:
        return p.rank > 0 and p.dims[p.rank - 1] == 2
    return is_of(p, CDROPOUT_FLOAT32) or is_of(p, CDROPOUT_FLOAT64)


cdef const char* check_types(Call* call) noexcept nogil:
    """Return an error message, or NULL. Fill in the number of masks and probabilities."""
    cdef int64_t keys = call.key.rank - 1
    cdef int64_t bits = call.p.dtype == XLA_U32     # the number of dimensions of one p
    cdef int64_t i
    if call.key.dtype != XLA_U32 or keys < 0 or (call.key.dims[keys] != 2 and call.key.dims[keys] != 4):
        return "key has to be uint32[..., 2] or uint32[..., 4]"
    if by_number(XLA, call.x.dtype) == NULL or not begins_alike(call.x, call.key, keys) or call.x.rank - keys > MAX_DIMS:
        return x_message
    if call.y.dtype != call.x.dtype or call.y.rank != call.x.rank or not begins_alike(call.y, call.x, call.x.rank):
        return "the result has to be of the shape and type of x"
    if not holds_p(call.p) or (
            call.p.rank != bits and not (call.p.rank == keys + bits and begins_alike(call.p, call.key, keys))):
        return "p has to be float32, float64 or uint32[2]: one for all keys, or one per key"
    if (call.window.dtype != XLA_U32 or call.window.rank != 2 or call.window.dims[0] != call.x.rank - keys
            or call.window.dims[1] != 4):
        return "window has to be uint32[n, 4] for the n dimensions of a mask"
    call.masks = 1
    for i in range(keys):
        call.masks *= <size_t>call.key.dims[i]
    call.probabilities = 1 if call.p.rank == bits else call.masks
    return NULL


cdef inline uint64_t join(const uint32_t* words) noexcept nogil:
    """Return the 64-bit number of two words, the higher first."""
    return <uint64_t>words[0] << 32 | words[1]


cdef const char* check_window(Call* call) noexcept nogil:
    """Return an error message, or NULL. Fill in the view of what the first mask is applied to; x and y are dense."""
    cdef const uint32_t* words = <const uint32_t*>call.window.data
    cdef View* view = &call.operation.view
    cdef size_t itemsize = itemsize_of(call.x)
    cdef size_t size = 1              # of the axes so far
    cdef size_t step = 1              # the stride in the mask
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
        offset = join(words + 4 * i)
        length = join(words + 4 * i + 2)
        if length == 0:
            length = axis.length
        covered = 1 if length == 1 else axis.length
        axis.x = axis.y = <ptrdiff_t>(size * itemsize)
        axis.mask = 0 if length == 1 else <int64_t>step
        size *= axis.length
        view.start += offset * step
        if covered > length or offset > length - covered or not multiply(&step, length):
            return "window has to lie in a mask of fewer than 2**63 elements"
    return NULL


cdef double probability(const Call* call, size_t i) noexcept nogil:
    """Return the p of the mask with index i."""
    cdef double p
    cdef uint64_t bits
    if call.probabilities == 1:
        i = 0
    if is_of(call.p, CDROPOUT_FLOAT32):
        return (<const float*>call.p.data)[i]
    if is_of(call.p, CDROPOUT_FLOAT64):
        return (<const double*>call.p.data)[i]
    bits = join(<const uint32_t*>call.p.data + 2 * i)
    memcpy(&p, &bits, sizeof(p))
    return p


cdef void* check(const CallFrame* frame, Call* call) noexcept nogil:
    """Return an error, or NULL and all about the call. Nothing has been written."""
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
        return error(frame, message)
    for i in range(call.probabilities):
        p = probability(call, i)
        if kernels.mask_init(&mask, 0, 0, p) < 0:
            p = p if p == p else NAN      # without a sign
            snprintf(text, sizeof(text), "dropout probability has to be between 0 and 1, but got %.17g", p)
            return error(frame, text)
    return NULL


# ---- the masks ----------------------------------------------------------------------------------


cdef void init_mask(cdropout_mask* mask, const void* checked, size_t i) noexcept nogil:
    """Write the mask with index i. A key is the seed, or the seed and the call number. Must match jax.py."""
    cdef const Call* call = <const Call*>checked
    cdef int64_t words_per_key = call.key.dims[call.key.rank - 1]
    cdef const uint32_t* words = <const uint32_t*>call.key.data + i * <size_t>words_per_key
    kernels.mask_init(mask, join(words), join(words + 2) if words_per_key == 4 else 0, probability(call, i))


cdef void* execute(const CallFrame* frame) noexcept nogil:
    """Execute the custom call."""
    cdef Call call
    cdef Operation* operation = &call.operation
    cdef void* failure
    if frame.extensions != NULL and frame.extensions.type == METADATA:
        return tell_version(frame)
    failure = check(frame, &call)
    if failure == NULL:
        if operation.view.x != operation.view.y:
            use_huge_pages(operation.view.y, count_elements(&operation.view) * call.masks * itemsize_of(call.y))
        apply_masks(operation, uninterruptible_pool, call.masks, init_mask, &call)
    return failure


handler = PyCapsule_New(<void*>execute, NULL, NULL)

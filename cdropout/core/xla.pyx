"""What XLA calls: the mask of a JAX key, applied to the buffers of a custom call, by XLA's foreign-function interface.

The structs below are those of its C interface (jaxlib's xla/ffi/api/c_api.h, version 0.3), as far as they are used: their
order and types must match it. Each begins with its size and a list of extensions.
"""
from cpython.pycapsule cimport PyCapsule_New
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint32_t, uint64_t

from cdropout cimport CDROPOUT_BFLOAT16, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_dtype, cdropout_mask
from cdropout.core.dispatch cimport kernels
from cdropout.core.strided cimport MAX_DIMS, Axis, Box, arrange, draw_box

cdef enum:
    MAJOR = 0                         # of the version that the structs were taken from
    MINOR = 3
    METADATA = 1                      # an extension: XLA asks for our version, and for nothing else
    INVALID_ARGUMENT = 3              # an error code

cdef enum:                            # types of elements
    XLA_F16 = 10
    XLA_F32 = 11
    XLA_F64 = 12
    XLA_BF16 = 16


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

cdef struct Scalar:
    int dtype
    void* value

cdef struct Attributes:               # sorted by name
    size_t struct_size
    Extension* extensions
    int64_t size
    int* types
    void** names
    Scalar** scalars

cdef struct CallFrame:
    size_t struct_size
    Extension* extensions
    const Api* api
    void* context
    int stage
    Buffers operands
    Buffers results
    Attributes attributes


cdef void* tell_version(const CallFrame* frame) noexcept nogil:
    """Claim what XLA has, or what was current here: older versions have all that is used, newer ones take older handlers."""
    cdef Metadata* metadata = (<MetadataExtension*>frame.extensions).metadata
    metadata.version.major = MAJOR
    metadata.version.minor = 1        # of jaxlib 0.5 and 0.6, which do not pass their api here
    if frame.api != NULL:
        metadata.version.minor = min(<int>MINOR, frame.api.version.minor)
    metadata.traits = 0
    return NULL


cdef void* error(const CallFrame* frame, const char* message) noexcept nogil:
    cdef NewError new = NewError(sizeof(NewError), NULL, message, INVALID_ARGUMENT)
    return frame.api.new_error(&new)


cdef int code_of(const Buffer* buffer) noexcept nogil:
    """cdropout's number for the type of the elements, or -1."""
    if buffer.dtype == XLA_F32:
        return CDROPOUT_FLOAT32
    if buffer.dtype == XLA_F64:
        return CDROPOUT_FLOAT64
    if buffer.dtype == XLA_F16:
        return CDROPOUT_FLOAT16
    return CDROPOUT_BFLOAT16 if buffer.dtype == XLA_BF16 else -1


cdef size_t fill_box(Box* box, const Buffer* x, int64_t first, uint64_t shared) noexcept nogil:
    """The axes of x from the first on, dense, with one draw along those whose bit in `shared` is set; return their size."""
    cdef size_t n = 1
    cdef ptrdiff_t step = 1
    cdef Axis* axis
    cdef int i
    box.dtype = <cdropout_dtype>code_of(x)
    box.size = 4 if box.dtype == CDROPOUT_FLOAT32 else 8 if box.dtype == CDROPOUT_FLOAT64 else 2
    box.ndim = <int>(x.rank - first)
    for i in range(box.ndim - 1, -1, -1):
        axis = &box.axes[i]
        axis.length = x.dims[first + i]
        axis.x = axis.y = <ptrdiff_t>n * box.size
        axis.keep = 0 if shared >> i & 1 else step
        step *= 1 if shared >> i & 1 else <ptrdiff_t>axis.length
        n *= axis.length
    return n


cdef void name_mask(cdropout_mask* mask, const uint32_t* words, int64_t count) noexcept nogil:
    """A key is 2 words (the seed) or 4 (the seed and the call number), the higher first. Must match jax.py."""
    mask.seed = <uint64_t>words[0] << 32 | words[1]
    mask.call = <uint64_t>words[2] << 32 | words[3] if count == 4 else 0


cdef void apply_masks(const Buffer* key, const Buffer* x, char* target, cdropout_mask* mask, uint64_t shared) noexcept nogil:
    """A mask for each index of the axes that key and x begin with; key has one more, of its words."""
    cdef Box box
    cdef const uint32_t* words = <const uint32_t*>key.data
    cdef const char* source = <const char*>x.data
    cdef int64_t count = key.dims[key.rank - 1]
    cdef size_t n = fill_box(&box, x, key.rank - 1, shared)
    cdef size_t masks = 1
    cdef size_t i
    for i in range(<size_t>key.rank - 1):
        masks *= key.dims[i]
    if n == 0:
        return
    box.scale = mask.scale
    arrange(&box)
    for i in range(masks):
        name_mask(mask, words + i * count, count)
        if shared:
            draw_box(&box, source, target, mask, 0)
        else:
            kernels.apply(box.dtype, source, target, n, mask, 0)
        source += n * <size_t>box.size
        target += n * <size_t>box.size


cdef void* run(const CallFrame* frame) noexcept nogil:
    """The custom call `cdropout`: y = dropout(key, x) with the attributes p, a float64, and shared, an int64 of bits."""
    cdef cdropout_mask mask
    if frame.extensions != NULL and frame.extensions.type == METADATA:
        return tell_version(frame)
    if frame.operands.size != 2 or frame.results.size != 1 or frame.attributes.size != 2:
        return error(frame, "cdropout takes a key and x, with the attributes p and shared, and returns y")
    if code_of(frame.operands.buffers[1]) < 0 or frame.operands.buffers[1].rank >= MAX_DIMS:
        return error(frame, "cdropout takes float16, bfloat16, float32 or float64 of fewer than 64 dimensions")
    if kernels.mask_init(&mask, 0, 0, (<const double*>frame.attributes.scalars[0].value)[0]) < 0:
        return error(frame, "dropout probability has to be between 0 and 1")
    apply_masks(
        frame.operands.buffers[0], frame.operands.buffers[1], <char*>frame.results.buffers[0].data, &mask,
        (<const uint64_t*>frame.attributes.scalars[1].value)[0],
    )
    return NULL


handler = PyCapsule_New(<void*>run, NULL, NULL)

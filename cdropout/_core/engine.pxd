"""The engine applies a mask, packed bits or bools to views. It is used for arrays of NumPy and of the frameworks."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cdropout cimport cdropout_dtype, cdropout_mask
from cdropout._core.executor cimport Executor
from cdropout._core.view cimport MAX_DIMS, View

cdef enum:
    RELEASE_GIL_MIN = 1 << 14         # number of elements from which releasing the GIL saves time
    CHUNK = 1 << 16                   # elements per work chunk of a contiguous operation
    INTERRUPTIBLE_MIN = 1 << 22       # size above which contiguous operations check for signals; smaller ones end soon

cdef struct Operation:
    # The caller sets these fields:
    View view                         # x, y, start, and the axes in C order
    cdropout_dtype dtype              # CDROPOUT_BOOL if y receives the mask; in this case, x is equal to y
    # use_mask, use_stored_mask and use_shift set these fields; exactly one of mask, bits and bools is not NULL:
    const cdropout_mask* mask         # the mask, which must stay valid until the operation ends
    const uint8_t* bits               # packed bits; kept elements are multiplied by scale
    const uint8_t* bools              # one byte per element; kept elements are multiplied by scale
    double scale
    bint packs                        # y receives the mask as packed bits; the view has one axis
    bint shifts                       # shift and constant are used (float32 and float64 only)
    double shift                      # added to kept elements after they are multiplied by the scale
    double constant                   # written for dropped elements, instead of +0.0
    # prepare sets these fields:
    size_t size                       # number of elements
    const Executor* executor
    size_t max_threads
    bint contiguous                   # whether the view is one row without gaps that has a kernel; see has_row_kernel
    uint32_t flags
    size_t lengths[MAX_DIMS]          # lengths of a work chunk along the axes of the view


cdef inline int64_t stride_along(int axis, tuple strides, int64_t step) except? -1:
    """Return the stride of the mask along an axis. If `strides` is None, return `step`, the stride of C order."""
    return step if strides is None else <int64_t><uint64_t>(strides[axis] & 0xFFFFFFFFFFFFFFFF)


cdef inline void use_mask(Operation* operation, const cdropout_mask* mask) noexcept nogil:
    """Use a mask to determine which elements are kept."""
    operation.mask = mask
    operation.bits = operation.bools = NULL
    operation.packs = operation.shifts = False


cdef inline void use_stored_mask(
    Operation* operation, const uint8_t* bits, const uint8_t* bools, double scale
) noexcept nogil:
    """Use packed bits or bools to determine which elements are kept. Exactly one of the two pointers must be NULL."""
    use_mask(operation, NULL)
    operation.bits = bits
    operation.bools = bools
    operation.scale = scale


cdef inline void use_shift(Operation* operation, double shift, double constant) noexcept nogil:
    """Make the operation add `shift` to kept elements and replace dropped elements by `constant`."""
    operation.shifts = True
    operation.shift = shift
    operation.constant = constant


ctypedef void (*InitMask)(cdropout_mask* mask, const void* context, size_t i) noexcept nogil

cdef void prepare(Operation* operation, const Executor* executor, size_t max_threads) noexcept nogil
cdef bint may_be_interrupted(const Operation* operation) noexcept nogil
cdef int run(const Operation* operation) except -1 nogil
cdef int run_prepared(const Operation* operation) except -1
cdef int apply(Operation* operation, const Executor* executor) except -1
cdef void apply_masks(
    Operation* operation, const Executor* executor, size_t masks, InitMask init_mask, const void* context
) noexcept nogil

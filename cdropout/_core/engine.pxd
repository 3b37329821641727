"""The engine: applies a mask, packed bits or bools to views. NumPy's, PyTorch's and XLA's arrays all come through it."""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from cdropout cimport cdropout_dtype, cdropout_mask
from cdropout._core.executor cimport Executor
from cdropout._core.view cimport MAX_DIMS, View

cdef enum:
    RELEASE_GIL_MIN = 1 << 14                   # below this many elements, releasing the GIL costs more than it saves
    CHUNK = 1 << 16                   # elements of a work chunk

cdef struct Operation:                # the caller fills in:
    View view                         # x, y, start, and the axes in C order
    cdropout_dtype dtype              # CDROPOUT_BOOL if y receives the mask; then x is y
    # by one of the functions below:
    const cdropout_mask* mask         # which outlives the operation, or
    const uint8_t* bits               # packed bits, or
    const uint8_t* bools              # bytes, with
    double scale
    bint packs                        # y receives the mask as packed bits; the view is one axis
    bint shifts                       # after the scale (float32 and float64 only),
    double shift                      # this is added to kept elements,
    double constant                   # and dropped ones become this; otherwise +0.0
    # by prepare:
    size_t size
    const Executor* executor
    size_t threads                    # that may share it
    bint contiguous                   # x, y and the mask are one axis without gaps, for which there is a kernel
    uint32_t flags
    size_t lengths[MAX_DIMS]          # of a work chunk along each axis of the view


cdef inline int64_t stride_along(int axis, tuple strides, int64_t step) except? -1:
    """Return the mask's stride along an axis; without strides it is `step`, the stride of C order."""
    return step if strides is None else <int64_t><uint64_t>(strides[axis] & 0xFFFFFFFFFFFFFFFF)


cdef inline void use_mask(Operation* operation, const cdropout_mask* mask) noexcept nogil:
    """Let a mask determine which elements are kept."""
    operation.mask = mask
    operation.bits = operation.bools = NULL
    operation.packs = operation.shifts = False


cdef inline void use_stored_mask(
    Operation* operation, const uint8_t* bits, const uint8_t* bools, double scale
) noexcept nogil:
    """Let packed bits, or bools, determine which elements are kept."""
    use_mask(operation, NULL)
    operation.bits = bits
    operation.bools = bools
    operation.scale = scale


cdef inline void use_shift(Operation* operation, double shift, double constant) noexcept nogil:
    """Add `shift` to kept elements, and write `constant` in place of dropped ones."""
    operation.shifts = True
    operation.shift = shift
    operation.constant = constant


ctypedef void (*InitMask)(cdropout_mask* mask, const void* call, size_t i) noexcept nogil

cdef void prepare(Operation* operation, const Executor* executor, size_t max_threads) noexcept nogil
cdef bint may_be_interrupted(const Operation* operation) noexcept nogil
cdef int run(const Operation* operation) except -1 nogil
cdef int run_prepared(const Operation* operation) except -1
cdef int apply(Operation* operation, const Executor* executor) except -1
cdef void apply_masks(
    Operation* operation, const Executor* executor, size_t masks, InitMask init_mask, const void* call
) noexcept nogil

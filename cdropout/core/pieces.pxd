"""The kernels on arrays of any size, cut into pieces for threads and signals; -1 if a signal's handler raised."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from cdropout cimport cdropout_axis, cdropout_dtype, cdropout_mask
from cdropout.core.threads cimport Share
from cdropout.core.view cimport MAX_DIMS, View

cdef enum:
    SHORT = 1 << 14                   # elements under which giving up the GIL costs more than it yields
    PIECE = 1 << 16                   # elements of a piece

cdef struct ViewCall:                 # what is applied to arrays at any strides
    View view                         # x, y and start are the caller's, the axes those of run_view
    cdropout_dtype dtype
    const cdropout_mask* mask         # with
    bint shifts                       # whether it is alpha dropout, with
    double shift, constant            # added to kept elements, and in place of dropped ones
    const uint8_t* bits               # or packed bits, or
    const uint8_t* bools              # bytes, with
    double scale
    uint32_t flags                    # these are run_view's
    size_t lengths[MAX_DIMS]          # of a tile

cdef size_t sharers(size_t n) noexcept nogil
cdef int apply_span(
    cdropout_dtype dtype, const char* x, char* y, size_t n, const cdropout_mask* mask, uint64_t start,
    Share how, size_t most,
) except -1 nogil
cdef int apply_bits_span(
    cdropout_dtype dtype, const char* x, char* y, size_t n, const uint8_t* bits, double scale
) except -1 nogil
cdef int draw_bits_span(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) except -1 nogil
cdef int draw_bools_span(
    uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start, Share how, size_t most
) except -1 nogil
cdef int run_view(ViewCall* call, int ndim, const cdropout_axis* axes, Share how, size_t most) except -1 nogil

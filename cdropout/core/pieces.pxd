"""The kernels on arrays of any size, cut into pieces for threads and signals; -1 if a signal's handler raised."""
from libc.stdint cimport uint8_t, uint64_t

from cdropout cimport cdropout_axis, cdropout_dtype, cdropout_mask
from cdropout.core.threads cimport Share
from cdropout.core.view cimport View

cdef enum:
    SHORT = 1 << 14                   # elements under which giving up the GIL costs more than it yields
    PIECE = 1 << 16                   # elements of a piece

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
cdef int run_view(
    View* view, int ndim, const cdropout_axis* axes, cdropout_dtype dtype, const cdropout_mask* mask, const uint8_t* bits,
    const uint8_t* bools, double scale, Share how, size_t most,
) except -1 nogil

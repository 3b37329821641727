"""The kernels on arrays of any size, cut into pieces for threads and signals; -1 if a signal's handler raised."""
from libc.stdint cimport uint8_t, uint64_t

from cdropout cimport cdropout_dtype, cdropout_mask
from cdropout.core.strided cimport Box
from cdropout.core.threads cimport Share

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
cdef int run_box(
    const Box* box, const char* x, char* y, const uint8_t* keep, const cdropout_mask* mask, uint64_t start,
    Share how, size_t most,
) except -1 nogil

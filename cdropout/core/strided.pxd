"""Boxes of elements at any strides, for core/arrays.pyx."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport uint8_t, uint64_t

from cdropout cimport cdropout_dtype, cdropout_mask

cdef enum:
    MAX_DIMS = 64                     # NumPy's own limit

cdef struct Axis:
    size_t length
    ptrdiff_t x, y                    # strides in bytes
    ptrdiff_t keep                    # stride in elements of the mask, or in bytes of an array of bools

cdef struct Box:
    int ndim                          # at least 2 once arranged
    Axis axes[MAX_DIMS]
    cdropout_dtype dtype
    ptrdiff_t size                    # bytes an element
    double scale
    bint shifts                       # shift is added to kept elements; dropped ones become constant (not of half types)
    double shift
    double constant

cdef void arrange(Box* box) noexcept nogil
cdef bint is_far_from_mask(const Box* box) noexcept nogil
cdef bint overlaps_itself(const Box* box) noexcept nogil
cdef size_t elements(const Box* box) noexcept nogil
cdef int axis_to_cut(const Box* box) noexcept nogil
cdef void apply_box(const Box* box, const char* x, char* y, const uint8_t* keep) noexcept nogil
cdef void draw_box(const Box* box, const char* x, char* y, const cdropout_mask* mask, uint64_t start) noexcept nogil

"""Mask, and functions that create and validate masks, for the other modules of the core."""
cimport numpy as cnp
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef class Mask:
    cdef cdropout_mask id             # seed, call, threshold and scale
    cdef uint64_t start_              # position of the element with index 0, ..., 0 in the mask stream
    cdef readonly tuple shape
    cdef readonly double p
    cdef tuple strides_               # None for C order

    cdef set_positions(self, tuple shape, start, strides)
    cdef tuple fields(self)


cdef inline bint uses_call_number(double p, bint empty) noexcept:
    """Return whether a mask depends on random numbers. Only such masks use a call number."""
    return 0 < p < 1 and not empty


cdef double scale_of(double p) noexcept
cdef Mask new_mask(cdropout_mask id, tuple shape, double p, tuple strides)
cdef Mask unseeded_mask(shape, p, broadcast_dims, scale)
cpdef Mask with_scale(Mask mask, double scale)
cpdef check_mask(mask, tuple shape, tuple axes, p, default=*)
cpdef check_not_given(name, value)
cdef tuple as_axes(broadcast_dims)
cpdef tuple broadcast_strides(tuple shape, broadcast_dims)
cdef tuple axes_to_strides(tuple shape, tuple dims)
cdef check_shape(tuple shape, cnp.ndarray array)

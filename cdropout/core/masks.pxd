"""Mask, for core/calls.pyx."""
cimport numpy as cnp
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef class Mask:
    cdef cdropout_mask name
    cdef uint64_t first               # position of the element with index 0, ..., 0
    cdef readonly tuple shape
    cdef readonly double p
    cdef tuple steps                  # strides, or None for C order

    cdef become(self, tuple shape, start, strides)
    cdef tuple numbers(self)

cdef double scale_of(double p) noexcept
cdef Mask new_mask(cdropout_mask name, tuple shape, double p, tuple strides)
cdef tuple as_axes(broadcast_dims)
cpdef tuple shared_strides(tuple shape, broadcast_dims)
cdef tuple strides_along(tuple shape, tuple dims)
cdef check_shape(tuple shape, cnp.ndarray array)

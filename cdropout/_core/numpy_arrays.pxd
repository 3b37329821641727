"""Validation of NumPy arrays and operations on them, for the other modules of the core."""
cimport numpy as cnp
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef extern from "numpy/arrayobject.h":
    tuple PyArray_IntTupleFromIntp(int, cnp.npy_intp*)

cdef inline tuple shape_of(cnp.ndarray array):
    return PyArray_IntTupleFromIntp(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array))

cdef bint is_plain_array(object x)
cdef cnp.ndarray as_array(object x, name=*)
cdef bint partly_overlap(cnp.ndarray a, cnp.ndarray b)
cpdef cnp.ndarray destination(cnp.ndarray x, bint inplace, object out)
cdef apply_mask(
    cnp.ndarray x, cnp.ndarray y, const cdropout_mask* mask, uint64_t start, tuple strides, tuple shift=*,
)
cdef apply_bits(cnp.ndarray x, cnp.ndarray y, cnp.ndarray bits, double scale)
cdef apply_bools(cnp.ndarray x, cnp.ndarray y, cnp.ndarray keep, double scale)
cdef draw_bools(cnp.ndarray out, const cdropout_mask* mask, uint64_t start, tuple strides)
cdef draw_bits(cnp.ndarray out, size_t n, const cdropout_mask* mask, uint64_t start)

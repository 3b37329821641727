"""Arrays in, kernels called, arrays out: what core/masks.pyx calls."""
cimport numpy as np
from libc.stdint cimport uint8_t, uint64_t

from cdropout cimport cdropout_mask

cdef extern from "numpy/arrayobject.h":
    tuple PyArray_IntTupleFromIntp(int, np.npy_intp*)

cdef inline tuple shape_of(np.ndarray array):
    return PyArray_IntTupleFromIntp(np.PyArray_NDIM(array), np.PyArray_DIMS(array))

cdef np.ndarray as_array(object x)
cdef np.ndarray destination(np.ndarray x, bint inplace, object out)
cdef apply_mask(np.ndarray x, np.ndarray y, const cdropout_mask* mask, uint64_t start, tuple strides)
cdef apply_bits(np.ndarray x, np.ndarray y, np.ndarray bits, double scale)
cdef apply_bools(np.ndarray x, np.ndarray y, np.ndarray keep, double scale)
cdef draw_bools(np.ndarray out, const cdropout_mask* mask, uint64_t start, tuple strides)
cdef draw_bits(np.ndarray out, Py_ssize_t n, const cdropout_mask* mask, uint64_t start)

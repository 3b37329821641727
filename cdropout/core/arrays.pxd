"""Arrays in, kernels called, arrays out: what the compiled modules above call."""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t, uint64_t

from cdropout cimport cdropout_dtype, cdropout_mask
from cdropout.core.strided cimport Box

cdef enum:
    SHARED = 1 << 22                  # elements from which a second thread pays
    LONG = 1 << 24                    # elements after which a call looks for signals: 4 to 25 ms

cdef extern from "numpy/arrayobject.h":
    tuple PyArray_IntTupleFromIntp(int, cnp.npy_intp*)

cdef inline tuple shape_of(cnp.ndarray array):
    return PyArray_IntTupleFromIntp(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array))

cdef cdropout_dtype code_of(cnp.ndarray array) noexcept
cdef cnp.ndarray as_array(object x, name=*)
cdef bint partly_overlap(cnp.ndarray a, cnp.ndarray b)
cdef cnp.ndarray destination(cnp.ndarray x, bint inplace, object out)
cdef apply_contiguous(
    cdropout_dtype dtype, size_t size, const char* x, char* y, size_t n, const cdropout_mask* mask, uint64_t start, int most
)
cdef apply_mask(cnp.ndarray x, cnp.ndarray y, const cdropout_mask* mask, uint64_t start, tuple strides)
cdef int run_box(
    Box* box, const char* x, char* y, const uint8_t* keep, const cdropout_mask* mask, uint64_t start, int64_t* looked
) except -1 nogil
cdef apply_bits(cnp.ndarray x, cnp.ndarray y, cnp.ndarray bits, double scale)
cdef apply_bools(cnp.ndarray x, cnp.ndarray y, cnp.ndarray keep, double scale)
cdef draw_bools(cnp.ndarray out, const cdropout_mask* mask, uint64_t start, tuple strides)
cdef draw_bits(cnp.ndarray out, size_t n, const cdropout_mask* mask, uint64_t start)

# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Cython: apply a separate mask to each row of a float32 array; row i has call number i."""
from cdropout cimport CDROPOUT_FLOAT32, cdropout_import, cdropout_mask, cdropout_table
from libc.stdint cimport uint64_t

cdef const cdropout_table* kernels = cdropout_import()


def dropout_rows(const float[:, ::1] x, float[:, ::1] y, double p, uint64_t seed):
    """Write dropout of each row of x to y."""
    cdef cdropout_mask mask
    cdef Py_ssize_t row
    if x.shape[0] != y.shape[0] or x.shape[1] != y.shape[1]:
        raise ValueError("x and y have to be of one shape")
    if kernels.mask_init(&mask, seed, 0, p) < 0:
        raise ValueError("p has to be between 0 and 1")
    if x.shape[1] == 0:
        return
    with nogil:
        for row in range(x.shape[0]):
            mask.call = row
            kernels.apply(CDROPOUT_FLOAT32, 0, &x[row, 0], &y[row, 0], x.shape[1], &mask, 0)

"""Division of the operation bias_dropout_add into work chunks, for arrays and tensors."""
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_dtype, cdropout_mask
from cdropout._core.executor cimport Executor

cdef enum:
    MAX_SUMS = 32                     # maximum number of sums per column

cdef struct Matrix:                   # rows x columns elements without gaps; every row has the same bias
    size_t rows, columns
    size_t rows_per_tile              # set by choose_tiles; a tile has all or some of the columns of these rows
    size_t itemsize
    cdropout_dtype dtype
    const char* x                     # the input; gy in the backward pass
    const char* bias                  # `columns` elements, or NULL if there is no bias; NULL in the backward pass
    const char* residual              # NULL in the backward pass
    char* y                           # the output; gx in the backward pass
    double* sums                      # in the backward pass, `count_sums` x `columns` sums, initialized to 0; otherwise NULL
    const cdropout_mask* mask
    uint64_t start

cdef void choose_tiles(Matrix* matrix, bint backward) noexcept nogil
cdef size_t count_sums(const Matrix* matrix) noexcept nogil
cdef int run_matrix(const Matrix* matrix, const Executor* executor, size_t max_threads, bint checks_signals) except -1 nogil

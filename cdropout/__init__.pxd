"""The C interface for Cython: `cdropout_mask` and the table of kernels. The declarations must match include/cdropout.h."""
from libc.stddef cimport ptrdiff_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "cdropout.h" nogil:
    ctypedef struct cdropout_mask:
        uint64_t seed, call, threshold
        double scale

    ctypedef enum cdropout_dtype:
        CDROPOUT_FLOAT32
        CDROPOUT_FLOAT64
        CDROPOUT_FLOAT16
        CDROPOUT_BFLOAT16
        CDROPOUT_BOOL

    ctypedef enum cdropout_flags:
        CDROPOUT_PART_OF_LARGE

    ctypedef struct cdropout_axis:
        size_t length
        ptrdiff_t x, y
        int64_t mask

    const int CDROPOUT_TABLE_VERSION

    ctypedef struct cdropout_table:
        uint32_t version
        uint32_t size
        int (*mask_init)(cdropout_mask* mask, uint64_t seed, uint64_t call, double p) noexcept nogil
        int (*apply)(
            cdropout_dtype dtype, uint32_t flags, const void* x, void* y, size_t n, const cdropout_mask* mask, uint64_t start
        ) noexcept nogil
        int (*apply_bits)(
            cdropout_dtype dtype, uint32_t flags, const void* x, void* y, size_t n, const uint8_t* bits, uint64_t bit_start,
            double scale
        ) noexcept nogil
        int (*bits)(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil
        int (*bools)(uint8_t* out, size_t n, const cdropout_mask* mask, uint64_t start) noexcept nogil
        int (*bias_dropout_add)(
            cdropout_dtype dtype, const void* x, const void* bias, const void* residual, void* y, size_t rows,
            size_t columns, const cdropout_mask* mask, uint64_t start
        ) noexcept nogil
        int (*bias_dropout_add_backward)(
            cdropout_dtype dtype, const void* gy, void* gx, double* gbias, size_t rows, size_t columns,
            const cdropout_mask* mask, uint64_t start
        ) noexcept nogil
        int (*apply_strided)(
            cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
            const cdropout_mask* mask, uint64_t start
        ) noexcept nogil
        int (*apply_bits_strided)(
            cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
            const uint8_t* bits, uint64_t bit_start, double scale
        ) noexcept nogil
        int (*apply_bools_strided)(
            cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
            const uint8_t* bools, double scale
        ) noexcept nogil
        int (*apply_alpha_strided)(
            cdropout_dtype dtype, uint32_t flags, const void* x, void* y, int ndim, const cdropout_axis* axes,
            const cdropout_mask* mask, uint64_t start, double shift, double constant
        ) noexcept nogil

cdef extern from "cdropout.h":
    const cdropout_table* cdropout_import() except NULL

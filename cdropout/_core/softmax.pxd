"""The kernels of softmax with dropout, for attention. They are not part of the C interface of `cdropout.h`."""
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from cdropout cimport cdropout_dtype

cdef extern from "softmax.h" nogil:
    ctypedef struct Softmax "cd_softmax":
        size_t begin, end, columns, visible
        const uint8_t* bits
        size_t bits_per_row
        double scale

    void forward_f32 "cd_softmax_forward_f32"(const Softmax*, float* weights, float* sums)
    void forward_f64 "cd_softmax_forward_f64"(const Softmax*, double* weights, double* sums)
    void recompute_f32 "cd_softmax_recompute_f32"(const Softmax*, float* weights, const float* sums, float* dropped)
    void recompute_f64 "cd_softmax_recompute_f64"(const Softmax*, double* weights, const double* sums, double* dropped)
    void backward_f32 "cd_softmax_backward_f32"(const Softmax*, const float* weights, float* gradient)
    void backward_f64 "cd_softmax_backward_f64"(const Softmax*, const double* weights, double* gradient)

# The functions of softmax_rows.h. The matrices contain numbers of the given type, float32 or
# float64, in C order. `dropped` may be NULL; all other pointers must be valid.
cdef struct SoftmaxTable:
    void (*forward)(cdropout_dtype dtype, const Softmax* matrix, void* weights, void* sums) noexcept nogil
    void (*recompute)(
        cdropout_dtype dtype, const Softmax* matrix, void* weights, const void* sums, void* dropped
    ) noexcept nogil
    void (*backward)(cdropout_dtype dtype, const Softmax* matrix, const void* weights, void* gradient) noexcept nogil

"""Softmax with dropout of a tile of attention weights, and its gradient."""
cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t

import torch

from cdropout cimport CDROPOUT_BOOL, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64, cdropout_axis, cdropout_dtype, cdropout_mask
from cdropout._core.bits cimport pack_bools
from cdropout._core.dispatch cimport kernels, softmax_kernels
from cdropout._core.engine cimport stride_along
from cdropout._core.softmax cimport Softmax
from cdropout.torch._draw cimport LazyMask

cdef enum:
    BOOLS = 1 << 12                   # elements whose bools are packed at a time
    EXTRA_BYTES = 8                   # bytes after the last bit that the kernels may read
    MAX_GAP = 1 << 13                 # maximum number of unneeded bits between two rows that are drawn together


cdef inline char* address_of(tensor) except? NULL:
    return <char*><uintptr_t>tensor.data_ptr()


cdef void draw_row(uint8_t* bits, size_t n, const cdropout_mask* mask, uint64_t start, int64_t stride) noexcept nogil:
    """Draw the keep bits of a row of any stride. The number of bytes that are written is rounded up to a multiple of 8."""
    cdef uint8_t bools[BOOLS]
    cdef cdropout_axis axis
    cdef size_t part
    while n:
        part = min(n, <size_t>BOOLS)
        axis = cdropout_axis(part, 0, 1, stride)
        kernels.apply_strided(CDROPOUT_BOOL, 0, NULL, bools, 1, &axis, mask, start)
        pack_bools(bits, bools, (part + 7) // 8 * 8)
        bits += part // 8
        start += <uint64_t>stride * part
        n -= part


@cython.final
cdef class TileSoftmax:
    """Softmax with dropout of tiles of the type `dtype`, float32 or float64. The keep bits of one tile are stored.

    A tile is a contiguous tensor of the shape (heads, rows, columns). In its row r, the columns 0, ..., visible - 1 + r are
    visible. The other weights are 0.
    """
    cdef cdropout_dtype dtype
    cdef size_t itemsize
    cdef object memory                # a tensor of bytes
    cdef size_t heads, bytes_per_head
    cdef Softmax matrix               # the weights of one head

    def __cinit__(self, dtype):
        self.dtype = CDROPOUT_FLOAT64 if dtype is torch.float64 else CDROPOUT_FLOAT32
        self.itemsize = dtype.itemsize
        self.memory = torch.empty(0, dtype=torch.uint8, device="cpu")

    def draw(self, LazyMask mask, uint64_t start, tuple strides, tuple shape, size_t visible):
        """Draw the keep bits of a tile of this shape. `start` and `strides` determine the positions of its bits."""
        cdef Softmax* matrix = &self.matrix
        cdef int64_t head_stride = stride_along(0, strides, 0)
        cdef int64_t row_stride = stride_along(1, strides, 0)
        cdef int64_t stride = stride_along(2, strides, 0)
        cdef size_t _head, row, bytes_
        cdef uint8_t* bits
        self.heads, matrix.rows, matrix.columns = shape
        matrix.visible, matrix.scale = visible, mask.id.scale
        cdef bint together = stride == 1 and 0 <= row_stride - <int64_t>matrix.columns <= MAX_GAP
        matrix.bits_per_row = <size_t>row_stride if together else (matrix.columns + 7) // 8 * 8
        self.bytes_per_head = (matrix.rows * matrix.bits_per_row + 7) // 8
        bytes_ = self.heads * self.bytes_per_head + EXTRA_BYTES
        if bytes_ > <size_t>self.memory.numel():
            self.memory = self.memory.new_empty(bytes_)
        bits = <uint8_t*>address_of(self.memory)
        matrix.bits = bits
        with nogil:
            for _head in range(self.heads):
                if together:
                    kernels.bits(bits, matrix.rows * matrix.bits_per_row, &mask.id, start)
                else:
                    for row in range(matrix.rows):
                        draw_row(
                            bits + matrix.bits_per_row // 8 * row, matrix.columns, &mask.id,
                            start + <uint64_t>row_stride * row, stride,
                        )
                bits += self.bytes_per_head
                start += <uint64_t>head_stride

    cdef Softmax matrix_of(self, size_t head) noexcept nogil:
        cdef Softmax matrix = self.matrix
        matrix.bits += self.bytes_per_head * head
        return matrix

    def forward(self, weights, sums):
        """Set `weights`, which contains scores, to dropout(softmax(scores)). The weights of a row of -inf are 0.

        Write two numbers per row to `sums`. The second one is the largest score, which was subtracted from the scores. The
        first one is the logarithm of the sum of the exponentials of these differences. For a row of -inf, both are 0.
        """
        cdef char* weight = address_of(weights)
        cdef char* sum_ = address_of(sums)
        cdef size_t step = <size_t>sums.stride(0) * self.itemsize
        cdef size_t size = self.matrix.rows * self.matrix.columns * self.itemsize
        cdef Softmax matrix
        cdef size_t head
        with nogil:
            for head in range(self.heads):
                matrix = self.matrix_of(head)
                softmax_kernels.forward(self.dtype, &matrix, weight + size * head, sum_ + step * head)

    def recompute(self, weights, sums, dropped):
        """Set `weights`, which contains scores, to softmax(scores), and `dropped`, unless it is None, to its dropout."""
        cdef char* weight = address_of(weights)
        cdef char* sum_ = address_of(sums)
        cdef char* target = NULL if dropped is None else address_of(dropped)
        cdef size_t step = <size_t>sums.stride(0) * self.itemsize
        cdef size_t size = self.matrix.rows * self.matrix.columns * self.itemsize
        cdef Softmax matrix
        cdef size_t head
        with nogil:
            for head in range(self.heads):
                matrix = self.matrix_of(head)
                softmax_kernels.recompute(
                    self.dtype, &matrix, weight + size * head, sum_ + step * head,
                    NULL if target == NULL else target + size * head,
                )

    def backward(self, weights, gradient):
        """Set `gradient`, which is with respect to dropout(weights), to the gradient with respect to the scores."""
        cdef char* weight = address_of(weights)
        cdef char* target = address_of(gradient)
        cdef size_t size = self.matrix.rows * self.matrix.columns * self.itemsize
        cdef Softmax matrix
        cdef size_t head
        with nogil:
            for head in range(self.heads):
                matrix = self.matrix_of(head)
                softmax_kernels.backward(self.dtype, &matrix, weight + size * head, target + size * head)

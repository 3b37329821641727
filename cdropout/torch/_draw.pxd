"""Declarations of torch/_draw.pyx for torch/_tensors.pyx and torch/_dropout_add.pyx."""
cimport cython
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef raise_unexpected(y, name)


@cython.final
cdef class LazyMask:
    cdef cdropout_mask id
    cdef uint64_t start               # position of the first element of a given mask; 0 if the mask is new
    cdef tuple strides                # strides of a given mask; None stands for C order, with 0 along broadcast_axes
    cdef readonly double p
    cdef double shift, constant
    cdef bint shifts
    cdef readonly bint inplace
    cdef readonly bint drawn
    cdef tuple broadcast_axes
    cdef str form
    cdef readonly object generator
    cdef object before                # state of a PyTorch generator before the draw, if a signal may interrupt the call
    cdef public object keep           # None, or a tensor of bools to which `apply_mask` writes the mask

    cdef set_form(self, str form)
    cdef draw(self, bint interruptible)
    cdef undo_draw(self)
    cdef release(self)
    cdef LazyMask copy(self)
    cpdef LazyMask derivative(self)

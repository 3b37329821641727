"""Declarations of torch/_draw.pyx for torch/_tensors.pyx."""
cimport cython
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef raise_unexpected(y, name)


@cython.final
cdef class LazyMask:
    cdef cdropout_mask id
    cdef uint64_t start               # position of the first element in a given mask; 0 for a new mask
    cdef tuple strides                # strides of a given mask; None means C order, except for broadcast axes
    cdef readonly double p
    cdef double shift, constant
    cdef bint shifts
    cdef readonly bint inplace
    cdef readonly bint drawn
    cdef tuple broadcast_axes
    cdef str form
    cdef readonly object generator
    cdef object before                # state of PyTorch's generator before the draw, if a signal may interrupt the call
    cdef public object keep           # a tensor of bools, or None; `apply_mask` fills it and then releases it

    cdef set_form(self, str form)
    cdef draw(self, bint interruptible)
    cdef undo_draw(self)
    cdef release(self)
    cdef LazyMask copy(self)
    cpdef LazyMask derivative(self)

"""The mask of one call on tensors, for torch/_tensors.pyx."""
cimport cython
from libc.stdint cimport uint64_t

from cdropout cimport cdropout_mask

cdef raise_unexpected(y, name)


@cython.final
cdef class Draw:
    cdef cdropout_mask id
    cdef uint64_t start               # of a given mask
    cdef tuple strides                # of a given mask, or None for those of C order with shared axes
    cdef readonly double p
    cdef double shift, constant
    cdef bint shifts
    cdef readonly bint inplace
    cdef readonly bint drawn
    cdef tuple axes
    cdef str form
    cdef readonly object generator
    cdef object before                # the state of PyTorch's generator before the draw, if the call may be interrupted
    cdef public object keep           # a tensor of bools that `compute` fills too, and then forgets

    cdef set_form(self, str form)
    cdef draw(self, bint interruptible)
    cdef take_back(self)
    cdef forget(self)
    cdef Draw copy(self)
    cpdef Draw derivative(self)

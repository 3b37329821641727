"""The mask of one call on tensors, for core/tensors.pyx."""
cimport cython

from cdropout cimport cdropout_mask

cdef raise_unexpected(y, name)


@cython.final
cdef class Draw:
    cdef cdropout_mask mask
    cdef double p
    cdef double shift, constant
    cdef bint shifts, inplace, drawn
    cdef tuple shared
    cdef str form
    cdef object generator
    cdef object before                # the state of PyTorch's generator before the draw, if the call may be interrupted
    cdef public object keep           # a tensor of bools that `compute` fills too, and then forgets

    cdef draw(self, bint interruptible)
    cdef take_back(self)
    cdef forget(self)
    cdef Draw linear(self)

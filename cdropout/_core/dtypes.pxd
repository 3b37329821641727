"""The table of element types, by which every framework's arrays are recognized."""
cimport numpy as cnp
from libc.stdint cimport uint8_t

from cdropout cimport cdropout_dtype

cdef enum Framework:                  # each has its own number of a type
    NUMPY
    XLA
    TENSORFLOW
    FRAMEWORKS

cdef struct ElementType:
    cdropout_dtype code               # also the index in the table
    const char* name                  # of NumPy, ml_dtypes, PyTorch and JAX
    size_t itemsize                   # bytes per element
    uint8_t dlpack                    # DLPack's code; its bits are 8 * itemsize
    int numbers[FRAMEWORKS]           # UNKNOWN is NumPy's for a type of ml_dtypes until an array of it comes

cdef ElementType* types

cdef const ElementType* by_number(Framework framework, int number) noexcept nogil
cdef const ElementType* by_array(cnp.ndarray array) except? NULL
cdef const ElementType* by_dlpack(uint8_t kind, uint8_t bits) noexcept nogil

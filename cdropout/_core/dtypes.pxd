"""The table of element types: their codes in cdropout, NumPy, DLPack, XLA and TensorFlow."""
cimport numpy as cnp
from libc.stdint cimport uint8_t

from cdropout cimport cdropout_dtype

cdef enum Framework:                  # each framework numbers the element types differently
    NUMPY
    XLA
    TENSORFLOW
    FRAMEWORKS

cdef struct ElementType:
    cdropout_dtype code               # also the index of the row in the table
    const char* name                  # the name in NumPy, ml_dtypes, PyTorch and JAX
    size_t itemsize                   # bytes per element
    uint8_t dlpack                    # the type code of DLPack; the number of bits is 8 * itemsize
    int numbers[FRAMEWORKS]           # NumPy's number for bfloat16 is UNKNOWN until by_array receives a bfloat16 array

cdef ElementType* types

cdef const ElementType* by_number(Framework framework, int number) noexcept nogil
cdef const ElementType* by_array(cnp.ndarray array) except? NULL
cdef const ElementType* by_dlpack(uint8_t kind, uint8_t bits) noexcept nogil

"""The table of element types, which identifies the dtypes of all frameworks."""
cimport numpy as cnp
from libc.stdint cimport uint8_t

from cdropout cimport cdropout_dtype

cdef enum Framework:                  # each numbers the element types differently
    NUMPY
    XLA
    TENSORFLOW
    FRAMEWORKS

cdef struct ElementType:
    cdropout_dtype code               # also the row of the table
    const char* name                  # the name in NumPy, ml_dtypes, PyTorch and JAX
    size_t itemsize                   # bytes per element
    uint8_t dlpack                    # type code of DLPack; the number of bits is 8 * itemsize
    int numbers[FRAMEWORKS]           # UNKNOWN for a type of ml_dtypes in NumPy until the first array of it

cdef ElementType* types

cdef const ElementType* by_number(Framework framework, int number) noexcept nogil
cdef const ElementType* by_array(cnp.ndarray array) except? NULL
cdef const ElementType* by_dlpack(uint8_t kind, uint8_t bits) noexcept nogil

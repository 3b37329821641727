"""The table of element types, by which every framework's arrays are recognized."""
cimport numpy as cnp
from libc.stdint cimport uint8_t

from cdropout cimport cdropout_dtype

cdef struct ElementType:
    cdropout_dtype code               # also the index in the table
    const char* name                  # of NumPy, ml_dtypes, PyTorch and JAX
    size_t itemsize                   # bytes per element
    int numpy                         # NumPy's number; NONE for a type of ml_dtypes until an array of it comes
    uint8_t dlpack                    # DLPack's code; its bits are 8 * itemsize
    int xla                           # XLA's number
    int tensorflow                    # TensorFlow's number

cdef ElementType* types

cdef const ElementType* by_array(cnp.ndarray array) except? NULL
cdef const ElementType* by_dlpack(uint8_t kind, uint8_t bits) noexcept nogil
cdef const ElementType* by_xla(int number) noexcept nogil
cdef const ElementType* by_tensorflow(int number) noexcept nogil

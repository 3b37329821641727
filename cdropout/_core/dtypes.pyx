"""The table of element types: cdropout's codes, and what NumPy, DLPack, XLA and TensorFlow call the same types."""
cimport numpy as cnp
from libc.stdint cimport uint8_t

from cdropout cimport (
    CDROPOUT_BFLOAT16, CDROPOUT_BOOL, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64,
)

cnp.import_array()

cdef enum:
    NONE = -1000                      # no framework's number; -1 is that of many of NumPy's types
    COUNT = 5                         # rows of the table
    IEEE_FLOAT = 2                    # DLPack's codes
    BRAIN_FLOAT = 4
    BOOL = 6

cdef ElementType table[COUNT]
types = table
types[<int>CDROPOUT_FLOAT32] = ElementType(CDROPOUT_FLOAT32, "float32", 4, cnp.NPY_FLOAT, IEEE_FLOAT, 11, 1)
types[<int>CDROPOUT_FLOAT64] = ElementType(CDROPOUT_FLOAT64, "float64", 8, cnp.NPY_DOUBLE, IEEE_FLOAT, 12, 2)
types[<int>CDROPOUT_FLOAT16] = ElementType(CDROPOUT_FLOAT16, "float16", 2, cnp.NPY_FLOAT16, IEEE_FLOAT, 10, 19)
types[<int>CDROPOUT_BFLOAT16] = ElementType(CDROPOUT_BFLOAT16, "bfloat16", 2, NONE, BRAIN_FLOAT, 16, 14)
types[<int>CDROPOUT_BOOL] = ElementType(CDROPOUT_BOOL, "bool", 1, NONE, BOOL, NONE, NONE)    # of masks, never of x


cdef list rows = [(types[code].itemsize, code) for code in range(COUNT) if code != <int>CDROPOUT_BOOL]
FLOATS = tuple([types[<int>code].name.decode() for _itemsize, code in sorted(rows)])    # the types that x may have
LISTED = f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}"    # for error messages


cdef const ElementType* by_array(cnp.ndarray array) except? NULL:
    """Return the type of an array's elements, or NULL if dropout does not take it."""
    cdef int number = cnp.PyArray_TYPE(array)
    cdef int i
    for i in range(COUNT):
        if types[i].numpy == number:
            return &types[i]
    if cnp.PyTypeNum_ISUSERDEF(number):
        name = array.dtype.name
        for i in range(COUNT):
            if types[i].numpy == NONE and i != <int>CDROPOUT_BOOL and types[i].name.decode() == name:
                types[i].numpy = number
                return &types[i]
    return NULL


cdef const ElementType* by_dlpack(uint8_t kind, uint8_t bits) noexcept nogil:
    """Return the type of a DLPack tensor's elements, bool included, or NULL."""
    cdef int i
    for i in range(COUNT):
        if types[i].dlpack == kind and 8 * types[i].itemsize == bits:
            return &types[i]
    return NULL


cdef const ElementType* by_xla(int number) noexcept nogil:
    """Return the type of an XLA buffer's elements, or NULL if dropout does not take it."""
    cdef int i
    for i in range(COUNT):
        if types[i].xla == number:
            return &types[i]
    return NULL


cdef const ElementType* by_tensorflow(int number) noexcept nogil:
    """Return the type of a TensorFlow tensor's elements, or NULL if dropout does not take it."""
    cdef int i
    for i in range(COUNT):
        if types[i].tensorflow == number:
            return &types[i]
    return NULL


def element_type(name):
    """Return the NumPy type of this name, which may be one of ml_dtypes."""
    import numpy as np
    if hasattr(np, name):
        return np.dtype(name)
    import ml_dtypes
    return np.dtype(getattr(ml_dtypes, name))

"""The table of element types: their codes in cdropout, NumPy, DLPack, XLA and TensorFlow."""
cimport numpy as cnp
from libc.stdint cimport uint8_t

from cdropout cimport (
    CDROPOUT_BFLOAT16, CDROPOUT_BOOL, CDROPOUT_FLOAT16, CDROPOUT_FLOAT32, CDROPOUT_FLOAT64,
)

cnp.import_array()

cdef enum:
    UNKNOWN = -1000                   # a number that no framework uses; NumPy uses -1 for several types
    ROWS = 5                          # number of rows of the table
    IEEE_FLOAT = 2                    # this and the next two numbers are type codes of DLPack
    BRAIN_FLOAT = 4
    BOOL = 6

cdef ElementType table[ROWS]
types = table
types[<int>CDROPOUT_FLOAT32] = ElementType(CDROPOUT_FLOAT32, "float32", 4, IEEE_FLOAT, [cnp.NPY_FLOAT, 11, 1])
types[<int>CDROPOUT_FLOAT64] = ElementType(CDROPOUT_FLOAT64, "float64", 8, IEEE_FLOAT, [cnp.NPY_DOUBLE, 12, 2])
types[<int>CDROPOUT_FLOAT16] = ElementType(CDROPOUT_FLOAT16, "float16", 2, IEEE_FLOAT, [cnp.NPY_FLOAT16, 10, 19])
types[<int>CDROPOUT_BFLOAT16] = ElementType(CDROPOUT_BFLOAT16, "bfloat16", 2, BRAIN_FLOAT, [UNKNOWN, 16, 14])
types[<int>CDROPOUT_BOOL] = ElementType(CDROPOUT_BOOL, "bool", 1, BOOL, [UNKNOWN, UNKNOWN, UNKNOWN])    # masks only

cdef list rows = [(types[code].itemsize, code) for code in range(ROWS) if code != <int>CDROPOUT_BOOL]
FLOATS = tuple([types[<int>code].name.decode() for _itemsize, code in sorted(rows)])    # the supported types of x
FLOATS_TEXT = f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}"    # for error messages


cdef const ElementType* by_number(Framework framework, int number) noexcept nogil:
    """Return the element type that has this number in the framework, or NULL if there is none."""
    cdef int i
    for i in range(ROWS):
        if types[i].numbers[<int>framework] == number:
            return &types[i]
    return NULL


cdef const ElementType* by_array(cnp.ndarray array) except? NULL:
    """Return the element type of an array, or NULL if this type is not supported."""
    cdef int number = cnp.PyArray_TYPE(array)
    cdef const ElementType* known = by_number(NUMPY, number)
    cdef int i
    if known == NULL and cnp.PyTypeNum_ISUSERDEF(number):
        name = array.dtype.name
        for i in range(ROWS):
            if types[i].numbers[<int>NUMPY] == UNKNOWN and i != <int>CDROPOUT_BOOL and types[i].name.decode() == name:
                types[i].numbers[<int>NUMPY] = number
                return &types[i]
    return known


cdef const ElementType* by_dlpack(uint8_t kind, uint8_t bits) noexcept nogil:
    """Return the element type with this type code and number of bits in DLPack, or NULL if there is none. It may be bool."""
    cdef int i
    for i in range(ROWS):
        if types[i].dlpack == kind and 8 * types[i].itemsize == bits:
            return &types[i]
    return NULL


def element_type(name):
    """Return the dtype with this name, from NumPy or ml_dtypes."""
    import numpy as np
    if hasattr(np, name):
        return np.dtype(name)
    import ml_dtypes
    return np.dtype(getattr(ml_dtypes, name))

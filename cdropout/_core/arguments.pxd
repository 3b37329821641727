"""Validation of arguments, for the other modules of the core."""
from libc.stdint cimport uint64_t

cdef double as_number(object value, requirement) except? -1
cdef double as_probability(object p) except -1
cpdef object as_index(object value, name)
cdef bint as_numpy_flag(object value, name) except -1


cdef inline bint as_flag(object value, name) except -1:
    """Return value as a bint. Raise a TypeError that contains `name` unless value is a bool or a numpy.bool_."""
    if value is True:
        return True
    if value is False:
        return False
    return as_numpy_flag(value, name)


cdef uint64_t as_seed(object seed) except? 0
cdef uint64_t as_count(object value, name) except? 0

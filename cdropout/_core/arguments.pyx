"""Validation of arguments: p, flags, seeds, counts and indices. Each error message says which argument is wrong."""
import operator

from cpython.float cimport PyFloat_CheckExact
from libc.stdint cimport uint64_t

import numpy as np


cdef double as_number(object value, requirement) except? -1:
    """Return value as a double. Raise a TypeError that begins with `requirement` unless it is a real number and no bool."""
    if PyFloat_CheckExact(value):
        return value
    numeric = getattr(getattr(value, "dtype", None), "kind", "f") not in "bcmMSUO"
    scalar = getattr(value, "ndim", 0) == 0
    if isinstance(value, bool) or not (hasattr(value, "__float__") and numeric and scalar):
        raise TypeError(f"{requirement}, but got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:             # value is too large for a float; no caller accepts infinity
        return float("inf")


cdef double as_probability(object p) except -1:
    """Return p as a double. Raise TypeError or ValueError unless p is a number between 0 and 1."""
    cdef double value = as_number(p, "p has to be a number between 0 and 1")
    if not 0 <= value <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return value


def check_probability(p):
    """Return p as a float. Raise TypeError or ValueError unless p is a number between 0 and 1."""
    return as_probability(p)


cdef bint as_numpy_flag(object value, name) except -1:
    """Return the value of a numpy.bool_, or raise TypeError. `as_flag` calls this function if value is not a bool."""
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name} has to be a bool, but got {type(value).__name__}")


def check_flag(value, name):
    """Raise a TypeError that contains `name` unless value is a bool or a numpy.bool_."""
    as_flag(value, name)


cpdef object as_index(object value, name):
    """Return value as a Python int. Raise a TypeError that contains `name` if value is not an integer, or is a bool."""
    if not isinstance(value, (bool, np.bool_)):    # in old versions of NumPy, numpy.bool_ has __index__
        try:
            return operator.index(value)
        except TypeError:
            pass                      # arrays have __index__, but only 0-dimensional integer arrays support it
    raise TypeError(f"{name} has to be an int, but got {type(value).__name__}")


cdef uint64_t as_seed(object seed) except? 0:
    """Return a seed as an unsigned 64-bit number; a negative seed is replaced by its two's complement."""
    seed = as_index(seed, "seed")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed has to be in [-2**63, 2**64), but got {seed}")
    return seed & 0xFFFFFFFFFFFFFFFF


cdef uint64_t as_count(object value, name) except? 0:
    """Return value as an unsigned number. Raise TypeError or ValueError unless value is an int in [0, 2**64)."""
    value = as_index(value, name)
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{name} has to be in [0, 2**64), but got {value}")
    return value

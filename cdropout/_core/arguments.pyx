"""Checks of arguments: p, flags, seeds, counts and indices become C values, or an error names the argument."""
import operator

from cpython.float cimport PyFloat_CheckExact
from libc.stdint cimport uint64_t

import numpy as np


cdef double as_number(object value, requirement) except? -1:
    """Return a real number as a double; TypeError, which begins with the requirement, for bools, arrays and all else."""
    if PyFloat_CheckExact(value):
        return value
    numeric = getattr(getattr(value, "dtype", None), "kind", "f") not in "bcmMSUO"
    scalar = getattr(value, "ndim", 0) == 0
    if isinstance(value, bool) or not (hasattr(value, "__float__") and numeric and scalar):
        raise TypeError(f"{requirement}, but got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:             # an int beyond the floats is beyond the limits of all arguments
        return float("inf")


cdef double as_probability(object p) except -1:
    cdef double value = as_number(p, "p has to be a number between 0 and 1")
    if not 0 <= value <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return value


def check_probability(p):
    """Return p as a float; ValueError or TypeError if it is no probability."""
    return as_probability(p)


cdef bint as_numpy_flag(object value, name) except -1:
    """Do the part of `as_flag` that is not for bool itself."""
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name} has to be a bool, but got {type(value).__name__}")


def check_flag(value, name):
    """Raise a TypeError, with the argument's name, if value is neither a bool nor a numpy.bool_."""
    as_flag(value, name)


cdef object as_index(object value, name):
    """value as a Python int; TypeError for a float, a bool, a str."""
    if not isinstance(value, (bool, np.bool_)):    # NumPy 1's has an __index__
        try:
            return operator.index(value)
        except TypeError:
            pass                      # arrays have __index__, but not all can
    raise TypeError(f"{name} has to be an int, but got {type(value).__name__}")


cdef uint64_t as_seed(object seed) except? 0:
    seed = as_index(seed, "seed")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"seed has to be in [-2**63, 2**64), but got {seed}")
    return seed & 0xFFFFFFFFFFFFFFFF


cdef uint64_t as_count(object value, name) except? 0:
    value = as_index(value, name)
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{name} has to be in [0, 2**64), but got {value}")
    return value

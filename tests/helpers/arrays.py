"""Data types, arrays and an exporter that tests use as input, and assertions on arrays."""

import math

import ml_dtypes
import numpy as np
import pytest

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
DTYPE_NAMES = ["float16", "bfloat16", "float32", "float64"]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_NAMES)
every_half = pytest.mark.parametrize("dtype", DTYPES[:2], ids=DTYPE_NAMES[:2])


def normal(shape, dtype=np.float32, seed=1):
    """Return an array of normal random numbers."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def with_special_values(shape, dtype=np.float32, seed=1):
    """Return normal random numbers, a fifth of which are replaced by special values.

    The special values are NaN, infinities, zeros and subnormal numbers.
    """
    rng = np.random.default_rng(seed)
    subnormal = np.array([1, 3], f"u{np.dtype(dtype).itemsize}").view(dtype)
    special = [math.nan, math.inf, -math.inf, 0.0, -0.0, *subnormal, -subnormal[1]]
    x = normal(shape, dtype, seed)
    chosen = np.array(special, dtype)[rng.integers(0, len(special), shape)]
    return np.where(rng.random(shape) < 0.2, chosen, x)


def pack(bools):
    """Return the bools as packed bits, in C order."""
    return np.packbits(bools, bitorder="little")


def to_bytes(array, equal_nan=False):
    """Return the bytes of the elements in C order; `equal_nan` makes all NaN identical."""
    elements = np.array(array, order="C").reshape(-1)
    if equal_nan:
        with np.errstate(invalid="ignore"):  # comparing signalling NaNs can give a warning
            elements[elements != elements] = np.nan
    return elements.tobytes()


def assert_same_bits(actual, expected, equal_nan=False):
    """Assert that two arrays have the same dtype, shape and bits.

    Objects of other types are converted with `np.asarray`. With `equal_nan`, all NaN count as
    equal.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    if to_bytes(actual, equal_nan) != to_bytes(expected, equal_nan):
        np.testing.assert_array_equal(actual, expected)  # shows the differences
        raise AssertionError("the arrays differ in the bits of zeros or NaN")


class OnlyDLPack:
    """An exporter that supports DLPack but not the buffer protocol, and counts its exports."""

    def __init__(self, source):
        self.source = source
        self.exports = 0

    def __dlpack__(self, **options):
        self.exports += 1
        return self.source.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.source.__dlpack_device__()

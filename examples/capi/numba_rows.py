"""Numba: apply a separate mask to each row of a float32 array; row i has call number i."""

import ctypes
from ctypes import c_double, c_int, c_size_t, c_uint32, c_uint64, c_void_p

import numba
import numpy as np

import cdropout

FLOAT32 = 0  # cdropout_dtype
MASK = np.dtype([("seed", "u8"), ("call", "u8"), ("threshold", "u8"), ("scale", "f8")])

# The table begins with two 32-bit numbers and the addresses of mask_init and apply.
addresses = (c_size_t * 2).from_address(cdropout.get_table() + 8)
mask_init = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64, c_double)(addresses[0])
apply = ctypes.CFUNCTYPE(c_int, c_int, c_uint32, c_void_p, c_void_p, c_size_t, c_void_p, c_uint64)(
    addresses[1]
)


@numba.njit(nogil=True)
def dropout_rows(x, y, p, seed):
    """Write dropout of each row of x to y."""
    mask = np.zeros(1, MASK)
    if mask_init(mask.ctypes, seed, 0, p) < 0:
        raise ValueError("p has to be between 0 and 1")
    for row in range(x.shape[0]):
        mask[0].call = row
        apply(FLOAT32, 0, x[row].ctypes, y[row].ctypes, x.shape[1], mask.ctypes, 0)


if __name__ == "__main__":
    x = np.ones((3, 1000), np.float32)
    y = np.empty_like(x)
    dropout_rows(x, y, 0.1, 42)
    expected = [cdropout.Mask(1000, 0.1, seed=42, call=row).apply(x[row]) for row in range(3)]
    print("same as in Python:", np.array_equal(y, expected))

"""ctypes: apply a separate mask to each row of a float32 array; row i has call number i."""

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_double, c_int, c_size_t, c_uint32, c_uint64, c_void_p

import numpy as np

import cdropout


class Mask(ctypes.Structure):
    """The struct cdropout_mask."""

    _fields_ = [
        ("seed", c_uint64),
        ("call", c_uint64),
        ("threshold", c_uint64),
        ("scale", c_double),
    ]


class Table(ctypes.Structure):
    """The first fields of the struct cdropout_table, up to the last function that is used."""

    _fields_ = [
        ("version", c_uint32),
        ("size", c_uint32),
        ("mask_init", CFUNCTYPE(c_int, POINTER(Mask), c_uint64, c_uint64, c_double)),
        (
            "apply",
            CFUNCTYPE(
                c_int, c_int, c_uint32, c_void_p, c_void_p, c_size_t, POINTER(Mask), c_uint64
            ),
        ),
    ]


FLOAT32 = 0  # cdropout_dtype
kernels = Table.from_address(cdropout.get_table())


def dropout_rows(x, y, p, seed):
    """Write dropout of each row of x to y. The kernel runs without the GIL."""
    mask = Mask()
    for row in range(len(x)):
        if kernels.mask_init(mask, seed, row, p):
            raise ValueError("p has to be between 0 and 1")
        kernels.apply(FLOAT32, 0, x[row].ctypes.data, y[row].ctypes.data, x.shape[1], mask, 0)


if __name__ == "__main__":
    x = np.ones((3, 1000), np.float32)
    y = np.empty_like(x)
    dropout_rows(x, y, 0.1, seed=42)
    expected = [cdropout.Mask(1000, 0.1, seed=42, call=row).apply(x[row]) for row in range(3)]
    print("same as in Python:", np.array_equal(y, expected))

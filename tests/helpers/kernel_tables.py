"""The kernel table of each instruction set as ctypes structures, and buffers for tests of kernels.

The structures mirror cdropout.h. Buffers are passed as addresses. There is one table for each
instruction set for which cdropout was built and that this CPU can run.
"""

import ctypes
import importlib
from ctypes import (
    POINTER,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from functools import cache

import ml_dtypes
import numpy as np

from cdropout._core import dispatch

VERSION = 1
DTYPES = {np.float32: 0, np.float64: 1, np.float16: 2, ml_dtypes.bfloat16: 3}  # cdropout_dtype
BOOL = 4  # a cdropout_dtype that only strided kernels accept
PART_OF_LARGE = 1  # a flag of cdropout_flags


class Mask(ctypes.Structure):
    """The struct cdropout_mask."""

    _fields_ = [
        ("seed", c_uint64),
        ("call", c_uint64),
        ("threshold", c_uint64),
        ("scale", c_double),
    ]


class Axis(ctypes.Structure):
    """The struct cdropout_axis."""

    _fields_ = [("length", c_size_t), ("x", c_ssize_t), ("y", c_ssize_t), ("mask", c_int64)]


MASK = POINTER(Mask)  # an argument of this type may be a Mask
AXES = POINTER(Axis)  # an argument of this type may be an array of Axis
STRIDED = (c_int, c_int, c_uint32, c_void_p, c_void_p, c_int, AXES)
KERNELS = {
    "mask_init": (c_int, MASK, c_uint64, c_uint64, c_double),
    "apply": (c_int, c_int, c_uint32, c_void_p, c_void_p, c_size_t, MASK, c_uint64),
    "apply_bits": (
        *(c_int, c_int, c_uint32, c_void_p, c_void_p, c_size_t),
        *(c_void_p, c_uint64, c_double),
    ),
    "bits": (c_int, c_void_p, c_size_t, MASK, c_uint64),
    "bools": (c_int, c_void_p, c_size_t, MASK, c_uint64),
    "bias_dropout_add": (c_int, c_int, *[c_void_p] * 4, c_size_t, c_size_t, MASK, c_uint64),
    "bias_dropout_add_backward": (
        *(c_int, c_int, c_void_p, c_void_p, c_void_p),
        *(c_size_t, c_size_t, MASK, c_uint64),
    ),
    "apply_strided": (*STRIDED, MASK, c_uint64),
    "apply_bits_strided": (*STRIDED, c_void_p, c_uint64, c_double),
    "apply_bools_strided": (*STRIDED, c_void_p, c_double),
    "apply_alpha_strided": (*STRIDED, MASK, c_uint64, c_double, c_double),
}


class Table(ctypes.Structure):
    """The struct cdropout_table."""

    _fields_ = [
        ("version", c_uint32),
        ("size", c_uint32),
        # CFUNCTYPE releases the GIL during a call
        *((name, ctypes.CFUNCTYPE(*signature)) for name, signature in KERNELS.items()),
    ]


# PYFUNCTYPE keeps the GIL and raises the errors of PyCapsule_GetPointer, such as for a wrong name.
capsule_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def load(isa):
    """Return the table of one instruction set."""
    module = importlib.import_module(dispatch.module_of(isa))
    table = Table.from_address(capsule_pointer(module.table, b"cdropout._core.table"))
    assert table.version == VERSION, f"{isa}: version {table.version} instead of {VERSION}"
    assert table.size == ctypes.sizeof(Table), f"{isa}: the table has {table.size} bytes"
    return table


@cache
def tables():
    """Return {instruction set: table}, with the widest instruction set last."""
    runnable = dispatch.runnable()
    return {isa: load(isa) for isa in dispatch.built() if isa in runnable}


def set_streaming_threshold(isa, size):
    """Set the smallest output size for which the kernels of `isa` use streaming stores.

    The size is in bytes.
    """
    importlib.import_module(dispatch.module_of(isa)).set_streaming_threshold(size)


def new_mask(table, p, seed=0xFEDCBA9876543210, call=2**40 + 3):
    """Return a mask initialized by mask_init of this table."""
    mask = Mask()
    assert table.mask_init(mask, seed, call, p) == 0
    return mask


# ---- buffers ----------------------------------------------------------------------------------


GUARD = 320  # guard bytes on each side of a buffer: more than 32 elements of any type
SENTINEL = 0xA5  # the value of guard bytes


class GuardedBuffer:
    """Memory between guard bytes of a known value.

    Parameters
    ----------
    size : int
        Bytes between the guards.
    offset : int
        Distance in bytes of the first byte from a 64-byte boundary.
    content : array of `size` bytes, optional
        The initial bytes; by default they are equal to the guard bytes.
    """

    def __init__(self, size, offset=0, content=None):
        self.memory = np.full(64 + offset + size + 2 * GUARD, SENTINEL, np.uint8)
        address = self.memory.__array_interface__["data"][0]
        self.first = -address % 64 + GUARD + offset
        self.last = self.first + size
        self.address = address + self.first
        self.inside = self.memory[self.first : self.last]
        if content is not None:
            self.inside[:] = as_bytes(content)

    def holds(self, content):
        """Return whether the buffer has exactly these bytes and the guards are unchanged."""
        guards = self.memory[: self.first].tobytes() + self.memory[self.last :].tobytes()
        same = np.array_equal(self.inside, as_bytes(content))
        return same and guards.count(SENTINEL) == len(guards)


def as_bytes(array):
    """Return the bytes of a one-dimensional array as uint8."""
    return np.ascontiguousarray(array).view(np.uint8)


def guarded_copy(array, offset=0):
    """Return a GuardedBuffer with a copy of this array."""
    return GuardedBuffer(array.nbytes, offset, array)


@cache
def numbers(dtype, n):
    """Return normal random numbers alternating with random bit patterns, some of which are NaN."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(n).astype(dtype)
    x[1::2] = rng.integers(0, 256, (n // 2, x.itemsize), np.uint8).view(dtype)[:, 0]
    x.flags.writeable = False
    return x


@cache
def random_bools(size):
    """Return random bytes: about half are 0, and the others are 1, 2, 128 or 255."""
    values = np.array([0, 0, 0, 0, 1, 2, 128, 255], np.uint8)
    return values[np.random.default_rng(size).integers(0, 8, size)]


class GuardedArray:
    """An array in a GuardedBuffer; strides can be negative, but items must not overlap.

    Parameters
    ----------
    dtype, shape, strides
        As in numpy.ndarray.
    offset : int
        Distance in bytes of the first byte of the buffer from a 64-byte boundary.
    """

    def __init__(self, dtype, shape, strides, offset=0):
        reach = [max(length - 1, 0) * step for length, step in zip(shape, strides, strict=True)]
        size = sum(map(abs, reach)) + np.dtype(dtype).itemsize
        self.buffer = GuardedBuffer(size, offset, random_bools(size))
        self.first = sum(-step for step in reach if step < 0)
        self.dtype, self.shape, self.strides = dtype, shape, strides
        self.address = self.buffer.address + self.first
        self.items = self.within(self.buffer.inside)

    def within(self, memory):
        return np.ndarray(self.shape, self.dtype, memory, self.first, self.strides)

    def bytes_after(self, values):
        """Return the expected bytes of the buffer after `values` have been written to the array."""
        memory = self.buffer.inside.copy()
        self.within(memory)[...] = values
        return memory

"""The kernels of every instruction set that was built and runs here, and memory for them to fill.

The structures mirror cdropout.h. Buffers are passed as addresses.
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
BOOL = 4  # for y of the strided kernels only
PART_OF_LARGE = 1  # cdropout_flags


class Mask(ctypes.Structure):
    """cdropout_mask."""

    _fields_ = [
        ("seed", c_uint64),
        ("call", c_uint64),
        ("threshold", c_uint64),
        ("scale", c_double),
    ]


class Axis(ctypes.Structure):
    """cdropout_axis."""

    _fields_ = [("length", c_size_t), ("x", c_ssize_t), ("y", c_ssize_t), ("mask", c_int64)]


MASK = POINTER(Mask)  # such an argument also takes the structure itself
AXES = POINTER(Axis)  # and such an one an array of them
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
    """cdropout_table."""

    _fields_ = [
        ("version", c_uint32),
        ("size", c_uint32),
        # these types call without the GIL
        *((name, ctypes.CFUNCTYPE(*signature)) for name, signature in KERNELS.items()),
    ]


# with the GIL, and with what Python raises if the capsule has another name
capsule_pointer = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def load(isa):
    """Return the table of one instruction set, which lives as long as its module: for ever."""
    module = importlib.import_module(dispatch.module_of(isa))
    table = Table.from_address(capsule_pointer(module.table, b"cdropout._core.table"))
    assert table.version == VERSION, f"{isa}: this mirror is of version {VERSION}"
    assert table.size == ctypes.sizeof(Table), f"{isa}: the table has {table.size} bytes"
    return table


@cache
def tables():
    """Return {instruction set: its table}, the widest last."""
    runnable = dispatch.runnable()
    return {isa: load(isa) for isa in dispatch.built() if isa in runnable}


def set_streaming_threshold(isa, size):
    """Let this instruction set's kernels store outputs past the cache from so many bytes on."""
    importlib.import_module(dispatch.module_of(isa)).set_streaming_threshold(size)


def new_mask(table, p, seed=0xFEDCBA9876543210, call=2**40 + 3):
    """Return the mask that this table's mask_init makes."""
    mask = Mask()
    assert table.mask_init(mask, seed, call, p) == 0
    return mask


# ---- memory -----------------------------------------------------------------------------------


EDGE = 320  # bytes on each side of a room that nobody may write to: more than 32 elements
SENTINEL = 0xA5


class GuardedBuffer:
    """Bytes between edges of a known value, from `offset` bytes past a 64-byte line on.

    Parameters
    ----------
    size : int, bytes
    content : array of so many bytes, optional; without it they have the value of the edges
    """

    def __init__(self, size, offset=0, content=None):
        self.memory = np.full(64 + offset + size + 2 * EDGE, SENTINEL, np.uint8)
        address = self.memory.__array_interface__["data"][0]
        self.first = -address % 64 + EDGE + offset
        self.last = self.first + size
        self.address = address + self.first
        self.inside = self.memory[self.first : self.last]
        if content is not None:
            self.inside[:] = as_bytes(content)

    def holds(self, content):
        """Return whether exactly these bytes are inside, and the edges are as they were."""
        edges = self.memory[: self.first].tobytes() + self.memory[self.last :].tobytes()
        same = np.array_equal(self.inside, as_bytes(content))
        return same and edges.count(SENTINEL) == len(edges)


def as_bytes(array):
    """Return the bytes of a one-dimensional array."""
    return np.ascontiguousarray(array).view(np.uint8)


def guarded_copy(array, offset=0):
    """Return a GuardedBuffer that holds a copy of this array."""
    return GuardedBuffer(array.nbytes, offset, array)


@cache
def numbers(dtype, n):
    """Return ordinary numbers and, in turn with them, any bits at all: NaN, subnormal, huge."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(n).astype(dtype)
    x[1::2] = rng.integers(0, 256, (n // 2, x.itemsize), np.uint8).view(dtype)[:, 0]
    x.flags.writeable = False
    return x


@cache
def random_bools(size):
    """Return so many bytes, of which half are 0 and the others 1 or anything else."""
    values = np.array([0, 0, 0, 0, 1, 2, 128, 255], np.uint8)
    return values[np.random.default_rng(size).integers(0, 8, size)]


class GuardedArray:
    """An array with any strides, which may be negative, within a GuardedBuffer; no two items overlap.

    Parameters
    ----------
    dtype, shape, strides : as of an array; the strides in bytes
    offset : int, bytes past a 64-byte line where the room begins
    """

    def __init__(self, dtype, shape, strides, offset=0):
        reach = [max(length - 1, 0) * step for length, step in zip(shape, strides, strict=True)]
        size = sum(map(abs, reach)) + np.dtype(dtype).itemsize
        self.room = GuardedBuffer(size, offset, random_bools(size))
        self.first = sum(-step for step in reach if step < 0)
        self.dtype, self.shape, self.strides = dtype, shape, strides
        self.address = self.room.address + self.first
        self.items = self.within(self.room.inside)

    def within(self, memory):
        return np.ndarray(self.shape, self.dtype, memory, self.first, self.strides)

    def bytes_after(self, values):
        """Return the bytes of the room once these values are in it."""
        memory = self.room.inside.copy()
        self.within(memory)[...] = values
        return memory

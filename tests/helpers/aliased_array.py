"""Arrays of more bytes than the machine has: one small file in memory, mapped again and again."""

import ctypes
import mmap
import os
import sys

import numpy as np
import pytest

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mmap")
FIXED, SHARED, PRIVATE, ANONYMOUS = 0x10, 0x01, 0x02, 0x20  # Linux's
NORESERVE = 0x4000
READ_WRITE = 0x1 | 0x2


def mapped(address, size, flags, file):
    """Map the file, or with -1 new memory, at this address, over whatever lies there."""
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    ]  # fmt: skip
    if call(address, size, READ_WRITE, flags | FIXED, file, 0) != address:
        raise OSError(ctypes.get_errno(), "mmap failed")


def quilt(dtype, n, islands=()):
    """Return an array of n elements in a few MiB: what is written to one place shows in others.

    Parameters
    ----------
    islands : elements at which 64 KiB begin that are memory of their own
    """
    size = n * np.dtype(dtype).itemsize
    whole = mmap.mmap(-1, size, PRIVATE | ANONYMOUS | NORESERVE, READ_WRITE)
    array = np.frombuffer(whole, dtype)
    patch = max(1 << 22, size >> 14)  # a process has some 65,000 mappings at the most
    file = os.memfd_create("patch")
    os.ftruncate(file, patch)
    for place in range(0, size, patch):
        mapped(array.ctypes.data + place, min(patch, size - place), SHARED, file)
    os.close(file)
    for element in islands:
        place = element * array.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        mapped(array.ctypes.data + place, min(1 << 16, size - place), PRIVATE | ANONYMOUS, -1)
    return array


def limits_hold():
    """Return whether RLIMIT_AS can be set here: AddressSanitizer reserves terabytes."""
    with open("/proc/self/maps") as maps:
        return "asan" not in maps.read()

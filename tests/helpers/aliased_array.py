"""Arrays larger than the machine's memory, made by mapping one small file many times."""

import ctypes
import mmap
import os

import numpy as np

# These are the values on Linux; the module mmap defines only some of these constants.
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
READ_WRITE = 0x1 | 0x2


def map_memory(address, size, flags, file=-1):
    """Map `file`, or new memory if `file` is -1, at this address; replace earlier mappings."""
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    ]  # fmt: skip
    if call(address, size, READ_WRITE, flags | MAP_FIXED, file, 0) != address:
        raise OSError(ctypes.get_errno(), "mmap failed")


def aliased_array(dtype, n, private=()):
    """Return an array of n elements that share a few MiB of memory; needs Linux.

    Parameters
    ----------
    private : sequence of int
        Indices of elements. For each index, the 64 KiB from the start of the element's page are
        not shared.
    """
    size = n * np.dtype(dtype).itemsize
    mapping = mmap.mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, READ_WRITE)
    array = np.frombuffer(mapping, dtype)
    file_size = max(1 << 22, size >> 14)  # a process can have about 65,000 mappings
    file = os.memfd_create("aliased_array")
    os.ftruncate(file, file_size)
    for offset in range(0, size, file_size):
        map_memory(array.ctypes.data + offset, min(file_size, size - offset), MAP_SHARED, file)
    os.close(file)
    for element in private:
        offset = element * array.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        length = min(1 << 16, size - offset)
        map_memory(array.ctypes.data + offset, length, MAP_PRIVATE | MAP_ANONYMOUS)
    return array

"""Picks the kernels of the widest instruction set that was built and that this CPU runs, once; CDROPOUT_ISA caps it."""
import importlib
import importlib.util
import os
from pathlib import Path

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uintptr_t

from cdropout cimport cdropout_table

cdef extern from "simd.h" nogil:
    bint cpu_has_avx2 "cd_cpu_has_avx2"()
    bint cpu_has_avx512 "cd_cpu_has_avx512"()

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")    # the wider the later


def module_of(isa):
    return f"cdropout.core._kernels_{isa}"


def built():
    """The instruction sets that this package was built for."""
    return tuple(isa for isa in INSTRUCTION_SETS if importlib.util.find_spec(module_of(isa)))


def runnable():
    """The instruction sets that this CPU has."""
    has = {"baseline": True, "avx2": cpu_has_avx2(), "avx512": cpu_has_avx512()}
    return tuple(isa for isa in INSTRUCTION_SETS if has[isa])


def choose(wanted, built, runnable):
    """Return the widest usable set, or `wanted` (CDROPOUT_ISA in any case, or None); ValueError if that is not usable."""
    usable = [isa for isa in built if isa in runnable]
    if not usable:
        raise ImportError(f"cdropout was built for {', '.join(built) or 'nothing'}, but this CPU runs {', '.join(runnable)}")
    if not wanted:
        return usable[-1]
    isa = wanted.lower()
    if isa not in INSTRUCTION_SETS:
        raise ValueError(f"CDROPOUT_ISA has to be one of {', '.join(INSTRUCTION_SETS)}, but got {wanted!r}")
    if isa not in built:
        raise ValueError(f"CDROPOUT_ISA={wanted}: cdropout was built without {isa}; it has {', '.join(built)}")
    if isa not in runnable:
        raise ValueError(f"CDROPOUT_ISA={wanted}: this CPU cannot run {isa}; it runs {', '.join(runnable)}")
    return isa


def last_level_cache():
    """Bytes of the last-level cache, or 32 MiB where the system does not say. (sysconf can say ten times too much.)"""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size[:-1]) << 10 for size in sizes if size.endswith("K")], default=1 << 25)


isa = choose(os.environ.get("CDROPOUT_ISA"), built(), runnable())
module = importlib.import_module(module_of(isa))
largest_cached = last_level_cache() // 2             # bytes of an output: the input takes the other half
module.set_largest_cached(largest_cached)
table = module.table
kernels = <const cdropout_table*>PyCapsule_GetPointer(table, "cdropout.core.table")


def get_table():
    """Return the address of the table of kernels.

    The table is the struct `cdropout_table` of `cdropout.h`. The address is for what calls C functions by their
    addresses, such as ctypes, cffi, Numba and Rust. C, C++ and Cython call `cdropout_import()`,
    which also checks the version.

    Returns
    -------
    int
        The address, which is valid until the process ends.

    Notes
    -----
    The table begins with two 32-bit numbers: its version, and its size in bytes. The functions of a version are in all later
    versions too, at the same places.

    Examples
    --------
    >>> import ctypes
    >>> import cdropout
    >>> version, size = (ctypes.c_uint32 * 2).from_address(cdropout.get_table())
    >>> version >= 1
    True
    """
    return <uintptr_t>kernels

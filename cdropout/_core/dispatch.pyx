"""Picks the kernels of the widest instruction set that was built and that this CPU runs, once; CDROPOUT_ISA caps it."""
import importlib
import importlib.util
import os
from pathlib import Path

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from cdropout cimport cdropout_table

cdef extern from "simd.h" nogil:
    ctypedef struct cd_cpu:
        uint32_t leaf1
        uint32_t leaf7
        uint64_t xcr0
    cd_cpu cd_probe_cpu()
    bint CD_HAS_VECTORS
    const char* CD_COMPILER

# The bits that the instruction sets of setup.py need: in ECX of CPUID's leaf 1 (OSXSAVE, AVX, F16C), in EBX of leaf 7 (AVX2;
# AVX-512 F, DQ, BW, VL), and in XCR0 (the system saves XMM and YMM; the mask registers and ZMM).
NEEDED = {
    "baseline": (0, 0, 0),
    "avx2": (7 << 27, 1 << 5, 0x06),
    "avx512": (7 << 27, 1 << 5 | 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31, 0xE6),
}
INSTRUCTION_SETS = tuple(NEEDED)    # the wider the later
vectors = bool(CD_HAS_VECTORS)          # otherwise the portable form of simd.h was compiled
compiler = (<bytes>CD_COMPILER).decode()


def module_of(isa):
    return f"cdropout._core._kernels_{isa}"


def built():
    """Return the instruction sets that this package was built for."""
    return tuple(isa for isa in INSTRUCTION_SETS if importlib.util.find_spec(module_of(isa)))


def supported(leaf1, leaf7, xcr0):
    """Return the instruction sets that a CPU with these registers runs."""
    return tuple([isa for isa, (a, b, c) in NEEDED.items() if a & ~leaf1 == b & ~leaf7 == c & ~xcr0 == 0])


def runnable():
    """Return the instruction sets that this CPU runs."""
    cpu = cd_probe_cpu()
    return supported(cpu.leaf1, cpu.leaf7, cpu.xcr0)


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


def describe(isas, vectors):
    """Return the names of these instruction sets, and that the build is portable if it has no vector types."""
    return ", ".join(isas) + ("" if vectors else " (portable: built without vector types)")


def advise(isa, built, runnable, vectors):
    """Return what would make this package faster than it is with the set `isa`, or an empty string."""
    if not vectors:
        return "build it with Clang or GCC, on Windows with clang-cl; the portable form is several times slower"
    widest = runnable[-1]
    if isa == widest:
        return ""
    if widest in built:
        return f"use {widest}, which is built and runs on this CPU"
    return f"build {widest}, which this CPU runs"


def last_level_cache():
    """Return the bytes of the last-level cache, or 32 MiB if they are not known. (sysconf can say ten times too much.)"""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size[:-1]) << 10 for size in sizes if size.endswith("K")], default=1 << 25)


isa = choose(os.environ.get("CDROPOUT_ISA"), built(), runnable())
module = importlib.import_module(module_of(isa))
streaming_threshold = last_level_cache() // 2             # bytes of an output: the input takes the other half
module.set_streaming_threshold(streaming_threshold)
table = module.table
kernels = <const cdropout_table*>PyCapsule_GetPointer(table, "cdropout._core.table")


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

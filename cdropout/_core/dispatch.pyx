"""Choice of the kernels: the import chooses the widest instruction set that was built and that this CPU supports.

The environment variable CDROPOUT_ISA chooses another set.
"""
import importlib
import importlib.util
import os
from pathlib import Path

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from cdropout cimport cdropout_table
from cdropout._core.softmax cimport SoftmaxTable

cdef extern from "simd.h" nogil:
    ctypedef struct cd_cpu:
        uint32_t leaf1
        uint32_t leaf7
        uint64_t xcr0
    cd_cpu cd_probe_cpu()
    bint CD_HAS_VECTORS
    const char* CD_COMPILER

# The bits that each instruction set of setup.py requires in three registers: in ECX of CPUID leaf 1 (FMA, OSXSAVE, AVX,
# F16C), in EBX of CPUID leaf 7 (AVX2; AVX-512 F, DQ, BW and VL), and in XCR0, whose bits stand for the registers that the
# operating system saves (XMM and YMM; mask registers and ZMM).
NEEDED = {
    "baseline": (0, 0, 0),
    "avx2": (1 << 12 | 7 << 27, 1 << 5, 0x06),
    "avx512": (1 << 12 | 7 << 27, 1 << 5 | 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31, 0xE6),
}
INSTRUCTION_SETS = tuple(NEEDED)        # from narrow to wide
vectors = bool(CD_HAS_VECTORS)          # False if this module was compiled with the portable form of simd.h
compiler = (<bytes>CD_COMPILER).decode()


def module_of(isa):
    """Return the name of the module with the kernels for an instruction set."""
    return f"cdropout._core._kernels_{isa}"


def built():
    """Return the instruction sets whose kernels are installed."""
    return tuple(isa for isa in INSTRUCTION_SETS if importlib.util.find_spec(module_of(isa)))


def supported(leaf1, leaf7, xcr0):
    """Return the instruction sets that a CPU with these values of the registers supports."""
    return tuple([isa for isa, (a, b, c) in NEEDED.items() if a & ~leaf1 == b & ~leaf7 == c & ~xcr0 == 0])


def runnable():
    """Return the instruction sets that this CPU supports."""
    cpu = cd_probe_cpu()
    return supported(cpu.leaf1, cpu.leaf7, cpu.xcr0)


def obstacle(isa, built, runnable):
    """Return the reason why the kernels of an instruction set cannot be used, or "" if they can be used."""
    if isa not in built:
        return f"cdropout was built without {isa}; it has {', '.join(built)}"
    if isa not in runnable:
        return f"this CPU cannot run {isa}; it runs {', '.join(runnable)}"
    return ""


def choose(wanted, built, runnable):
    """Return the instruction set `wanted`. If `wanted` is None or empty, return the widest set in `built` and `runnable`."""
    usable = [isa for isa in built if isa in runnable]
    if not usable:
        raise ImportError(f"cdropout was built for {', '.join(built) or 'nothing'}, but this CPU runs {', '.join(runnable)}")
    if not wanted:
        return usable[-1]
    isa = wanted.lower()
    if isa not in INSTRUCTION_SETS:
        raise ValueError(f"CDROPOUT_ISA has to be one of {', '.join(INSTRUCTION_SETS)}, but got {wanted!r}")
    if reason := obstacle(isa, built, runnable):
        raise ValueError(f"CDROPOUT_ISA={wanted}: {reason}")
    return isa


def describe(isas, vectors):
    """Return the names of instruction sets as one string, which ends with a remark if `vectors` is false."""
    return ", ".join(isas) + ("" if vectors else " (portable: built without vector types)")


def advise(isa, built, runnable, vectors):
    """Return advice on how to make this package faster, or "" if it uses vectors and this CPU's widest instruction set."""
    if not vectors:
        return "build it with Clang or GCC, on Windows with clang-cl; the portable form is several times slower"
    widest = runnable[-1]
    if isa == widest:
        return ""
    if widest in built:
        return f"use {widest}, which is built and runs on this CPU"
    return f"build {widest}, which this CPU runs"


def last_level_cache():
    """Return the size of the last-level cache in bytes, or 32 MiB if it is unknown.

    sysconf is not used, because its result can be ten times the actual size.
    """
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max([int(size[:-1]) << 10 for size in sizes if size.endswith("K")], default=1 << 25)


isa = choose(os.environ.get("CDROPOUT_ISA"), built(), runnable())
module = importlib.import_module(module_of(isa))
streaming_threshold = last_level_cache() // 2    # size of the output in bytes; the input fills the other half of the cache
module.set_streaming_threshold(streaming_threshold)
table = module.table
kernels = <const cdropout_table*>PyCapsule_GetPointer(table, "cdropout._core.table")
softmax_kernels = <const SoftmaxTable*>PyCapsule_GetPointer(module.softmax_table, "cdropout._core.softmax_table")


def get_table():
    """Return the address of the table of kernels, the struct `cdropout_table` of `cdropout.h`.

    The address is intended for ctypes, cffi, Numba, Rust and other programs that call C functions by address. Code in C,
    C++ or Cython should call `cdropout_import()` instead, which also checks the version of the table.

    Returns
    -------
    int
        The address. It is valid until the process ends.

    Notes
    -----
    The table begins with two 32-bit numbers: its version, and its size in bytes. Later versions of the table only add
    functions at the end.

    Examples
    --------
    >>> import ctypes
    >>> import cdropout
    >>> version, size = (ctypes.c_uint32 * 2).from_address(cdropout.get_table())
    >>> version >= 1
    True
    """
    return <uintptr_t>kernels

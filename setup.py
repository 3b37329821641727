"""What pyproject.toml cannot say: one kernel source, built once for each instruction set."""

import os
import platform
import sysconfig

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

MODULES = [
    "dispatch",
    "threads",
    "strided",
    "pieces",
    "arrays",
    "generators",
    "masks",
    "calls",
    "fused",
    "copies",
    "xla",
    "tensors",
]

# Must match the CPU probe in core/simd.h: a wider set is imported only where the probe finds all
# that its flags name.
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mf16c"],
    "avx512": ["-mavx2", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
ABI3 = [("Py_LIMITED_API", "0x030B0000")]  # one build for CPython 3.11 and all later ones
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    ABI3 = []  # which free-threaded builds do not have
FLAGS = [
    "-O3",
    "-g0",
    "-ffp-contract=off",  # each operation is rounded by itself, as on every other machine
    "-fno-strict-aliasing",  # the generator's words are also read as bytes
    "-Wno-psabi",  # vectors are passed only between functions that are inlined
]
if os.name == "nt":  # MSVC has no vector types: the portable form of simd.h, and no wider set
    FLAGS = ["/O2"]
if os.name == "nt" or platform.machine().lower() not in ("x86_64", "amd64"):
    INSTRUCTION_SETS = {"baseline": []}


def compiled(name, source, flags=()):
    extension = Extension(
        f"cdropout.core.{name}",
        [f"cdropout/core/{source}.pyx"],
        include_dirs=["cdropout/core", "cdropout/include", numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), *ABI3],
        py_limited_api=bool(ABI3),
    )
    # A folder each, and flags only afterwards: cythonize would write extensions that share a
    # source to one C file, and hand the flags of the one to the next.
    (extension,) = cythonize(
        extension,
        build_dir=f"build/cython/{name}",
        compiler_directives={
            "language_level": 3,
            "cdivision": True,  # C's own: the kernels divide unsigned numbers, and never by 0
            "binding": False,  # plain built-in functions: a call costs half as much
            "embedsignature": True,
            "embedsignature.format": "clinic",
            "freethreading_compatible": True,
        },
    )
    extension.extra_compile_args = [*FLAGS, *flags]
    return extension


extensions = [compiled(name, name) for name in MODULES]
extensions += [
    compiled(f"_kernels_{isa}", "kernels", flags) for isa, flags in INSTRUCTION_SETS.items()
]
setup(ext_modules=extensions, options={"bdist_wheel": {"py_limited_api": "cp311"} if ABI3 else {}})

"""What pyproject.toml cannot say: one kernel source, built once for each instruction set."""

import sysconfig
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

# Must match the CPU probe in core/simd.h: a wider set is imported only where the probe finds all
# that its flags name.
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mf16c"],
    "avx512": ["-mavx2", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
FLAGS = [
    "-O3",
    "-g0",
    "-ffp-contract=off",  # each operation is rounded by itself, as on every other machine
    "-fno-strict-aliasing",  # the generator's words are also read as bytes
    "-Wno-psabi",  # vectors are passed only between functions that are inlined
]
TARGET = sysconfig.get_platform()  # what is built for, which may be another machine than this
if TARGET.startswith("win"):  # MSVC has no vector types: the portable form of simd.h
    FLAGS = ["/O2"]
if TARGET.startswith("win") or not TARGET.endswith(("x86_64", "amd64")):
    INSTRUCTION_SETS = {"baseline": []}
MACROS = [("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")]
# One build for CPython 3.11 and all later ones; free-threaded builds have no stable ABI.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS += [("Py_LIMITED_API", "0x030B0000")] * ABI3
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,  # C's own: the kernels divide unsigned numbers, and never by 0
    "binding": False,  # plain built-in functions: a call costs half as much
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "freethreading_compatible": True,
}


def compiled(source, name, flags=()):
    path = [f"cdropout/core/{source}.pyx"]
    extension = Extension(f"cdropout.core.{name}", path, define_macros=MACROS, py_limited_api=ABI3)
    extension.include_dirs = ["cdropout/core", "cdropout/include", numpy.get_include()]
    # A folder each, and flags only afterwards: cythonize would write extensions that share a
    # source to one C file, and hand the flags of the one to the next.
    folder = f"build/cython/{name}"
    (extension,) = cythonize(extension, build_dir=folder, compiler_directives=DIRECTIVES)
    extension.extra_compile_args = [*FLAGS, *flags]
    return extension


sources = {path.stem for path in Path("cdropout/core").glob("*.pyx")} - {"kernels"}
extensions = [compiled(source, source) for source in sorted(sources)]
for isa, flags in INSTRUCTION_SETS.items():
    extensions.append(compiled("kernels", f"_kernels_{isa}", flags))
setup(ext_modules=extensions, options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {})

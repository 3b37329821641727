"""What pyproject.toml cannot say: one kernel source, built once for each instruction set."""

import os
import sys
import sysconfig
import threading
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer

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


class BuildExt(build_ext):
    """Compile in parallel, and only the modules whose sources, headers or flags changed."""

    cython = threading.Lock()  # Cython compiles one module at a time, beside the C compilers

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        given = self.build_lib, self.build_temp
        if self.inplace:  # pip deletes its folders after an editable install; this one stays
            kept = f"build/inplace.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            self.build_lib = self.build_temp = kept
        super().run()
        self.build_lib, self.build_temp = given

    def build_extension(self, ext):
        # A folder per module: the kernels share one source, and the C file holds the module's name.
        folder = f"build/cython/{ext.name}"
        source = Path(folder, ext.sources[0]).with_suffix(".c")
        with self.cython:
            force = self.force or newer("setup.py", source)
            (translated,) = cythonize(
                ext, build_dir=folder, force=force, quiet=True, compiler_directives=DIRECTIVES
            )
        ext.sources, ext.depends = translated.sources, [*translated.depends, "setup.py"]
        super().build_extension(ext)


def extension(source, name, flags=()):
    return Extension(
        f"cdropout.{name}",
        [f"cdropout/{source}.pyx"],
        include_dirs=["cdropout/core", "cdropout/include", numpy.get_include()],
        define_macros=MACROS,
        extra_compile_args=[*FLAGS, *flags],
        py_limited_api=ABI3,
    )


sources = {path.stem for path in Path("cdropout/core").glob("*.pyx")} - {"kernels"}
setup(
    ext_modules=[extension(f"core/{source}", f"core.{source}") for source in sorted(sources)]
    + [extension("tensorflow/_tf", "tensorflow._tf")]
    + [
        extension("core/kernels", f"core._kernels_{isa}", INSTRUCTION_SETS[isa])
        for isa in INSTRUCTION_SETS
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)

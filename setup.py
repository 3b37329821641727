"""The extension modules. The kernels are built from one source, once per instruction set."""

import os
import shutil
import sys
import sysconfig
import threading
import tomllib
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import PlatformError
from setuptools.modified import newer

# The flags must match NEEDED in _core/dispatch.pyx, because the kernels of an instruction set are
# imported only on a CPU that meets its requirements there.
INSTRUCTION_SETS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
}
FLAGS = [
    "-O3",
    "-g0",
    "-ffp-contract=off",  # every operation is rounded, so that results are the same everywhere
    "-fno-strict-aliasing",  # random numbers of 64 bits are also read as bytes
    "-Wno-psabi",  # the ABI of vectors does not matter: such functions are inlined
]
# get_platform returns the target platform, which may differ from the build machine.
if not sysconfig.get_platform().endswith(("x86_64", "amd64")):
    INSTRUCTION_SETS = {"baseline": []}
WINDOWS = {  # the names of the target platforms in Clang
    "win-amd64": "x86_64-pc-windows-msvc",
    "win-arm64": "aarch64-pc-windows-msvc",
    "win32": "i686-pc-windows-msvc",
}
NO_CLANG_CL = "clang-cl was not found on PATH, in LLVM's folder or in Visual Studio's"
KERNELS = "cdropout._core._kernels_"
PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
LOWEST_NUMPY = PROJECT["dependencies"][0].removeprefix("numpy>=")
MACROS = [
    ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
    # the import of a module raises an error for older versions of NumPy
    ("NPY_TARGET_VERSION", f"NPY_{LOWEST_NUMPY.replace('.', '_')}_API_VERSION"),
]
# One build works for CPython 3.11 and later. Free-threaded builds have no stable ABI.
ABI3 = not sysconfig.get_config_var("Py_GIL_DISABLED")
MACROS += [("Py_LIMITED_API", "0x030B0000")] * ABI3
DIRECTIVES = {
    "language_level": 3,
    "cdivision": True,  # C semantics: the kernels divide unsigned numbers only, never by 0
    "binding": False,  # built-in functions, whose calls take half the time
    "embedsignature": True,
    "embedsignature.format": "clinic",
    "freethreading_compatible": True,
}


class BuildExt(build_ext):
    """Build in parallel; skip modules whose sources, headers and flags have not changed."""

    cython = threading.Lock()  # Cython is not thread-safe; the C compilers run in parallel

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self):
        given = self.build_lib, self.build_temp
        if self.inplace:  # a permanent folder; pip deletes the default ones
            kept = f"build/inplace.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
            self.build_lib = self.build_temp = kept
        super().run()
        self.build_lib, self.build_temp = given

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            self.replace_msvc()
        super().build_extensions()

    def replace_msvc(self):
        """Compile with clang-cl if it is installed, because MSVC has no vector types.

        MSVC builds the portable form of _core/simd.h, which is several times slower.
        """
        compiler = self.compiler
        if not compiler.initialized:
            compiler.initialize(self.plat_name)
        clang_cl = find_clang_cl(compiler.cc)
        if clang_cl:
            compiler.cc = clang_cl
            options = compiler.compile_options  # /GL is for the linker of MSVC only
            compiler.compile_options = [option for option in options if option != "/GL"]
        elif os.environ.get("CDROPOUT_REQUIRE_CLANG", "0") != "0":
            raise PlatformError(f"CDROPOUT_REQUIRE_CLANG is set, but {NO_CLANG_CL}")
        else:
            self.warn(f"{NO_CLANG_CL}: building the portable form, which is several times slower")
        if not clang_cl or self.plat_name != "win-amd64":
            wide = {f"{KERNELS}{isa}" for isa in INSTRUCTION_SETS if isa != "baseline"}
            self.extensions = [ext for ext in self.extensions if ext.name not in wide]
        for ext in self.extensions:
            flags = [f"--target={WINDOWS[self.plat_name]}"]
            flags += [f"/clang:{flag}" for flag in ext.extra_compile_args]
            ext.extra_compile_args = flags if clang_cl else []

    def build_extension(self, ext):
        # One folder per module: all kernels have one source, but different C files.
        folder = f"build/cython/{ext.name}"
        source = Path(folder, ext.sources[0]).with_suffix(".c")
        with self.cython:
            force = self.force or newer("setup.py", source)
            (translated,) = cythonize(
                ext, build_dir=folder, force=force, quiet=True, compiler_directives=DIRECTIVES
            )
        ext.sources, ext.depends = translated.sources, [*translated.depends, "setup.py"]
        super().build_extension(ext)


def find_clang_cl(msvc):
    """Return the path of clang-cl, or None.

    PATH, the folder of LLVM, and the Visual Studio that contains the compiler `msvc` are searched.
    """
    folders = [os.environ.get("PATH", ""), Path(os.environ.get("ProgramFiles", ""), "LLVM", "bin")]
    for tools in Path(msvc).parents:  # msvc is in VC/Tools/MSVC/14.44/bin/Hostx64/x64
        folders += [tools / "Llvm" / host / "bin" for host in ("x64", "ARM64")]
    return shutil.which("clang-cl", path=os.pathsep.join(map(str, folders)))


def extension(source, name=None, flags=()):
    """Return the extension module of a Cython source."""
    return Extension(
        name or ".".join(source.with_suffix("").parts),
        [source.as_posix()],
        include_dirs=["cdropout/_core", "cdropout/include", numpy.get_include()],
        define_macros=MACROS,
        extra_compile_args=[*FLAGS, *flags],
        py_limited_api=ABI3,
    )


kernels = Path("cdropout/_core/kernels.pyx")
setup(
    ext_modules=[
        *(extension(path) for path in sorted(Path("cdropout").rglob("*.pyx")) if path != kernels),
        *(extension(kernels, f"{KERNELS}{isa}", flags) for isa, flags in INSTRUCTION_SETS.items()),
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)

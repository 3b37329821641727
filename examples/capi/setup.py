"""Builds the compiled examples beside their sources: `python setup.py build_ext --inplace`.

It needs setuptools, a C and a C++ compiler, and cdropout installed; for one of them also Cython.
"""

import sys

from setuptools import Extension, setup

import cdropout

try:
    from Cython.Build import cythonize
except ImportError:  # without Cython only the other two are built
    cythonize = None

# Without OpenMP, as Apple's compiler comes, threads.c is an ordinary loop.
openmp = {"linux": ["-fopenmp"], "win32": ["/openmp"]}.get(sys.platform, [])
include = [cdropout.get_include()]

modules = [
    Extension("extension", ["extension.c"], include_dirs=include),
    Extension(
        "bridge",
        ["bridge.c", "layer.cpp", "threads.c", "training.c"],
        include_dirs=include,
        extra_compile_args=openmp,
        extra_link_args=openmp,
    ),
]
if cythonize:
    rows = Extension("cython_rows", ["cython_rows.pyx"], include_dirs=include)
    modules += cythonize(rows, build_dir="build")
setup(name="capi-examples", ext_modules=modules)

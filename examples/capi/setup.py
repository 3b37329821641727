"""Builds the compiled examples beside their sources: `python setup.py build_ext --inplace`.

It needs setuptools, Cython, a C and a C++ compiler, and cdropout installed.
"""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

import cdropout

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
    *cythonize(
        Extension("cython_rows", ["cython_rows.pyx"], include_dirs=include), build_dir="build"
    ),
]
setup(name="capi-examples", ext_modules=modules)

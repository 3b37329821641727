"""Build the compiled examples next to their sources: `python setup.py build_ext --inplace`.

The build needs setuptools, a C and a C++ compiler, and cdropout. One example also needs Cython.
"""

import sys

from setuptools import Extension, setup

import cdropout

try:
    from Cython.Build import cythonize
except ImportError:  # cython_rows is not built
    cythonize = None

# Apple's compiler has no OpenMP; without OpenMP, the loop in threads.c is serial.
openmp = {"linux": ["-fopenmp"], "win32": ["/openmp"]}.get(sys.platform, [])
include = [cdropout.get_include()]

modules = [
    Extension("extension", ["extension.c"], include_dirs=include),
    Extension(
        "bridge",
        ["bridge.c", "images.c", "layer.cpp", "threads.c", "training.c"],
        include_dirs=include,
        extra_compile_args=openmp,
        extra_link_args=openmp,
    ),
]
if cythonize:
    rows = Extension("cython_rows", ["cython_rows.pyx"], include_dirs=include)
    modules += cythonize(rows, build_dir="build")
setup(name="capi-examples", ext_modules=modules)

"""Requirements of tests: packages, systems and instruction sets.

If a requirement is missing, the test is skipped. The reason contains the requirement and, for
packages, the command that installs them.
"""

import os
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from cdropout._core import dispatch

EXTRAS = {"dask", "flax", "jax", "keras", "tensorflow", "thinc", "torch"}  # extras of cdropout
PACKAGES = {
    "distributed": "'dask[distributed]'",
    "sklearn": "scikit-learn",
}
NAMES = {
    "dask": "Dask",
    "distributed": "Dask's cluster",
    "flax": "Flax",
    "jax": "JAX",
    "keras": "Keras",
    "matplotlib": "Matplotlib",
    "numba": "Numba",
    "scipy": "SciPy",
    "sklearn": "scikit-learn",
    "spacy": "spaCy",
    "tensorflow": "TensorFlow",
    "torch": "PyTorch",
}


def skip_reason(module):
    """Return a message that a test needs this module, with the command that installs it."""
    module = module.partition(".")[0]
    package = f"'cdropout[{module}]'" if module in EXTRAS else PACKAGES.get(module, module)
    return f"needs {NAMES.get(module, module)}: pip install {package}"


def import_or_skip(module):
    """Return the module; if it is not installed, skip the test or the importing test file."""
    return pytest.importorskip(module, reason=skip_reason(module))


def find_or_skip(*modules):
    """Skip the test or the test file unless all modules are installed, without importing them.

    Do not pass "pip": setuptools then assumes that pip is running, and does not replace distutils.
    """
    for module in modules:
        if not find_spec(module):
            pytest.skip(skip_reason(module), allow_module_level=True)


def why_not_runnable(isa):
    """Return the reason why this machine cannot run kernels of this set, or "" if it can."""
    if isa not in dispatch.built():
        return f"needs kernels of {isa}: cdropout was built without them"
    return "" if isa in dispatch.runnable() else f"needs {isa}: this CPU cannot run it"


def can_limit_memory():
    """Return whether memory can be limited: on Linux without AddressSanitizer.

    AddressSanitizer maps terabytes in advance. A limit does not affect allocations in this memory.
    """
    if not sys.platform.startswith("linux"):
        return False
    with open("/proc/self/maps") as maps:
        return "asan" not in maps.read()


def slow(*values):
    """Return the values as `pytest.param` objects that are marked as slow."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
needs_numpy_2 = pytest.mark.skipif(
    not hasattr(np, "bitwise_count"), reason="needs numpy.bitwise_count: pip install 'numpy>=2'"
)
unix_only = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs forks and SIGALRM")
needs_memory_limit = pytest.mark.skipif(
    not can_limit_memory(), reason="needs a limit of memory: Linux without AddressSanitizer"
)
ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(bool(reason), reason=reason))
    for isa in dispatch.INSTRUCTION_SETS
    for reason in [why_not_runnable(isa)]
]

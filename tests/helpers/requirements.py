"""What a test may need. Without it the test is skipped, with a reason that says what is missing."""

from importlib.util import find_spec

import pytest

from cdropout._core import dispatch

EXTRAS = {"dask", "flax", "jax", "keras", "tensorflow", "thinc", "torch"}  # of this package
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


def reason(module):
    """Return why a test that needs this module is skipped without it, and what to install."""
    package = f"'cdropout[{module}]'" if module in EXTRAS else PACKAGES.get(module, module)
    return f"needs {NAMES.get(module, module)}: pip install {package}"


def import_or_skip(module):
    """Return the module; without it, skip the test, or the file that is being imported."""
    return pytest.importorskip(module, reason=reason(module))


def find_or_skip(*modules):
    """Skip the test, or the file, unless these modules are installed; import none of them."""
    for module in modules:
        if not find_spec(module):
            pytest.skip(reason(module), allow_module_level=True)


def why_not(isa):
    """Return why no kernels of this instruction set can run here, or an empty string."""
    if isa not in dispatch.built():
        return f"needs kernels of {isa}: cdropout was built without them"
    return "" if isa in dispatch.runnable() else f"needs {isa}: this CPU cannot run it"


def slow(*values):
    """Return these values of a parameter for `parametrize`, with the mark of slow tests."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


ISAS = [
    pytest.param(isa, marks=pytest.mark.skipif(bool(why_not(isa)), reason=why_not(isa)))
    for isa in dispatch.INSTRUCTION_SETS
]

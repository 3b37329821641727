"""Tests that run keras_checks.py with each backend, and tests of import errors."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..helpers.requirements import find_or_skip, slow
from ..helpers.subprocess_runner import run

find_or_skip("keras")
BACKENDS = {  # each backend and the package that it requires
    "jax": "jax",
    "torch": "torch",
    "numpy": "scipy",
    "tensorflow": "tensorflow",
}

CHECKS = Path(__file__).with_name("keras_checks.py")
# FIRST is the first installed backend. The tests with the other backends are marked as slow, but
# the tests with any backend also check the masks of the other backends, except TensorFlow.
FIRST = next((name for name, module in BACKENDS.items() if find_spec(module)), "numpy")
WARNING_OF_KERAS = "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
MESSAGE = "cdropout.keras needs Keras: run `pip install 'cdropout[keras]'`"


@pytest.mark.parametrize("backend", [FIRST, *slow(*[name for name in BACKENDS if name != FIRST])])
def test_layers_with_each_backend(backend):
    """Test the layers in a new process, because Keras cannot change its backend."""
    find_or_skip(BACKENDS[backend])
    options = ["-q", "-p", "no:cacheprovider", "-W", WARNING_OF_KERAS, CHECKS]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *options],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "JAX_ENABLE_X64": "1",  # enables float64
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
        cwd=CHECKS.parents[2],
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_import_without_keras_raises_with_the_install_command():
    status, _, errors = run("import sys; sys.modules['keras'] = None; import cdropout.keras")
    assert status == 1
    assert errors.endswith(MESSAGE)


@pytest.mark.parametrize("module", ["jaxlib", "missing"])
def test_import_without_the_backend_of_keras_raises_with_its_error(module, tmp_path):
    """The message contains the original error: JAX's if jaxlib is missing, otherwise Python's."""
    if module == "jaxlib":
        find_or_skip("jax")
        script, error = "import sys; sys.modules['jaxlib'] = None", "jax requires jaxlib"
    else:
        (tmp_path / "keras.py").write_text("import missing")
        script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
        error = "No module named 'missing'): install"
    status, _, errors = run(script + "; import cdropout.keras", KERAS_BACKEND="jax")
    assert status == 1
    message = errors[errors.rindex("ImportError: ") :]
    assert message.startswith(
        f"ImportError: cdropout.keras: Keras or its backend cannot be imported ({error}"
    )
    assert message.endswith(
        "): install the backend, or select another one with the variable KERAS_BACKEND"
    )

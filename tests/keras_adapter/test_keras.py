"""The Keras layers on each backend, in a process of its own: a process has one."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..helpers.requirements import find_or_skip, slow

find_or_skip("keras")  # to import it would need its backend
BACKENDS = {  # and what Keras needs for it
    "jax": "jax",
    "torch": "torch",
    "numpy": "scipy",
    "tensorflow": "tensorflow",
}

CHECKS = Path(__file__).with_name("keras_checks.py")


def run(*command, backend):
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "JAX_ENABLE_X64": "1",  # for float64
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.run(
        [sys.executable, "-P", *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=CHECKS.parents[2],
        timeout=300,
    )


# the first that is there; in its process the others' functions are tested too
FIRST = next((name for name, module in BACKENDS.items() if find_spec(module)), "numpy")


@pytest.mark.parametrize("backend", [FIRST, *slow(*[name for name in BACKENDS if name != FIRST])])
def test_layers(backend):
    find_or_skip(BACKENDS[backend])
    kerass_own = "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", kerass_own, str(CHECKS))
    done = run(*command, backend=backend)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_without_keras():
    done = run(
        "-c", "import sys; sys.modules['keras'] = None; import cdropout.keras", backend="jax"
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "cdropout.keras needs Keras 3: run `pip install 'cdropout[keras]'`\n"
    )


def test_with_an_older_keras(tmp_path):
    (tmp_path / "keras.py").write_text("__version__ = '2.15.0'")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import cdropout.keras"
    done = run("-c", code, backend="jax")
    assert done.returncode == 1
    assert "Keras 2.15.0 is installed" in done.stderr
    assert done.stderr.endswith(
        "cdropout.keras needs Keras 3: run `pip install 'cdropout[keras]'`\n"
    )

"""The op's registration with TensorFlow: once per process, completely or not at all."""

import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ..helpers.requirements import import_or_skip

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = import_or_skip("tensorflow")

import cdropout.tensorflow  # noqa: E402
from cdropout.tensorflow import _tf, functional, op  # noqa: E402

PATH = op._library_path()
X = tf.ones(1000)


def never_registered(name):
    raise AssertionError("a function is missing, and the registry must not be asked")


def test_another_registration_is_none():
    """TensorFlow would end the process: these are 8 threads, and modules that are loaded again."""
    assert op._is_registered(_tf.NAME) and not op._is_registered("CdropoutApplyV0")
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: _tf.register(PATH, op._is_registered), range(64)))
    assert not any(results)
    for module in op, functional, cdropout.tensorflow:
        importlib.reload(module)
    y = cdropout.tensorflow.stateless_dropout(X, 0.5, [7, 0])
    assert np.array_equal(y != 0, np.asarray(cdropout.Mask(1000, 0.5, 7)))


@pytest.mark.parametrize("missing", range(len(_tf.SYMBOLS)))
def test_without_one_of_the_functions_nothing_is_registered(missing):
    symbols = _tf.SYMBOLS.copy()
    symbols[missing] = "TF_OfAnotherVersion"
    with pytest.raises(AttributeError, match="TF_OfAnotherVersion"):
        _tf.register(PATH, never_registered, symbols)


def refused(*_):
    raise RuntimeError("no such interface")


@pytest.mark.parametrize(
    "name, replacement, reason",
    [
        ("register", lambda *_: _tf.register(PATH, never_registered, ["TF_Old"]), "TF_Old"),
        ("register", refused, "no such interface"),
        ("_make_wrapper", refused, "no such interface"),
        ("import_error", ImportError("no module of that name"), "no module of that name"),
    ],
)
def test_if_it_cannot_be_registered_dropout_is_tensorflows(monkeypatch, name, replacement, reason):
    monkeypatch.setattr(op, name, replacement)
    match = f"TensorFlow {tf.__version__}, so that TensorFlow's own dropout is used; .*{reason}"
    with pytest.warns(UserWarning, match=match) as caught:
        monkeypatch.setattr(op, "apply", op._load_op())
    assert len(caught) == 1 and op.apply is None
    monkeypatch.setattr(functional.op, "apply", None)
    own = tf.nn.experimental.stateless_dropout(X, 0.5, [7, 0], "auto_select")
    assert np.array_equal(functional.stateless_dropout(X, 0.5, [7, 0]), own)


def test_the_library_on_windows(monkeypatch, tmp_path):
    module = tmp_path / "_pywrap_tensorflow_internal.pyd"
    monkeypatch.setattr(op._pywrap_tensorflow_internal, "__file__", str(module))
    assert op._library_path() == str(module)
    dll = tmp_path / "_pywrap_tensorflow_common.dll"
    dll.touch()
    assert op._library_path() == str(dll)


# ---- other versions of TensorFlow ---------------------------------------------------------------


def run(code):
    return subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)


def test_without_tensorflow():
    done = run("import sys; sys.modules['tensorflow'] = None; import cdropout.tensorflow")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "cdropout.tensorflow needs TensorFlow 2.16 or newer: "
        "run `pip install 'cdropout[tensorflow]'`\n"
    )


@pytest.mark.parametrize("version", ["2.15.1", "3.0.0"])
def test_with_a_tensorflow_that_is_not_supported(version, tmp_path):
    (tmp_path / "tensorflow.py").write_text(f"__version__ = {version!r}")
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import cdropout.tensorflow")
    assert done.returncode == 1
    assert done.stderr.endswith(
        "cdropout.tensorflow needs TensorFlow 2.16 or newer, but older than 3.0; "
        f"TensorFlow {version} is installed\n"
    )


@pytest.mark.slow
def test_the_import_does_not_initialize_tensorflow():
    """Devices and threads can be configured after it."""
    code = "import cdropout.tensorflow; from tensorflow.python.eager import context as c; "
    done = run(code + "print(c.context()._initialized)")
    assert done.stdout == "False\n", done.stderr

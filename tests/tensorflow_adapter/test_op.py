"""Tests of the registration of the op with TensorFlow."""

import importlib
import os

import numpy as np
import pytest

from ..helpers.requirements import import_or_skip
from ..helpers.subprocess_runner import run
from ..helpers.threads import run_in_threads

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = import_or_skip("tensorflow")

import cdropout.tensorflow  # noqa: E402
from cdropout.tensorflow import _tf, functional, op  # noqa: E402

PATH = op._library_path()
X = tf.ones(1000)


def fail_if_called(name):
    raise AssertionError("is_registered was called, although a function is missing")


def test_op_is_registered_once():
    """TensorFlow ends the process if an op is registered twice."""
    assert op._is_registered(_tf.NAME) and not op._is_registered("CdropoutApplyV0")
    assert not any(run_in_threads(64, lambda _: _tf.register(PATH, op._is_registered)))
    for module in op, functional, cdropout.tensorflow:
        importlib.reload(module)
    y = cdropout.tensorflow.stateless_dropout(X, 0.5, [7, 0])
    assert np.array_equal(y != 0, np.asarray(cdropout.Mask(1000, 0.5, 7)))


@pytest.mark.parametrize("missing", range(len(_tf.SYMBOLS)))
def test_missing_function_of_tensorflow_raises(missing):
    symbols = _tf.SYMBOLS.copy()
    symbols[missing] = "TF_Missing"
    with pytest.raises(AttributeError, match="TF_Missing"):
        _tf.register(PATH, fail_if_called, symbols)


def raise_runtime_error(*_):
    raise RuntimeError("unsupported version")


@pytest.mark.parametrize(
    "name, replacement, reason",
    [
        ("register", lambda *_: _tf.register(PATH, fail_if_called, ["TF_Missing"]), "TF_Missing"),
        ("register", raise_runtime_error, "unsupported version"),
        ("_make_wrapper", raise_runtime_error, "unsupported version"),
        ("import_error", ImportError("no module of that name"), "no module of that name"),
    ],
)
def test_tensorflow_dropout_is_used_without_the_op(monkeypatch, name, replacement, reason):
    monkeypatch.setattr(op, name, replacement)
    match = f"TensorFlow {tf.__version__}, so that TensorFlow's own dropout is used; .*{reason}"
    with pytest.warns(UserWarning, match=match) as caught:
        monkeypatch.setattr(op, "apply", op._load_op())
    assert len(caught) == 1 and op.apply is None
    monkeypatch.setattr(functional.op, "apply", None)
    expected = tf.nn.experimental.stateless_dropout(X, 0.5, [7, 0], "auto_select")
    assert np.array_equal(functional.stateless_dropout(X, 0.5, [7, 0]), expected)


def test_library_path_on_windows(monkeypatch, tmp_path):
    module = tmp_path / "_pywrap_tensorflow_internal.pyd"
    monkeypatch.setattr(op._pywrap_tensorflow_internal, "__file__", str(module))
    assert op._library_path() == str(module)
    dll = tmp_path / "_pywrap_tensorflow_common.dll"
    dll.touch()
    assert op._library_path() == str(dll)


# ---- other versions of TensorFlow ---------------------------------------------------------------


def test_import_without_tensorflow_raises_with_the_install_command():
    status, _, errors = run(
        "import sys; sys.modules['tensorflow'] = None; import cdropout.tensorflow"
    )
    assert status == 1
    assert errors.endswith(
        "cdropout.tensorflow needs TensorFlow: run `pip install 'cdropout[tensorflow]'`"
    )


@pytest.mark.slow
def test_import_does_not_initialize_tensorflow():
    """Users can configure devices and threads only before TensorFlow is initialized."""
    script = "import cdropout.tensorflow; from tensorflow.python.eager import context as c; "
    _, output, errors = run(script + "print(c.context()._initialized)")
    assert output == "False", errors

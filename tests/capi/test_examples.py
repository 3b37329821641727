"""Tests of examples/capi, built outside the checkout with the installed package."""

import ctypes
import importlib
import os
import re
import shutil
import subprocess
import sys
from ctypes import c_double, c_size_t, c_uint64, c_void_p
from pathlib import Path

import numpy as np
import pytest

import cdropout

from ..helpers.requirements import find_or_skip, linux_only, slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "capi"
COMPILED = ("extension", "cython_rows")
INTERPRETED = ("ctypes_rows", "cffi_rows", "numba_rows")
PACKAGES = {"cython_rows": "Cython", "cffi_rows": "cffi", "numba_rows": "numba"}
SHAPES = [(0, 5), (3, 0), (1, 1), (5, 64), (3, 1000), (2, 10_007)]
SEED = 2**64 - 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Build the examples in a temporary folder and return this folder."""
    find_or_skip("setuptools")
    if not shutil.which(os.environ.get("CC", "cc")) or not shutil.which(
        os.environ.get("CXX", "c++")
    ):
        pytest.skip("needs a C and a C++ compiler")
    folder = tmp_path_factory.mktemp("capi")
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    command = [sys.executable, "-P", "setup.py", "-q", "build_ext", "--inplace"]
    unoptimized = {**os.environ, "CFLAGS": "-O0"}  # optimizing Cython's C code takes a long time
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=unoptimized)
    assert done.returncode == 0, done.stderr
    assert "warning: " not in done.stderr, done.stderr
    return folder


@pytest.fixture
def load(folder, monkeypatch):
    """Return a function that imports an example, or skips the test if a package is missing."""
    monkeypatch.syspath_prepend(folder)

    def load(name):
        if name in PACKAGES:
            find_or_skip(PACKAGES[name])
        return importlib.import_module(name)

    return load


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# ---- one mask per row -------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("name", COMPILED + INTERPRETED)
def test_dropout_rows_equals_mask_apply(load, name, p):
    dropout_rows = load(name).dropout_rows
    for shape in SHAPES:
        x, y = numbers(*shape), np.full(shape, 9, np.float32)
        dropout_rows(x, y, p, SEED)
        masks = [cdropout.Mask(shape[1], p, SEED, call=row) for row in range(shape[0])]
        want = [mask.apply(row) for mask, row in zip(masks, x, strict=True)]
        assert y.tobytes() == b"".join(row.tobytes() for row in want), shape


@pytest.mark.parametrize("name", COMPILED + INTERPRETED)
def test_dropout_rows_rejects_invalid_p(load, name):
    x, y = numbers(3, 10), np.full((3, 10), 9, np.float32)
    for p in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="p has to be between 0 and 1"):
            load(name).dropout_rows(x, y, p, SEED)
    assert np.all(y == 9)


@pytest.mark.parametrize("name", COMPILED)
def test_dropout_rows_rejects_different_shapes(load, name):
    with pytest.raises(ValueError, match="x and y have to be .*of one shape"):
        load(name).dropout_rows(numbers(3, 10), numbers(3, 11), 0.1, SEED)


@pytest.mark.parametrize("name", ["ctypes_rows", "cffi_rows", *slow("numba_rows")])
def test_interpreted_examples_run_as_scripts(load, folder, name):
    load(name)
    done = subprocess.run([sys.executable, folder / f"{name}.py"], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "same as in Python: True\n")


@linux_only
@pytest.mark.slow
def test_rust_example_equals_mask_apply(folder):
    if not shutil.which("rustc"):
        pytest.skip("needs rustc")
    command = ["rustc", "--crate-type", "cdylib", "-O", "-D", "warnings", "rust_rows.rs"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dropout_rows = ctypes.CDLL(folder / "librust_rows.so").dropout_rows
    dropout_rows.argtypes = [*[c_void_p] * 3, *[c_size_t] * 2, c_double, c_uint64]
    for shape in SHAPES:
        x, y = numbers(*shape), np.full(shape, 9, np.float32)
        arguments = (cdropout.get_table(), x.ctypes.data, y.ctypes.data, *shape)
        assert dropout_rows(*arguments, 1.1, SEED) == -1 and np.all(y == 9)
        assert dropout_rows(*arguments, 0.1, SEED) == 0
        for row in range(shape[0]):
            mask = cdropout.Mask(shape[1], 0.1, SEED, call=row)
            assert y[row].tobytes() == mask.apply(x[row]).tobytes()


@pytest.mark.slow
def test_cost_script_prints_the_time_per_call(load, folder):
    load("numba_rows")
    load("cython_rows")
    command = [sys.executable, "cost.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    names = re.findall(r"^(\w+) +\d+\.\d ns per call \(quartiles .*\)$", done.stdout, re.MULTILINE)
    assert names == ["C", "Cython", "Numba"]


# ---- programs without Python ------------------------------------------------------------------


def test_programs_do_not_include_python_h():
    for name in ("programs.h", "images.c", "layer.cpp", "threads.c", "training.c"):
        assert "Python.h" not in (EXAMPLES / name).read_text()


@pytest.mark.parametrize(
    "n, p", [(10_007, 0), (10_007, 0.1), (10_007, 0.5), (10_007, 1), ((1 << 22) + 77, 0.1)]
)
def test_layer_example_equals_mask_apply_and_dropout_backward(load, n, p):
    """For the largest n, the layer sets the flag CDROPOUT_PART_OF_LARGE."""
    x, gy = numbers(n), numbers(n, seed=1)
    y, gx = np.empty_like(x), np.empty_like(x)
    load("bridge").layer(x, gy, y, gx, p, 42)
    mask = cdropout.Mask(n, p, 42, 0)
    assert y.tobytes() == mask.apply(x).tobytes()
    assert gx.tobytes() == cdropout.dropout_backward(gy, mask).tobytes()


@pytest.mark.parametrize("by_channel", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 11, 13), (1, 64, 9, 7), (3, 1, 5, 8), (2, 0, 3, 3)])
def test_images_example_equals_dropout_and_dropout2d(load, shape, by_channel):
    """In memory, the axes are ordered as images, rows, columns, channels."""
    x = numbers(shape[0], shape[2], shape[3], shape[1])
    y, p = np.full_like(x, 9), 0.3
    load("bridge").images(x, y, *shape, by_channel, p, 42)
    function = cdropout.dropout2d if by_channel else cdropout.dropout
    want = function(x.transpose(0, 3, 1, 2), p, rng=42)
    assert np.array_equal(y.transpose(0, 3, 1, 2), want)
    with pytest.raises(ValueError, match="p has to be between 0 and 1"):
        load("bridge").images(x, y, *shape, by_channel, 1.5, 42)


@pytest.mark.parametrize("n", [0, 1, 65_535, 65_536, 1_000_003])
def test_threads_example_equals_mask_apply(load, n):
    x, y = numbers(n), np.empty(n, np.float32)
    load("bridge").threads(x, y, 0.1, 42)
    assert y.tobytes() == cdropout.Mask(n, 0.1, 42).apply(x).tobytes()


def test_result_of_threads_example_does_not_depend_on_the_number_of_threads(load, folder):
    code = "import bridge, hashlib, numpy as np; x = np.ones(10**6, np.float32); y = x.copy();"
    code += "bridge.threads(x, y, 0.1, 42); print(hashlib.sha256(y).hexdigest())"
    found = set()
    for threads in ("1", "2", "5"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", code]
        found.add(subprocess.check_output(command, cwd=folder, env=environment))
    assert len(found) == 1


def test_programs_reject_invalid_arguments(load):
    bridge, x, y = load("bridge"), numbers(10), np.full(10, 9, np.float32)
    with pytest.raises(ValueError, match="p has to be between 0 and 1"):
        bridge.threads(x, y, 1.5, 42)
    with pytest.raises(ValueError, match="p has to be between 0 and 1"):
        bridge.layer(x, x, y, y, -1, 42)
    with pytest.raises(ValueError, match="the arrays have the wrong lengths"):
        bridge.threads(x, y[1:], 0.5, 42)
    assert np.all(y == 9)


# ---- the training step ------------------------------------------------------------------------


SAMPLES, INPUTS, HIDDEN = 32, 6, 40  # the same values as in programs.h
WEIGHTS = INPUTS * HIDDEN + HIDDEN


class Training:
    """The training step of training.c with random data."""

    def __init__(self, bridge):
        rng = np.random.default_rng(3)
        self.bridge = bridge
        self.x, self.targets = rng.standard_normal((SAMPLES, INPUTS)), rng.standard_normal(SAMPLES)
        self.weights, self.gradient = rng.standard_normal(WEIGHTS) / 4, np.empty(WEIGHTS)
        self.work = np.empty((4, SAMPLES, HIDDEN))

    def loss(self, call, weights=None):
        weights = self.weights if weights is None else weights
        data = self.x, self.targets, weights, self.gradient, self.work
        return self.bridge.training(*data, 0.4, 42, call)

    def slopes(self, call):
        """Return the gradient computed with central differences; its error is about 1e-9."""
        steps = 1e-5 * np.eye(WEIGHTS)
        pairs = [
            (self.loss(call, self.weights + h), self.loss(call, self.weights - h)) for h in steps
        ]
        return np.array([(up - down) / 2e-5 for up, down in pairs])


@pytest.fixture
def training(load):
    return Training(load("bridge"))


def test_gradient_of_the_training_step_equals_finite_differences(training):
    for call in (0, 7):
        slopes = training.slopes(call)
        training.loss(call)
        assert np.abs(slopes).max() > 0.01
        np.testing.assert_allclose(training.gradient, slopes, atol=1e-8)


def test_gradient_of_the_training_step_depends_on_the_mask(training):
    slopes = training.slopes(0)
    training.loss(1)
    assert np.abs(training.gradient - slopes).max() > 0.01


def test_training_step_equals_mask_apply_and_dropout_backward(training):
    training.loss(7)
    hidden, dropped, g_dropped, g_hidden = training.work
    mask = cdropout.Mask((SAMPLES, HIDDEN), 0.4, 42, 7)
    assert dropped.tobytes() == mask.apply(hidden).tobytes()
    assert g_hidden.tobytes() == cdropout.dropout_backward(g_dropped, mask).tobytes()
    assert np.count_nonzero(dropped == 0) > 300


def test_training_reduces_the_loss(training):
    losses = []
    for call in range(300):
        losses.append(training.loss(call))
        training.weights -= 0.05 * training.gradient
    assert np.mean(losses[-50:]) < 0.8 * np.mean(losses[:50])

"""The contestants of `cdropout bench`: dropout as each library's users write it, and its check.

A contestant's `prepare(arrays, p)` returns two functions without arguments: `forward()` returns y,
and `both()` returns (y, gx), where gx is the gradient of x that follows from gy, that of y. Each
call draws a new mask, and returns when its work is done. NumPy and cdropout write to the y and gx
of `arrays`; the other libraries have no such way and allocate their results.
"""

import os
import secrets
import time
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

import cdropout as cd
from cdropout.selftest import keep_bound

CHECKED = 1 << 22  # elements: a keep rate that is off by a thousandth is far out of its bound
ULPS = 4  # of error in a kept element: 1 - p, its inverse, the product


class Arrays(NamedTuple):
    """What contestants work on; y and gx are there already, the same for all that take turns."""

    x: np.ndarray
    gy: np.ndarray
    y: np.ndarray
    gx: np.ndarray


class Contestant(NamedTuple):
    """Who takes part, and how it is called."""

    name: str
    version: str
    prepare: Callable
    as_array: Callable = np.asarray


# ---- what everything is measured against ------------------------------------------------------


def memcpy(arrays):
    """The copy of the same bytes, to memory that is already there."""
    x, gy, y, gx = arrays

    def both():
        np.copyto(y, x)
        np.copyto(gx, gy)

    return lambda: np.copyto(y, x), both


def cdropout(threads, _):
    """This package; the mask of the forward is all that the backward needs."""
    cd.set_num_threads(threads)

    def prepare(arrays, p):
        x, gy, y, gx = arrays

        def both():
            _, mask = cd.dropout(x, p, return_mask=True, out=y)
            return y, cd.dropout_backward(gy, mask, out=gx)

        return lambda: cd.dropout(x, p, out=y), both

    return Contestant("cdropout", version("cdropout"), prepare)


# ---- the peers --------------------------------------------------------------------------------


def numpy_peer(*_):
    """The usual lines, with one Generator and arrays that are used again."""
    random = np.random.default_rng()

    def prepare(arrays, p):
        x, gy, y, gx = arrays
        uniform, mask = np.zeros_like(x), np.zeros_like(x)
        keep = np.zeros(x.shape, np.bool_)
        scale = x.dtype.type(1 / (1 - p))

        def forward():
            random.random(out=uniform, dtype=x.dtype)
            np.greater_equal(uniform, p, out=keep)
            np.multiply(keep, scale, out=mask)
            return np.multiply(x, mask, out=y)

        return forward, lambda: (forward(), np.multiply(gy, mask, out=gx))

    return Contestant("numpy", np.__version__, prepare)


def torch_peer(threads, _):
    """`torch.nn.functional.dropout`, eager; the backward is autograd's."""
    import torch

    torch.set_num_threads(threads)

    def prepare(arrays, p):
        x, gy = torch.from_numpy(arrays.x), torch.from_numpy(arrays.gy)
        leaf = x.clone().requires_grad_()

        def both():
            y = torch.nn.functional.dropout(leaf, p)
            return y, torch.autograd.grad(y, leaf, gy)[0]

        return lambda: torch.nn.functional.dropout(x, p), both

    return Contestant("torch", torch.__version__, prepare, lambda y: y.detach().numpy())


@contextmanager
def silence():
    """Send what C++ code prints to stderr nowhere; Python's exceptions rise all the same."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def import_tensorflow(threads):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silence():  # at import it greets before it reads that
        import tensorflow

    # Once TensorFlow has run something it refuses this; then it is the same number again.
    if tensorflow.config.threading.get_intra_op_parallelism_threads() != threads:
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


def graph_calls(tensorflow, drop, arrays):
    """The calls of a TensorFlow function, as a graph: faster than eager at each size tried."""
    x, gy = tensorflow.constant(arrays.x), tensorflow.constant(arrays.gy)

    def with_gradient(x, gy):
        with tensorflow.GradientTape() as tape:
            tape.watch(x)
            y = drop(x)
        return y, tape.gradient(y, x, gy)

    forward = tensorflow.function(drop, autograph=False)
    both = tensorflow.function(with_gradient, autograph=False)
    return lambda: forward(x), lambda: both(x, gy)


def tensorflow_peer(threads, _):
    """`tf.nn.dropout` in a `tf.function`; the backward is GradientTape's."""
    tensorflow = import_tensorflow(threads)

    def prepare(arrays, p):
        return graph_calls(tensorflow, lambda x: tensorflow.nn.dropout(x, rate=p), arrays)

    return Contestant("tensorflow", tensorflow.__version__, prepare)


def keras_peer(threads, dtype):
    """`keras.layers.Dropout` on TensorFlow, in a `tf.function` as `fit` has it."""
    if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
        raise RuntimeError("raced on its tensorflow backend only, and KERAS_BACKEND names another")
    tensorflow = import_tensorflow(threads)
    import keras

    def prepare(arrays, p):
        layer = keras.layers.Dropout(p, dtype=dtype)
        return graph_calls(tensorflow, lambda x: layer(x, training=True), arrays)

    return Contestant("keras", keras.__version__, prepare)


def import_jax(threads, dtype):
    # Read when the CPU client is made; older releases know the one name, newer ones the other.
    os.environ["NPROC"] = os.environ["PJRT_NPROC"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    return jax


def jax_peer(threads, dtype):
    """Bernoulli and where under `jit`, with the key split inside; the backward is that of `vjp`."""
    jax = import_jax(threads, dtype)

    def prepare(arrays, p):
        def drop(key, x):
            return jax.numpy.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0)

        @jax.jit
        def forward(key, x):
            key, now = jax.random.split(key)
            return key, drop(now, x)

        @jax.jit
        def both(key, x, gy):
            key, now = jax.random.split(key)
            y, pull = jax.vjp(lambda x: drop(now, x), x)
            return key, (y, pull(gy)[0])

        key = jax.random.key(secrets.randbits(31))
        x, gy = jax.numpy.asarray(arrays.x), jax.numpy.asarray(arrays.gy)

        def run(function, *arrays):
            nonlocal key
            key, result = function(key, *arrays)
            return jax.block_until_ready(result)

        return lambda: run(forward, x), lambda: run(both, x, gy)

    return Contestant("jax", jax.__version__, prepare)


PEERS = {
    "numpy": numpy_peer,
    "torch": torch_peer,
    "tensorflow": tensorflow_peer,
    "jax": jax_peer,
    "keras": keras_peer,
}


def installed():
    """The names of the peers that can be imported, without importing them."""
    return [name for name in PEERS if find_spec(name)]


# ---- the check --------------------------------------------------------------------------------


def known_arrays(n, dtype):
    """Arrays of n elements; none of x and gy is 0, so that a 0 in y or gx is a dropped element."""
    at = np.arange(n)
    x, gy = (1 + at % 97).astype(dtype), (1 + at % 89).astype(dtype)
    return Arrays(x, gy, np.zeros_like(x), np.zeros_like(x))


def close(a, b):
    """Whether two arrays are equal but for rounding, and 0 in the same places."""
    return np.allclose(a, b, rtol=ULPS * np.finfo(a.dtype).eps, atol=0)


def wrong_dropout(name, x, y, p):
    """What is wrong with y as a dropout of x, or None."""
    kept = y != 0
    n, count = kept.size, int(kept.sum())
    expected, bound = n * (1 - p), keep_bound(n, p)
    if abs(count - expected) > bound:
        right = f"{expected:.0f} +- {bound:.0f}"
        return f"{name} kept {count} of {n} elements, but {right} are right at p={p}"
    if not close(y, np.where(kept, x / (1 - p), 0)):
        return f"{name} does not scale kept elements by 1/(1 - p) at p={p}"
    return None


def wrong(contestant, dtype, p):
    """What is wrong with a contestant's dropout and its gradient, as a sentence, or None."""
    arrays = known_arrays(CHECKED, dtype)
    x, gy = arrays.x, arrays.gy
    forward, both = contestant.prepare(arrays, p)
    first = np.array(contestant.as_array(forward()))  # a copy: the next call may write there
    y, gx = (np.array(contestant.as_array(array)) for array in both())
    for name, result in ("forward", first), ("forward+backward", y):
        if result.dtype != x.dtype or result.shape != x.shape:
            return f"{name} returned {result.dtype} of shape {result.shape}"
        if reason := wrong_dropout(name, x, result, p):
            return reason
    if not close(gx, np.where(y != 0, gy / (1 - p), 0)):
        return "the gradient is not that of the mask drawn in the forward"
    # Two masks differ in 2 p (1 - p) of their elements; where hardly any should, chance may win.
    if CHECKED * p * (1 - p) > 100 and np.array_equal(first != 0, y != 0):
        return "two calls drew the same mask"
    return None


def cpus_used(contestant, dtype, p, seconds=0.2):
    """How many CPUs a contestant keeps busy: shows whether it could be held to its threads."""
    forward, _ = contestant.prepare(known_arrays(CHECKED, dtype), p)
    forward()
    began, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        forward()
    return (time.process_time() - busy) / (time.perf_counter() - began)

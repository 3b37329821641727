"""The implementations of dropout that `cdropout bench` times, and copies for comparison.

A factory takes the number of threads and the name of an element type, and returns an
Implementation. A framework is imported only when a factory that needs it is called.
"""

import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

import cdropout as cd
from cdropout._core import streaming_copy
from cdropout._core.dtypes import element_type

MIN_COPY = 1 << 18  # minimum bytes per thread; smaller parts do not save time


class Arrays(NamedTuple):
    """The arrays of a measurement: the input x, the output y, and the gradients gx and gy."""

    x: np.ndarray
    gy: np.ndarray
    y: np.ndarray
    gx: np.ndarray


class Implementation(NamedTuple):
    """An implementation of dropout.

    `prepare(arrays, p)` returns two functions without arguments: `forward()` returns y, and
    `both()` returns (y, gx). Each call draws a new mask, and returns when its result is ready.
    """

    name: str
    version: str
    prepare: Callable[[Arrays, float], tuple[Callable[[], Any], Callable[[], Any]]]
    as_array: Callable[[Any], np.ndarray] = np.asarray


def example_arrays(n, dtype):
    """Return Arrays of n elements. x and gy contain no 0: a 0 in y or gx is a dropped element."""
    i, kind = np.arange(n), element_type(dtype)
    x, gy = (1 + i % 97).astype(kind), (1 + i % 89).astype(kind)
    return Arrays(x, gy, np.zeros_like(x), np.zeros_like(x))


# ---- copies -----------------------------------------------------------------------------------


def split_copy(copy, target, source, pool, threads):
    """Return a function of no arguments that copies source to target on up to `threads` threads."""
    count = min(threads, target.size // MIN_COPY)
    if count < 2:
        return lambda: copy(target, source)
    parts = np.array_split(target, count), np.array_split(source, count)
    return lambda: list(pool.map(copy, *parts))


def prepare_copy(copy, threads=1):
    """Return a function `prepare` of copies that read and write the same arrays as dropout."""
    pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def prepare(arrays, _):
        x, gy, y, gx = (array.view(np.uint8) for array in arrays)
        forward, backward = (split_copy(copy, *pair, pool, threads) for pair in ((y, x), (gx, gy)))
        return forward, lambda: (forward(), backward())

    return prepare


def copies(threads):
    """Return {name: prepare} of copies, whose times show the memory bandwidth.

    `memcpy` uses one thread and `memcpy-threads` uses all threads. `memcpy-stream` uses all threads
    and streaming stores, which do not read the memory that is overwritten. The C library uses
    streaming stores only for large copies; on some machines, these are hundreds of megabytes.
    """
    found = {"memcpy": prepare_copy(np.copyto)}
    if threads > 1:
        found["memcpy-threads"] = prepare_copy(np.copyto, threads)
    if streaming_copy.streams:
        found["memcpy-stream"] = prepare_copy(streaming_copy.stream_copy, threads)
    return found


# ---- NumPy ------------------------------------------------------------------------------------


def cdropout_out(threads, _):
    """Return an Implementation with `cdropout.dropout`, which writes to reused arrays (`out=`)."""
    cd.set_num_threads(threads)

    def prepare(arrays, p):
        x, gy, y, gx = arrays

        def both():
            _, mask = cd.dropout(x, p, return_mask=True, out=y)
            return y, cd.dropout_backward(gy, mask, out=gx)

        return lambda: cd.dropout(x, p, out=y), both

    return Implementation("cdropout", cd.__version__, prepare)


def cdropout_new(threads, _):
    """Return an Implementation with `cdropout.dropout`, which returns new arrays."""
    cd.set_num_threads(threads)

    def prepare(arrays, p):
        def both():
            y, mask = cd.dropout(arrays.x, p, return_mask=True)
            return y, cd.dropout_backward(arrays.gy, mask)

        return lambda: cd.dropout(arrays.x, p), both

    return Implementation("cdropout-new", cd.__version__, prepare)


def numpy_out(*_):
    """Return an Implementation that compares uniform numbers with p, in reused arrays."""
    random = np.random.default_rng()

    def prepare(arrays, p):
        x, gy, y, gx = arrays
        drawn = np.float64 if x.dtype == np.float64 else np.float32
        uniform, mask = np.zeros(x.shape, drawn), np.zeros_like(x)
        keep = np.zeros(x.shape, np.bool_)
        scale = x.dtype.type(1 / (1 - p))

        def forward():
            random.random(out=uniform, dtype=drawn)
            np.greater_equal(uniform, p, out=keep)
            np.multiply(keep, scale, out=mask)
            return np.multiply(x, mask, out=y)

        return forward, lambda: (forward(), np.multiply(gy, mask, out=gx))

    return Implementation("numpy", np.__version__, prepare)


def multiply_by(name, scaled_mask):
    """Return an Implementation that multiplies by `scaled_mask(shape, p)`, in new arrays."""

    def prepare(arrays, p):
        x, gy = arrays.x, arrays.gy

        def both():
            mask = scaled_mask(x.shape, p).astype(x.dtype)
            return x * mask, gy * mask

        return lambda: x * scaled_mask(x.shape, p).astype(x.dtype), both

    return Implementation(name, np.__version__, prepare)


def numpy_rand(*_):
    """Return an Implementation with `np.random.rand`, a legacy function taught in many courses."""
    return multiply_by("numpy-rand", lambda shape, p: (np.random.rand(*shape) >= p) / (1 - p))


def numpy_binomial(*_):
    """Return an Implementation that draws a binomial number with one trial per element."""
    binomial = np.random.default_rng().binomial
    return multiply_by("numpy-binomial", lambda shape, p: binomial(1, 1 - p, shape) / (1 - p))


# ---- PyTorch ----------------------------------------------------------------------------------


def import_torch(threads):
    import torch

    torch.set_num_threads(threads)
    return torch


def to_torch(torch, array):
    """Return a tensor with the memory of array; `from_numpy` rejects types of ml_dtypes."""
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    integers = array.view(f"int{8 * array.itemsize}")
    return torch.from_numpy(integers).view(getattr(torch, array.dtype.name))


def from_torch(torch, tensor):
    tensor = tensor.detach()
    kind = element_type(str(tensor.dtype).removeprefix("torch."))
    if kind.isbuiltin == 1:
        return tensor.numpy()
    return tensor.view(getattr(torch, f"int{8 * kind.itemsize}")).numpy().view(kind)


def torch_autograd(torch, name, dropout, wrap=lambda function: function):
    """Return an Implementation that differentiates `wrap(lambda x: dropout(x, p))` by autograd."""

    def prepare(arrays, p):
        drop = wrap(lambda x: dropout(x, p))
        x, gy = to_torch(torch, arrays.x), to_torch(torch, arrays.gy)
        leaf = x.clone().requires_grad_()

        def both():
            y = drop(leaf)
            return y, torch.autograd.grad(y, leaf, gy)[0]

        return lambda: drop(x), both

    return Implementation(name, torch.__version__, prepare, partial(from_torch, torch))


def torch_eager(threads, _):
    """Return an Implementation with `torch.nn.functional.dropout` in eager mode."""
    torch = import_torch(threads)
    return torch_autograd(torch, "torch", torch.nn.functional.dropout)


def torch_adapter(threads, _):
    """Return an Implementation with `cdropout.torch.dropout`."""
    torch = import_torch(threads)
    from cdropout.torch import dropout

    return torch_autograd(torch, "cdropout-torch", dropout)


def torch_compiled(threads, _):
    """Return an Implementation that `torch.compile` compiles separately for each size."""
    torch = import_torch(threads)

    def wrap(function):
        torch.compiler.reset()  # otherwise torch.compile compiles at most eight sizes
        return torch.compile(function, dynamic=False)

    return torch_autograd(torch, "torch-compile", torch.nn.functional.dropout, wrap)


def torch_native(threads, _):
    """Return an Implementation with `torch.native_dropout`, which F.dropout uses on GPUs."""
    torch = import_torch(threads)

    def prepare(arrays, p):
        x, gy = to_torch(torch, arrays.x), to_torch(torch, arrays.gy)
        backward = torch.ops.aten.native_dropout_backward

        def both():
            y, keep = torch.native_dropout(x, p, True)
            return y, backward(gy, keep, 1 / (1 - p))

        return lambda: torch.native_dropout(x, p, True)[0], both

    as_array = partial(from_torch, torch)
    return Implementation("torch-native", torch.__version__, prepare, as_array)


# ---- TensorFlow and Keras ---------------------------------------------------------------------


@contextmanager
def discard_stderr():
    """Discard what C++ code prints to standard error."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def import_tensorflow(threads):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with discard_stderr():  # the import prints messages before it reads TF_CPP_MIN_LOG_LEVEL
        import tensorflow

    # TensorFlow accepts these settings only before its first operation, so later calls skip them.
    if tensorflow.config.threading.get_intra_op_parallelism_threads() != threads:
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
        tensorflow.config.set_visible_devices([], "GPU")
        tensorflow.get_logger().setLevel("ERROR")  # otherwise each size causes a warning
    return tensorflow


def tensorflow_graph(tensorflow, name, library, make_dropout):
    """Return an Implementation with a `tf.function`, which is faster than eager calls."""

    def prepare(arrays, p):
        drop = make_dropout(p)
        x, gy = tensorflow.constant(arrays.x), tensorflow.constant(arrays.gy)

        def with_gradient(x, gy):
            with tensorflow.GradientTape() as tape:
                tape.watch(x)
                y = drop(x)
            return y, tape.gradient(y, x, gy)

        forward = tensorflow.function(drop, autograph=False)
        both = tensorflow.function(with_gradient, autograph=False)
        return lambda: forward(x), lambda: both(x, gy)

    return Implementation(name, library.__version__, prepare)


def tensorflow_nn(threads, _):
    """Return an Implementation with `tf.nn.dropout`."""
    tensorflow = import_tensorflow(threads)
    dropout = tensorflow.nn.dropout
    return tensorflow_graph(
        tensorflow, "tensorflow", tensorflow, lambda p: lambda x: dropout(x, rate=p)
    )


def tensorflow_adapter(threads, _):
    """Return an Implementation with `cdropout.tensorflow.dropout`."""
    tensorflow = import_tensorflow(threads)
    from cdropout.tensorflow import dropout

    cd.set_num_threads(threads)
    return tensorflow_graph(
        tensorflow, "cdropout-tensorflow", tensorflow, lambda p: lambda x: dropout(x, p)
    )


def keras_layer(threads, dtype):
    """Return an Implementation with `keras.layers.Dropout` in a `tf.function`, as in `fit`."""
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise RuntimeError(f"KERAS_BACKEND has to be tensorflow, but got {backend}")
    tensorflow = import_tensorflow(threads)
    import keras

    def make_dropout(p):
        return partial(keras.layers.Dropout(p, dtype=dtype), training=True)

    return tensorflow_graph(tensorflow, "keras", keras, make_dropout)


# ---- JAX --------------------------------------------------------------------------------------


def import_jax(threads, dtype):
    # JAX reads these variables when it creates the CPU client; older releases read only NPROC.
    os.environ["NPROC"] = os.environ["PJRT_NPROC"] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    import jax

    jax.config.update("jax_enable_x64", dtype == "float64")
    return jax


def jitted_calls(jax, key, arrays, p):
    """Return `forward` and `both`, which are compiled by `jit`. Each call also splits the key."""

    def drop(key, x):
        return jax.numpy.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0)

    @jax.jit
    def forward(key, x):
        key, subkey = jax.random.split(key)
        return key, drop(subkey, x)

    @jax.jit
    def both(key, x, gy):
        key, subkey = jax.random.split(key)
        y, vjp = jax.vjp(lambda x: drop(subkey, x), x)
        return key, (y, vjp(gy)[0])

    x, gy = jax.numpy.asarray(arrays.x), jax.numpy.asarray(arrays.gy)

    def run(function, *arrays):
        nonlocal key
        key, result = function(key, *arrays)
        return jax.block_until_ready(result)

    return lambda: run(forward, x), lambda: run(both, x, gy)


def jax_jit(threads, dtype, *, name, generator):
    """Return an Implementation with `jax.random.bernoulli` and the JAX generator `generator`."""
    jax = import_jax(threads, dtype)

    def prepare(arrays, p):
        key = jax.random.key(secrets.randbits(31), impl=generator)
        return jitted_calls(jax, key, arrays, p)

    return Implementation(name, jax.__version__, prepare)


# ---- all of them ------------------------------------------------------------------------------

OURS = {"cdropout": cdropout_out, "cdropout-new": cdropout_new}
ADAPTERS = {"cdropout-torch": torch_adapter, "cdropout-tensorflow": tensorflow_adapter}
PEERS = {
    "numpy": numpy_out,
    "numpy-rand": numpy_rand,
    "numpy-binomial": numpy_binomial,
    "torch": torch_eager,
    "torch-native": torch_native,
    "torch-compile": torch_compiled,
    "tensorflow": tensorflow_nn,
    "jax": partial(jax_jit, name="jax", generator="threefry2x32"),
    "jax-rbg": partial(jax_jit, name="jax-rbg", generator="rbg"),
    "keras": keras_layer,
}
LIBRARIES = {
    "numpy": "NumPy",
    "torch": "PyTorch",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "keras": "Keras",
}
DESCRIPTIONS = {
    "memcpy": "a copy of the same bytes by np.copyto, with one thread",
    "memcpy-threads": "the same copy, divided among all threads that --threads allows",
    "memcpy-stream": "by all threads that --threads allows, with stores that bypass the cache",
    "cdropout": "cdropout.dropout, which writes to an existing array (out=)",
    "cdropout-new": "cdropout.dropout, which returns a new array",
    "cdropout-torch": "cdropout.torch.dropout, which returns a new tensor",
    "cdropout-tensorflow": "cdropout.tensorflow.dropout in a tf.function",
    "numpy": "random(out=u) >= p, times x / (1 - p), in reused arrays",
    "numpy-rand": "np.random.rand(*shape) >= p, the legacy generator",
    "numpy-binomial": "a binomial number with one trial per element",
    "torch": "torch.nn.functional.dropout",
    "torch-native": "torch.native_dropout",
    "torch-compile": "torch.nn.functional.dropout, compiled by torch.compile",
    "tensorflow": "tf.nn.dropout in a tf.function",
    "jax": "jax.random.bernoulli, compiled by jax.jit",
    "jax-rbg": "the same with the generator rbg",
    "keras": "keras.layers.Dropout in a tf.function",
}


def adapters_of(names):
    """Return the names of the adapters to the frameworks in `names`."""
    return [name for name in ADAPTERS if name.removeprefix("cdropout-") in names]


def is_variant(name: str) -> bool:
    """Return whether an implementation uses the same library as an earlier one in PEERS."""
    return "-" in name


def missing(name: str) -> str | None:
    """Return the name of a missing package that `name` needs, or None. Import no package."""
    backend = ["tensorflow"] if name == "keras" else []
    return next((each for each in [name.partition("-")[0], *backend] if not find_spec(each)), None)


def installed() -> list[str]:
    """Return the names in PEERS whose packages are installed. Import no package."""
    return [name for name in PEERS if missing(name) is None]


def not_installed():
    """Return {library: missing package} of the libraries that cannot be timed.

    Each package is also the name of an extra of cdropout.
    """
    return {name: package for name in LIBRARIES if (package := missing(name))}

"""The contestants from the frameworks: dropout as each one's users write it.

They have no way to write to memory that is given, so each call allocates its results.
"""

import os
import secrets
from contextlib import contextmanager
from functools import partial

from cdropout._core.dtypes import element_type
from cdropout.bench.contestant import Contestant

# ---- PyTorch ----------------------------------------------------------------------------------


def import_torch(threads):
    import torch

    torch.set_num_threads(threads)
    return torch


def to_torch(torch, array):
    """Return a tensor over the same memory; `from_numpy` does not take the types of ml_dtypes."""
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


def autograd_contestant(torch, name, wrapped, dropout=None):
    """`torch.nn.functional.dropout`, or another, as `wrapped` makes it; backward is autograd's."""
    dropout = dropout or torch.nn.functional.dropout

    def prepare(arrays, p):
        drop = wrapped(lambda x: dropout(x, p))
        x, gy = to_torch(torch, arrays.x), to_torch(torch, arrays.gy)
        leaf = x.clone().requires_grad_()

        def both():
            y = drop(leaf)
            return y, torch.autograd.grad(y, leaf, gy)[0]

        return lambda: drop(x), both

    return Contestant(name, torch.__version__, prepare, partial(from_torch, torch))


def torch_eager(threads, _):
    """`torch.nn.functional.dropout`, eager."""
    return autograd_contestant(import_torch(threads), "torch", lambda drop: drop)


def torch_adapter(threads, _):
    """`cdropout.torch.dropout`: this package as PyTorch's users call it."""
    from cdropout.torch import dropout

    return autograd_contestant(import_torch(threads), "cdropout-torch", lambda drop: drop, dropout)


def torch_compiled(threads, _):
    """The same under `torch.compile`, anew for each size: code for all of them is slower."""
    torch = import_torch(threads)

    def compiled(drop):
        torch.compiler.reset()  # else it gives up, without a word, after eight sizes
        return torch.compile(drop, dynamic=False)

    return autograd_contestant(torch, "torch-compile", compiled)


def torch_native(threads, _):
    """`torch.native_dropout` and its backward, without autograd: what F.dropout uses on GPUs."""
    torch = import_torch(threads)

    def prepare(arrays, p):
        x, gy = to_torch(torch, arrays.x), to_torch(torch, arrays.gy)
        backward = torch.ops.aten.native_dropout_backward

        def both():
            y, keep = torch.native_dropout(x, p, True)
            return y, backward(gy, keep, 1 / (1 - p))

        return lambda: torch.native_dropout(x, p, True)[0], both

    as_array = partial(from_torch, torch)
    return Contestant("torch-native", torch.__version__, prepare, as_array)


# ---- TensorFlow and Keras ---------------------------------------------------------------------


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
        tensorflow.get_logger().setLevel("ERROR")  # it warns of a graph for each size
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


def tensorflow_graph(threads, _):
    """`tf.nn.dropout` in a `tf.function`; the backward is GradientTape's."""
    tensorflow = import_tensorflow(threads)

    def prepare(arrays, p):
        return graph_calls(tensorflow, lambda x: tensorflow.nn.dropout(x, rate=p), arrays)

    return Contestant("tensorflow", tensorflow.__version__, prepare)


def tensorflow_adapter(threads, _):
    """`cdropout.tensorflow.dropout` in a `tf.function`; the backward is GradientTape's."""
    tensorflow = import_tensorflow(threads)
    from cdropout import set_num_threads
    from cdropout.tensorflow import dropout

    set_num_threads(threads)

    def prepare(arrays, p):
        return graph_calls(tensorflow, lambda x: dropout(x, p), arrays)

    return Contestant("cdropout-tensorflow", tensorflow.__version__, prepare)


def keras_layer(threads, dtype):
    """`keras.layers.Dropout` on TensorFlow, in a `tf.function` as `fit` has it."""
    if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
        raise RuntimeError("raced on its tensorflow backend only, and KERAS_BACKEND names another")
    tensorflow = import_tensorflow(threads)
    import keras

    def prepare(arrays, p):
        layer = keras.layers.Dropout(p, dtype=dtype)
        return graph_calls(tensorflow, lambda x: layer(x, training=True), arrays)

    return Contestant("keras", keras.__version__, prepare)


# ---- JAX --------------------------------------------------------------------------------------


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


def jitted_calls(jax, key, arrays, p):
    """Bernoulli and where under `jit`, with the key split inside; the backward is that of `vjp`."""

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

    x, gy = jax.numpy.asarray(arrays.x), jax.numpy.asarray(arrays.gy)

    def run(function, *arrays):
        nonlocal key
        key, result = function(key, *arrays)
        return jax.block_until_ready(result)

    return lambda: run(forward, x), lambda: run(both, x, gy)


def jax_contestant(threads, dtype, *, name, generator):
    """JAX with one of its generators."""
    jax = import_jax(threads, dtype)

    def prepare(arrays, p):
        key = jax.random.key(secrets.randbits(31), impl=generator)
        return jitted_calls(jax, key, arrays, p)

    return Contestant(name, jax.__version__, prepare)


FRAMEWORKS = {
    "torch": torch_eager,
    "torch-native": torch_native,
    "torch-compile": torch_compiled,
    "tensorflow": tensorflow_graph,
    "jax": partial(jax_contestant, name="jax", generator="threefry2x32"),
    "jax-rbg": partial(jax_contestant, name="jax-rbg", generator="rbg"),
    "keras": keras_layer,
}

"""JAX keys and arrays, and the result of dropout for a JAX key, computed with NumPy."""

import numpy as np
import pytest

import cdropout as cd

from .arrays import normal
from .requirements import import_or_skip

jax = import_or_skip("jax")

from cdropout.jax import seed_and_call  # noqa: E402

KEY = jax.random.key(7)
eager_and_jit = pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])


def normal_jax(shape, dtype="float32", seed=1):
    """Return a JAX array of normal random numbers."""
    return jax.numpy.asarray(normal(shape, dtype, seed))


def numpy_dropout(key, x, p, broadcast_dims=()):
    """Return the result of dropout with this key, computed with NumPy."""
    axes = {axis % x.ndim for axis in broadcast_dims}
    shape = [1 if axis in axes else length for axis, length in enumerate(x.shape)]
    mask = cd.Mask(shape, p, *seed_and_call(key))
    return cd.dropout_backward(np.asarray(x), np.broadcast_to(mask, x.shape), p=p)

"""Dropout functions with the arguments of those in `tf.nn`."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import tensorflow as tf

from cdropout._core import dtypes
from cdropout.tensorflow import op

FLOATS = tuple(getattr(tf, name) for name in dtypes.FLOATS)
NO_NOISE_SHAPE = 0  # with any scalar, the op applies a mask without broadcast axes


@tf.autograph.experimental.do_not_convert
def dropout(
    x: Any, rate: Any, noise_shape: Any = None, seed: int | None = None, name: str | None = None
) -> tf.Tensor:
    """Zero each element of `x` with probability `rate`; scale the others by ``1 / (1 - rate)``.

    The arguments are those of `tf.nn.dropout`. Each call applies a new mask.

    Parameters
    ----------
    x : Tensor
        A tensor of float16, bfloat16, float32 or float64, of any shape, on the CPU. `tf.nn.dropout`
        computes the result for other types, for ragged tensors, on other devices, and in functions
        that XLA compiles (``jit_compile=True``).
    rate : float or scalar Tensor
        The probability that an element is dropped: a number in [0, 1), or a tensor of any float
        type with a value in [0, 1]. The result has no derivative with respect to `rate`.
    noise_shape : sequence of int and None, or Tensor, optional
        The shape of the mask, aligned with the shape of `x` as in broadcasting. Each entry is 1 or
        the length of the axis; None stands for that length. All elements along an axis with entry
        1 share one draw.
    seed : int, optional
        The seed of the operation. Together with the seed of `tf.random.set_seed`, it determines the
        masks, as in TensorFlow's own random operations.
    name : str, optional
        The name of the operation in a graph.

    Returns
    -------
    Tensor
        A tensor of the shape and type of `x`. It is `x` itself if `rate` is the number 0.

    Raises
    ------
    ValueError
        If `rate` is a number not in [0, 1), or is neither a number nor a scalar tensor of floats,
        if `x` is not a tensor of floats, or if `noise_shape` is not one-dimensional.
    tf.errors.InvalidArgumentError
        If a tensor `rate` is not in [0, 1], `noise_shape` does not fit `x`, or `x` has more than 64
        dimensions. The error is raised when the operation runs.

    Notes
    -----
    The gradient draws the mask again. In a graph, it needs no stored tensor of the size of
    `x`; in eager mode, a `tf.GradientTape` keeps `x`. Dropped elements are +0.0 even where `x` is
    NaN or infinite.

    In a graph, or if `seed` is given, a random operation of TensorFlow draws the seed and the call
    number of each mask. Otherwise, both numbers come from TensorFlow's seeds
    (`tf.compat.v1.random.get_seed`), or from the system's entropy if no seed was set.

    Examples
    --------
    >>> import tensorflow as tf
    >>> from cdropout.tensorflow import dropout
    >>> tf.random.set_seed(0)
    >>> dropout(tf.ones([2, 3]), 0.5).shape
    TensorShape([2, 3])
    """
    fallback = partial(tf.nn.dropout, x, rate, noise_shape, seed, name)
    return _dropout(x, rate, noise_shape, name, partial(_next_mask_id, seed), fallback)


@tf.autograph.experimental.do_not_convert
def stateless_dropout(
    x: Any,
    rate: Any,
    seed: Any,
    rng_alg: str = "auto_select",
    noise_shape: Any = None,
    name: str | None = None,
) -> tf.Tensor:
    """Apply the mask with the seed and the call number in `seed`.

    The arguments are those of `tf.nn.experimental.stateless_dropout`. With ``seed=[a, b]`` and
    without `noise_shape`, the mask is ``cdropout.Mask(x.shape, rate, seed=a, call=b)``.

    Parameters
    ----------
    x, rate, noise_shape, name
        As in `dropout`.
    seed : sequence of two ints, or int32 or int64 Tensor of shape [2]
        The seed and the call number of the mask, in [-2**63, 2**64). A negative number n stands for
        n + 2**64.
    rng_alg : {"auto_select"}
        Must be "auto_select", since cdropout has only one algorithm.

    Returns
    -------
    Tensor
        A tensor of the shape and type of `x`. It is `x` itself if `rate` is the number 0.

    Raises
    ------
    ValueError
        For the same reasons as in `dropout`, and if `seed` or `rng_alg` is not one of the values
        described above.
    tf.errors.InvalidArgumentError
        For the same reasons as in `dropout`.

    Notes
    -----
    `tf.nn.experimental.stateless_dropout` is called in the cases in which `dropout` calls
    `tf.nn.dropout`. From the same seed, TensorFlow's function draws a different mask.

    Examples
    --------
    >>> import cdropout as cd
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> from cdropout.tensorflow import stateless_dropout
    >>> y = stateless_dropout(tf.ones(5), 0.5, seed=[7, 0])
    >>> np.array_equal(y, cd.Mask(5, 0.5, seed=7, call=0).apply(np.ones(5, np.float32)))
    True
    """
    if rng_alg != "auto_select":
        raise ValueError(
            f"`rng_alg` must be 'auto_select': cdropout has one algorithm. Received: {rng_alg!r}"
        )
    stateless = tf.nn.experimental.stateless_dropout
    fallback = partial(stateless, x, rate, seed, rng_alg, noise_shape, name)
    return _dropout(x, rate, noise_shape, name, partial(_as_mask_id, seed), fallback)


def _dropout(
    x: Any,
    rate: Any,
    noise_shape: Any,
    name: str | None,
    make_mask_id: Callable[[], Any],
    fallback: Callable[[], tf.Tensor],
) -> tf.Tensor:
    """Return the result of the op, or of `fallback` if the op does not support the arguments."""
    if isinstance(rate, Real):
        rate = float(rate)
        if rate != rate:  # NaN, which TensorFlow does not reject
            raise ValueError(
                "`rate` must be a scalar tensor or a float in the range [0, 1). Received: rate=nan"
            )
        if not 0 < rate < 1:
            return fallback()  # returns x or raises TensorFlow's error
    elif not tf.is_tensor(rate):
        return fallback()  # raises TensorFlow's error
    if isinstance(x, tf.RaggedTensor):
        return fallback()
    x = tf.convert_to_tensor(x, name="x")
    if not is_supported(x):
        return fallback()
    if tf.executing_eagerly():
        return apply_mask(x, make_mask_id(), rate, noise_shape, name)
    with tf.name_scope(name or "dropout"):
        return apply_mask(x, make_mask_id(), rate, noise_shape)


def is_supported(x: tf.Tensor) -> bool:
    """Return whether the op is registered and supports x; functions for XLA are not supported."""
    if op.apply is None or x.dtype not in FLOATS:
        return False
    if x.device and "CPU:" not in x.device:
        return False
    return tf.executing_eagerly() or not op.is_traced_for_xla()


def apply_mask(
    x: tf.Tensor, mask_id: Any, rate: Any, noise_shape: Any = None, name: str | None = None
) -> tf.Tensor:
    """Return the supported tensor x with a mask applied; `rate` is a float or a tensor."""
    if not isinstance(rate, float):
        rate = _as_float64(rate)
    noise_shape = NO_NOISE_SHAPE if noise_shape is None else _as_noise_shape(noise_shape)
    return op.apply(x, mask_id, rate, noise_shape, name)


def _as_float64(rate: Any) -> tf.Tensor:
    """Return a scalar tensor of floats as float64; raise a ValueError for any other tensor."""
    rate.shape.assert_has_rank(0)
    if not rate.dtype.is_floating:
        raise ValueError(
            f"`rate.dtype` must be a floating point type. Received: rate.dtype={rate.dtype}"
        )
    return tf.cast(rate, tf.float64)


def _as_noise_shape(noise_shape: Any) -> Any:
    """Return noise_shape as the op requires it; raise a ValueError if its rank is not 1."""
    if isinstance(noise_shape, tf.TensorShape):
        noise_shape = noise_shape.as_list()
    if isinstance(noise_shape, (tuple, list)):
        lengths = [op.AXIS_LENGTH if length is None else length for length in noise_shape]
        if any(tf.is_tensor(length) for length in lengths):
            noise_shape = tf.stack([tf.cast(length, tf.int64) for length in lengths])
        else:
            noise_shape = np.array(lengths, np.int64)
    else:
        noise_shape = tf.cast(noise_shape, tf.int64)
    tf.TensorShape(noise_shape.shape).assert_has_rank(1)
    return noise_shape


def _as_mask_id(seed: Any) -> Any:
    """Return the pair `seed` as a mask id; raise a ValueError if it is not valid."""
    if isinstance(seed, (tuple, list)) and len(seed) == 2 and all(map(_fits_64_bits, seed)):
        return np.array([int(number) % (1 << 64) for number in seed], np.uint64).view(np.int64)
    if not isinstance(seed, (tuple, list)) or any(tf.is_tensor(number) for number in seed):
        seed = tf.convert_to_tensor(seed)
        if seed.dtype in (tf.int32, tf.int64) and seed.shape.is_compatible_with([2]):
            return tf.cast(seed, tf.int64)
    raise ValueError(
        "`seed` must be two integers in [-2**63, 2**64), or an int32 or int64 tensor of shape [2]. "
        f"Received: seed={seed}"
    )


def _fits_64_bits(number: Any) -> bool:
    """Return whether `number` is an int in [-2**63, 2**64)."""
    is_int = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_int and -(1 << 63) <= int(number) < 1 << 64


def _next_mask_id(seed: int | None) -> Any:
    """Return the next mask id, which TensorFlow's seeds determine if they are set."""
    if seed is not None or not tf.executing_eagerly():
        return tf.random.uniform([2], tf.int64.min, tf.int64.max, tf.int64, seed=seed)
    # In eager mode, tf.random.uniform would create a kernel for each seed, which takes 0.4 ms
    graph_seed, first = tf.compat.v1.random.get_seed(None)
    if graph_seed is None:
        return np.frombuffer(os.urandom(16), np.int64)
    _, second = tf.compat.v1.random.get_seed(None)
    return np.array([graph_seed << 31 | first, second], np.int64)

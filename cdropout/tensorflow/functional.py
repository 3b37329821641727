"""Dropout as functions of TensorFlow's tensors: those of tf.nn, by their arguments and errors."""

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
ALL_DRAWN = 0  # as the op's noise_shape, any scalar


@tf.autograph.experimental.do_not_convert
def dropout(
    x: Any, rate: Any, noise_shape: Any = None, seed: int | None = None, name: str | None = None
) -> tf.Tensor:
    """Zero each element of `x` with probability `rate`; scale the others by ``1 / (1 - rate)``.

    Takes the arguments of `tf.nn.dropout`. Each call applies another mask.

    Parameters
    ----------
    x : Tensor
        Of any shape. Tensors of float16, bfloat16, float32 and float64 on the CPU are computed
        here. Other types, ragged tensors, other devices, and functions that XLA compiles
        (``jit_compile=True``) get `tf.nn.dropout`.
    rate : float or scalar Tensor
        The probability that an element is dropped: a number in [0, 1), or a tensor of any float
        type with a value in [0, 1]. There is no derivative with respect to it.
    noise_shape : sequence of int and None, or Tensor, optional
        The shape of the mask, aligned with that of `x` as in broadcasting: 1 where one draw is
        shared along an axis, otherwise the length of the axis, or None for it.
    seed : int, optional
        The seed of the operation. With `tf.random.set_seed` it determines the masks as it does
        for TensorFlow's own random operations.
    name : str, optional
        The name of the operation in a graph.

    Returns
    -------
    Tensor
        Of the shape and type of `x`. With a rate of 0, `x` itself.

    Raises
    ------
    ValueError
        If `rate` is a number outside of [0, 1), is neither a number nor a scalar tensor of floats,
        or `x` is not a tensor of floats.
    tf.errors.InvalidArgumentError
        When the operation runs, if a tensor `rate` is not in [0, 1], if `noise_shape` does not fit
        `x`, or `x` has more than 64 dimensions.

    Notes
    -----
    The gradient draws the mask again. In a graph nothing per element is kept for it; in eager mode
    a `tf.GradientTape` keeps `x`. Dropped elements are +0.0 even where `x` is NaN or infinite.

    In a graph a random operation of TensorFlow draws the seed and the call number of each mask.
    In eager mode they are made of TensorFlow's seeds (`tf.compat.v1.random.get_seed`), or of the
    system's entropy if none was set.

    Examples
    --------
    >>> import tensorflow as tf
    >>> from cdropout.tensorflow import dropout
    >>> tf.random.set_seed(0)
    >>> dropout(tf.ones([2, 3]), 0.5).shape
    TensorShape([2, 3])
    """
    own = partial(tf.nn.dropout, x, rate, noise_shape, seed, name)
    return _dropout(x, rate, noise_shape, name, partial(_next_mask_id, seed), own)


@tf.autograph.experimental.do_not_convert
def stateless_dropout(
    x: Any,
    rate: Any,
    seed: Any,
    rng_alg: str = "auto_select",
    noise_shape: Any = None,
    name: str | None = None,
) -> tf.Tensor:
    """Apply the mask that `seed` determines.

    Takes the arguments of `tf.nn.experimental.stateless_dropout`. With ``seed=[a, b]`` and without
    `noise_shape`, the result is that of ``cdropout.Mask(x.shape, rate, seed=a, call=b).apply(x)``.

    Parameters
    ----------
    x, rate, noise_shape, name
        As in `dropout`.
    seed : sequence of two ints, or int32 or int64 Tensor of shape [2]
        The seed and the call number of the mask. Numbers are in [-2**63, 2**64), and negative ones
        stand for their two's complements.
    rng_alg : {"auto_select"}
        There is one algorithm.

    Returns
    -------
    Tensor
        Of the shape and type of `x`. With a rate of 0, `x` itself.

    Raises
    ------
    ValueError, tf.errors.InvalidArgumentError
        As `dropout`, and a ValueError if `seed` is not as described, or `rng_alg` is another.

    Notes
    -----
    In functions that XLA compiles, off the CPU, and for other types, this is TensorFlow's own
    function with the same seed, which draws another mask.

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
    own = partial(tf.nn.experimental.stateless_dropout, x, rate, seed, rng_alg, noise_shape, name)
    return _dropout(x, rate, noise_shape, name, partial(_as_mask_id, seed), own)


def _dropout(
    x: Any,
    rate: Any,
    noise_shape: Any,
    name: str | None,
    make_mask_id: Callable[[], Any],
    own: Callable[[], tf.Tensor],
) -> tf.Tensor:
    """Apply the op where it can be used, and call TensorFlow's `own` function elsewhere."""
    if isinstance(rate, Real):
        rate = float(rate)
        if rate != rate:  # which TensorFlow takes
            raise ValueError(
                "`rate` must be a scalar tensor or a float in the range [0, 1). Received: rate=nan"
            )
        if not 0 < rate < 1:
            return own()  # x itself, or TensorFlow's error
    elif not tf.is_tensor(rate):
        return own()  # TensorFlow's error
    if isinstance(x, tf.RaggedTensor):
        return own()
    x = tf.convert_to_tensor(x, name="x")
    if not is_supported(x):
        return own()
    if tf.executing_eagerly():
        return apply(x, make_mask_id(), rate, noise_shape, name)
    with tf.name_scope(name or "dropout"):
        return apply(x, make_mask_id(), rate, noise_shape)


def is_supported(x: tf.Tensor) -> bool:
    """Return whether the op can take this tensor, as far as can be seen before a graph runs."""
    if op.apply is None or x.dtype not in FLOATS:
        return False
    if x.device and "CPU:" not in x.device:
        return False
    return tf.executing_eagerly() or not op.is_traced_for_xla()


def apply(
    x: tf.Tensor, mask_id: Any, rate: Any, noise_shape: Any = None, name: str | None = None
) -> tf.Tensor:
    """Apply the mask of a supported tensor. `rate` is a float, or a tensor."""
    if not isinstance(rate, float):
        rate = _as_float64(rate)
    noise = ALL_DRAWN if noise_shape is None else _as_noise(noise_shape)
    return op.apply(x, mask_id, rate, noise, name)


def _as_float64(rate: Any) -> tf.Tensor:
    """Return a scalar tensor of floats as float64; raise a ValueError for any other tensor."""
    rate.shape.assert_has_rank(0)
    if not rate.dtype.is_floating:
        raise ValueError(
            f"`rate.dtype` must be a floating point type. Received: rate.dtype={rate.dtype}"
        )
    return tf.cast(rate, tf.float64)


def _as_noise(noise_shape: Any) -> Any:
    """Return the noise_shape that the op takes; ValueError if it has not one dimension."""
    if isinstance(noise_shape, tf.TensorShape):
        noise_shape = noise_shape.as_list()
    if isinstance(noise_shape, (tuple, list)):
        noise_shape = [op.WHOLE if length is None else length for length in noise_shape]
        if not any(tf.is_tensor(length) for length in noise_shape):
            return np.array(noise_shape, np.int64)
        return tf.stack([tf.cast(length, tf.int64) for length in noise_shape])
    noise_shape = tf.cast(noise_shape, tf.int64)
    noise_shape.shape.assert_has_rank(1)
    return noise_shape


def _as_mask_id(seed: Any) -> Any:
    """Return the mask id of a seed; ValueError if it is not two ints, or a tensor of them."""
    if isinstance(seed, (tuple, list)) and len(seed) == 2 and all(map(_is_int64, seed)):
        return np.array([int(number) % (1 << 64) for number in seed], np.uint64).view(np.int64)
    if not isinstance(seed, (tuple, list)) or any(tf.is_tensor(number) for number in seed):
        seed = tf.convert_to_tensor(seed)
        if seed.dtype in (tf.int32, tf.int64) and seed.shape.is_compatible_with([2]):
            return tf.cast(seed, tf.int64)
    raise ValueError(
        "`seed` must be two integers in [-2**63, 2**64), or an int32 or int64 tensor of shape [2]. "
        f"Received: seed={seed}"
    )


def _is_int64(number: Any) -> bool:
    """Return whether this is an int that 64 bits can hold, signed or not."""
    is_int = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    return is_int and -(1 << 63) <= int(number) < 1 << 64


def _next_mask_id(seed: int | None) -> Any:
    """Return the id of the next mask, which TensorFlow's seeds determine if any was set."""
    if seed is not None or not tf.executing_eagerly():
        return tf.random.uniform([2], tf.int64.min, tf.int64.max, tf.int64, seed=seed)
    # In eager mode each operation with new seeds is a new kernel, which takes 0.4 ms.
    graph_seed, first = tf.compat.v1.random.get_seed(None)
    if graph_seed is None:
        return np.frombuffer(os.urandom(16), np.int64)
    _, second = tf.compat.v1.random.get_seed(None)
    return np.array([graph_seed << 31 | first, second], np.int64)

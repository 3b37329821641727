"""Dropout layers for Keras 3, with kernels for JAX, NumPy, PyTorch and TensorFlow."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cdropout._core.dropout import dropout
from cdropout._core.dtypes import FLOATS
from cdropout._core.mask import Mask, broadcast_strides
from cdropout.environment import check_version

try:
    import keras
except ImportError as error:
    if find_spec("keras") is None:
        raise ImportError(
            "cdropout.keras needs Keras: run `pip install 'cdropout[keras]'`"
        ) from error
    raise ImportError(
        f"cdropout.keras: Keras or its backend cannot be imported ({error}): "
        "install the backend, or select another one with the variable KERAS_BACKEND"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable

check_version(keras)

__all__ = ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"]


# ---- dropout per backend; `state` consists of a seed and a call number --------------------------


def _make_mask(state: Any, shape: tuple[int, ...], p: float, axes: tuple[int, ...]) -> Mask:
    seed, call = (int(number) & 0xFFFFFFFF for number in state)  # numbers are int32 with PyTorch
    return Mask(shape, p, seed, call, strides=broadcast_strides(shape, axes))


def _dropout_numpy(state: Any, x: Any, p: float, axes: tuple[int, ...]) -> Any:
    return dropout(x, mask=_make_mask(state, x.shape, p, axes))


def _dropout_torch(state: Any, x: Any, p: float, axes: tuple[int, ...]) -> Any:
    from cdropout.torch import dropout

    return dropout(x, mask=_make_mask(state.tolist(), tuple(x.shape), p, axes))


def _dropout_jax(state: Any, x: Any, p: float, axes: tuple[int, ...]) -> Any:
    from jax import numpy as jnp

    from cdropout.jax import dropout

    key = jnp.zeros(4, "uint32").at[1::2].set(state)  # two 64-bit numbers, higher half first
    return dropout(key, x, p, axes)


def _dropout_tensorflow(state: Any, x: Any, p: float, axes: tuple[int, ...]) -> Any:
    import tensorflow as tf

    from cdropout.tensorflow.functional import apply_mask

    noise_shape = [1 if axis in axes else None for axis in range(len(x.shape))]
    return apply_mask(x, tf.cast(state, tf.int64), p, noise_shape if axes else None)


DROPOUT_OF_BACKEND = {
    "numpy": _dropout_numpy,
    "torch": _dropout_torch,
    "jax": _dropout_jax,
    "tensorflow": _dropout_tensorflow,
}


def _dropout_for(x: Any) -> Callable[..., Any] | None:
    """Return the dropout function for x, or None if cdropout does not support x or the backend."""
    backend = keras.backend.backend()
    if keras.backend.standardize_dtype(x.dtype) not in FLOATS:
        return None
    if backend == "torch" and x.device.type != "cpu":
        return None
    if backend == "jax":
        from jax import default_backend

        if default_backend() != "cpu":
            return None
    if backend == "tensorflow":
        from cdropout.tensorflow.functional import is_supported

        if x.shape.rank is None or not is_supported(x):
            return None
    return DROPOUT_OF_BACKEND.get(backend)


# ---- the layers ---------------------------------------------------------------------------------


def _stored_seed(seed: Any) -> Any:
    """Return the seed that Keras stores: an int32 with PyTorch. `_make_mask` converts it back."""
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ValueError(f"seed has to be in [0, 2**32), but got {seed}")
    if isinstance(seed, int) and seed >= 2**31 and keras.backend.backend() == "torch":
        return seed - 2**32
    return seed


class _Layer:
    """Base class of the layers. Each subclass defines `_broadcast_axes`."""

    _supports_jit: bool

    @property
    def supports_jit(self) -> bool:
        """The assigned value, but False with TensorFlow, whose XLA cannot call the kernels."""
        return self._supports_jit and keras.backend.backend() != "tensorflow"

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        self._supports_jit = value  # the constructor of Keras assigns True

    def call(self: Any, inputs: Any, training: bool = False) -> Any:
        """Apply dropout to the inputs if training is true; otherwise return them unchanged."""
        if training and self.rate == 1:
            return keras.ops.zeros_like(inputs)
        apply_dropout = _dropout_for(inputs) if training and self.rate > 0 else None
        if apply_dropout is None:
            return super().call(inputs, training=training)  # type: ignore[misc]
        axes = self._broadcast_axes(tuple(inputs.shape))
        return apply_dropout(self.seed_generator.next(), inputs, self.rate, axes)


class _SpatialLayer(_Layer):
    """Base class of the layers that drop whole channels of each sample."""

    def _broadcast_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels_first = getattr(self, "data_format", None) == "channels_first"
        return tuple(range(2, len(shape)) if channels_first else range(1, len(shape) - 1))


@keras.saving.register_keras_serializable(package="cdropout")
class Dropout(_Layer, keras.layers.Dropout):
    """Replacement for `keras.layers.Dropout` with the same arguments.

    In training, a layer with `seed` and without `noise_shape` applies the mask
    ``cdropout.Mask(shape, rate, seed, i)`` in call i, counted from 0, with JAX, NumPy, PyTorch and
    TensorFlow. Keras's own implementation is used with other backends, on devices other than the
    CPU, for unsupported types, for TensorFlow tensors of unknown rank, and in TensorFlow functions
    that XLA compiles (``jit_compile=True``). With TensorFlow, Keras does not use XLA for models
    with this layer. A layer with rate 0 or 1 draws no mask and uses no call number.

    Parameters
    ----------
    rate : float
        The probability that an element is dropped, in [0, 1].
    noise_shape : tuple of int or None, optional
        The shape of the mask. Each entry is 1 or the length of the axis; None stands for that
        length. All elements along an axis with entry 1 share one draw. With TensorFlow, any entry
        is accepted for an axis of unknown length.
    seed : int, optional
        The seed of the masks, in [0, 2**32).

    Raises
    ------
    ValueError
        If rate is not in [0, 1], seed is not in [0, 2**32), or noise_shape does not fit the inputs
        of a call.
    """

    def __init__(
        self, rate: float, noise_shape: Any = None, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(rate, noise_shape, _stored_seed(seed), **kwargs)
        self.seed = seed

    def _broadcast_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        given = tuple(self.noise_shape or shape)
        noise_shape = (1,) * (len(shape) - len(given)) + given  # aligned as in NumPy broadcasting
        fits = [
            length is None or noise_length in (None, 1, length)
            for noise_length, length in zip(noise_shape, shape, strict=False)
        ]
        if len(noise_shape) != len(shape) or not all(fits):
            raise ValueError(
                "noise_shape has to contain 1, None or the length of each axis of the inputs, "
                f"{shape}, but got {given}"
            )
        return tuple(axis for axis, length in enumerate(noise_shape) if length == 1)


@keras.saving.register_keras_serializable(package="cdropout")
class SpatialDropout1D(_SpatialLayer, keras.layers.SpatialDropout1D):
    """Replacement for `keras.layers.SpatialDropout1D`, which drops whole channels."""

    def __init__(
        self, rate: float, seed: int | None = None, name: str | None = None, dtype: Any = None
    ) -> None:
        super().__init__(rate, _stored_seed(seed), name, dtype)
        self.seed = seed


@keras.saving.register_keras_serializable(package="cdropout")
class SpatialDropout2D(_SpatialLayer, keras.layers.SpatialDropout2D):
    """Replacement for `keras.layers.SpatialDropout2D`, which drops whole channels."""

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(rate, data_format, _stored_seed(seed), name, dtype)
        self.seed = seed


@keras.saving.register_keras_serializable(package="cdropout")
class SpatialDropout3D(_SpatialLayer, keras.layers.SpatialDropout3D):
    """Replacement for `keras.layers.SpatialDropout3D`, which drops whole channels."""

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(rate, data_format, _stored_seed(seed), name, dtype)
        self.seed = seed

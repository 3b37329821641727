"""Dropout layers for Keras 3, drawn by cdropout on each of its backends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cdropout._core.dropout import dropout
from cdropout._core.dtypes import FLOATS
from cdropout._core.mask import Mask, broadcast_strides

try:
    import keras

    if int(keras.__version__.split(".")[0]) < 3:
        raise ImportError(f"Keras {keras.__version__} is installed")
except ImportError as error:
    raise ImportError(
        "cdropout.keras needs Keras 3: run `pip install 'cdropout[keras]'`"
    ) from error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"]


# ---- the backends: a function of two words, the seed and the call number, that drops x -----------


def _mask(words: Any, shape: tuple[int, ...], p: float, shared: tuple[int, ...]) -> Mask:
    seed, call = (int(word) & 0xFFFFFFFF for word in words)  # torch has them as int32
    return Mask(shape, p, seed, call, strides=broadcast_strides(shape, shared))


def _draw_numpy(words: Any, x: Any, p: float, shared: tuple[int, ...]) -> Any:
    return dropout(x, mask=_mask(words, x.shape, p, shared))


def _draw_torch(words: Any, x: Any, p: float, shared: tuple[int, ...]) -> Any:
    from cdropout.torch import dropout

    return dropout(x, mask=_mask(words.tolist(), tuple(x.shape), p, shared))


def _draw_jax(words: Any, x: Any, p: float, shared: tuple[int, ...]) -> Any:
    from jax import numpy as jnp

    from cdropout.jax import dropout as draw

    return draw(jnp.zeros(4, "uint32").at[1::2].set(words), x, p, shared)


def _draw_tensorflow(words: Any, x: Any, p: float, shared: tuple[int, ...]) -> Any:
    import tensorflow as tf

    from cdropout.tensorflow.functional import apply

    noise_shape = [1 if axis in shared else None for axis in range(len(x.shape))]
    return apply(x, tf.cast(words, tf.int64), p, noise_shape if shared else None)


DRAW = {
    "numpy": _draw_numpy,
    "torch": _draw_torch,
    "jax": _draw_jax,
    "tensorflow": _draw_tensorflow,
}


def _draw_for(x: Any) -> Callable[..., Any] | None:
    """Return the function for x; None for other devices and types, which are left to Keras."""
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
    return DRAW.get(backend)


# ---- the layers ---------------------------------------------------------------------------------


class _Drawn:
    """What the layers share: `_shared_axes` says along which axes one draw is shared."""

    @property
    def supports_jit(self) -> bool:
        """Return False on TensorFlow, where XLA cannot call the kernels."""
        return keras.backend.backend() != "tensorflow"

    @supports_jit.setter
    def supports_jit(self, value: bool) -> None:
        """Ignore the True that Keras's constructor assigns."""

    def call(self: Any, inputs: Any, training: bool = False) -> Any:
        """Return the inputs masked and scaled; as they are unless training."""
        draw = _draw_for(inputs) if training and 0 < self.rate < 1 else None
        if draw is None:
            return super().call(inputs, training=training)  # type: ignore[misc]
        shared = self._shared_axes(tuple(inputs.shape))
        return draw(self.seed_generator.next(), inputs, self.rate, shared)


class _Spatial(_Drawn):
    """Whole channels: one draw for each sample and channel."""

    def _shared_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        first = getattr(self, "data_format", None) == "channels_first"
        return tuple(range(2, len(shape))) if first else tuple(range(1, len(shape) - 1))


@keras.saving.register_keras_serializable(package="cdropout")
class Dropout(_Drawn, keras.layers.Dropout):
    """`keras.layers.Dropout`, drawn by cdropout.

    In training, call number i (from 0) of a layer with `seed` draws the mask
    ``cdropout.Mask(shape, rate, seed, i)``, on each backend. On other devices than the CPU, for
    other types, and in TensorFlow functions that XLA compiles (``jit_compile=True``) it is Keras's
    own. On TensorFlow, Keras does not let XLA compile a model with this layer.

    Parameters
    ----------
    rate : float
        The probability that an element is dropped, in [0, 1].
    noise_shape : tuple of int or None, optional
        The shape of the mask: 1 where one draw is shared along an axis, elsewhere the length of the
        axis, or None for it. On TensorFlow an axis of unknown length takes any number.
    seed : int, optional
        In [0, 2**32).

    Raises
    ------
    ValueError
        If rate is not in [0, 1]; in the call, if noise_shape does not fit the inputs.
    """

    def _shared_axes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        noise = tuple(self.noise_shape or shape)
        full = (1,) * (len(shape) - len(noise)) + noise  # aligned as in NumPy's broadcasting
        fits = [
            length is None or drawn in (None, 1, length)
            for drawn, length in zip(full, shape, strict=False)
        ]
        if len(full) != len(shape) or not all(fits):
            raise ValueError(
                "noise_shape has to hold 1, None or the length of each axis of the inputs, "
                f"{shape}, but got {noise}"
            )
        return tuple(axis for axis, drawn in enumerate(full) if drawn == 1)


@keras.saving.register_keras_serializable(package="cdropout")
class SpatialDropout1D(_Spatial, keras.layers.SpatialDropout1D):
    """`keras.layers.SpatialDropout1D`: whole channels of sequences; see `Dropout`."""


@keras.saving.register_keras_serializable(package="cdropout")
class SpatialDropout2D(_Spatial, keras.layers.SpatialDropout2D):
    """`keras.layers.SpatialDropout2D`: whole channels of images; see `Dropout`."""


@keras.saving.register_keras_serializable(package="cdropout")
class SpatialDropout3D(_Spatial, keras.layers.SpatialDropout3D):
    """`keras.layers.SpatialDropout3D`: whole channels of volumes; see `Dropout`."""

"""Dropout modules for Flax, with its argument names: Dropout for nnx, LinenDropout for linen."""

from __future__ import annotations

import inspect
from typing import Any

from cdropout._core.arguments import check_flag
from cdropout.jax import dropout  # first: it says how to install JAX

try:
    import jax
    from flax import linen, nnx
except ImportError as error:
    raise ImportError("cdropout.flax needs Flax: run `pip install 'cdropout[flax]'`") from error

__all__ = ["Dropout", "LinenDropout"]


def _is_identity(rate: Any, deterministic: bool) -> bool:
    """Return whether a module returns its inputs. A traced rate draws a mask even if it is 0."""
    return deterministic or (not isinstance(rate, jax.core.Tracer) and bool(rate == 0))


def _key_of(rngs: Any, collection: str) -> Any:
    """The next key of a source of keys, or the key itself."""
    if isinstance(rngs, nnx.Rngs):
        rngs = rngs[collection]
    if rngs is None:
        raise ValueError(
            "Dropout needs a key: pass rngs= to it when it is made or called, or deterministic=True"
        )
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs


class _ConstructorSignature:
    """The signature of a class whose metaclass hides it; instances keep that of `__call__`."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(nnx.Dropout.__init__)
        return signature.replace(parameters=[*signature.parameters.values()][1:])


class Dropout(nnx.Dropout):
    """`flax.nnx.Dropout`, drawn by cdropout.

    Parameters
    ----------
    rate : float or scalar array
        The probability that an element is dropped, in [0, 1]. It may be traced; see
        `cdropout.jax.dropout`.
    broadcast_dims : sequence of int
        Axes along which one draw is shared.
    deterministic : bool
        When true, as after ``model.eval()``, the input comes back as it is.
    rng_collection : str
        The stream of `rngs` that keys come from.
    rngs : flax.nnx.Rngs or RngStream, optional
        Where keys come from; can also be given in a call, then also as a key.

    Raises
    ------
    ValueError
        If a key is needed and there is none, or deterministic is None both here and in the call.
    TypeError, ValueError
        As `cdropout.jax.dropout`, in the call.
    """

    __signature__ = _ConstructorSignature()

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: Any = None
    ) -> jax.Array:
        """Return the inputs masked and scaled; arguments given here go before the module's own."""
        if deterministic is None:
            deterministic = self.deterministic
        if deterministic is None:
            raise ValueError("Dropout needs deterministic=, when it is made or when it is called")
        check_flag(deterministic, "deterministic")
        if _is_identity(self.rate, deterministic):
            return inputs
        key = _key_of(self.rngs if rngs is None else rngs, self.rng_collection)
        return dropout(key, inputs, self.rate, tuple(self.broadcast_dims))


class LinenDropout(linen.Dropout):
    """`flax.linen.Dropout`, drawn by cdropout.

    Parameters
    ----------
    rate, broadcast_dims, deterministic, rng_collection
        As in `Dropout`; keys come from the stream of that name in ``apply(..., rngs=)``.

    Raises
    ------
    TypeError, ValueError
        As `cdropout.jax.dropout`, in the call.
    """

    @linen.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Any = None
    ) -> jax.Array:
        """Return the inputs masked and scaled; `rng` is a key that goes before the stream's."""
        deterministic = linen.merge_param("deterministic", self.deterministic, deterministic)
        check_flag(deterministic, "deterministic")
        if _is_identity(self.rate, deterministic):
            return inputs
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return dropout(key, inputs, self.rate, tuple(self.broadcast_dims))

"""Dropout modules for Flax: `Dropout` for nnx and `LinenDropout` for linen."""

from __future__ import annotations

import inspect
from typing import Any

from cdropout._core.arguments import check_flag

# imported before jax: without JAX, the ImportError of cdropout.jax has the install command
from cdropout.environment import check_version
from cdropout.jax import dropout

try:
    import flax
    import jax
    from flax import linen, nnx
except ImportError as error:
    raise ImportError("cdropout.flax needs Flax: run `pip install 'cdropout[flax]'`") from error

check_version(flax)

__all__ = ["Dropout", "LinenDropout"]


def _is_identity(rate: Any, deterministic: bool) -> bool:
    """Return whether a module returns its inputs; a traced rate counts as not 0."""
    return deterministic or (not isinstance(rate, jax.core.Tracer) and bool(rate == 0))


def _next_key(rngs: Any, collection: str) -> Any:
    """Return the next key of an Rngs or RngStream, or `rngs` itself if it is a key."""
    if isinstance(rngs, nnx.Rngs):
        rngs = rngs[collection]
    if rngs is None:
        raise ValueError(
            "Dropout needs a key: pass rngs= to the constructor or the call, or deterministic=True"
        )
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs


class _ConstructorSignature:
    """The signature of the constructor, which the metaclass of nnx hides.

    For an instance, AttributeError is raised, so that `inspect.signature` uses `__call__`.
    """

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(nnx.Dropout.__init__)
        return signature.replace(parameters=[*signature.parameters.values()][1:])


class Dropout(nnx.Dropout):
    """Replacement for `flax.nnx.Dropout` with the same arguments.

    Parameters
    ----------
    rate : float or scalar array
        The probability that an element is dropped, in [0, 1]. The rate may be traced; see
        `cdropout.jax.dropout`.
    broadcast_dims : sequence of int
        Axes along which all elements share one draw.
    deterministic : bool
        If true, for example after ``model.eval()``, return the inputs unchanged.
    rng_collection : str
        The name of the stream of `rngs` that provides keys.
    rngs : flax.nnx.Rngs or RngStream, optional
        The source of keys. The argument `rngs` of a call may be another source, or a key.

    Raises
    ------
    ValueError
        If a call requires a key but none is given, or if deterministic is None both in the
        constructor and in the call.
    TypeError, ValueError
        If a call has arguments for which `cdropout.jax.dropout` raises these errors.
    """

    __signature__ = _ConstructorSignature()

    def __call__(
        self, inputs: jax.Array, *, deterministic: bool | None = None, rngs: Any = None
    ) -> jax.Array:
        """Return the inputs after dropout. The arguments override the attributes of the module."""
        if deterministic is None:
            deterministic = self.deterministic
        if deterministic is None:
            raise ValueError("Dropout needs deterministic=, in the constructor or in the call")
        check_flag(deterministic, "deterministic")
        if _is_identity(self.rate, deterministic):
            return inputs
        key = _next_key(self.rngs if rngs is None else rngs, self.rng_collection)
        return dropout(key, inputs, self.rate, tuple(self.broadcast_dims))


class LinenDropout(linen.Dropout):
    """Replacement for `flax.linen.Dropout` with the same arguments.

    Parameters
    ----------
    rate, broadcast_dims, deterministic
        As in `Dropout`.
    rng_collection : str
        The name of the stream in ``apply(..., rngs=)`` that provides keys.

    Raises
    ------
    TypeError, ValueError
        If a call has arguments for which `cdropout.jax.dropout` raises these errors.
    """

    @linen.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Any = None
    ) -> jax.Array:
        """Return the inputs after dropout. A key `rng`, if given, is used instead of the stream."""
        deterministic = linen.merge_param("deterministic", self.deterministic, deterministic)
        check_flag(deterministic, "deterministic")
        if _is_identity(self.rate, deterministic):
            return inputs
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return dropout(key, inputs, self.rate, tuple(self.broadcast_dims))

"""Dropout for `flax.nnx`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from flax.nnx.nn.attention import dot_product_attention_weights
from flax.nnx.nn.dtypes import promote_dtype
from jax import numpy as jnp

from cdropout.flax.functional import drop_weights, result_without_mask
from cdropout.jax import dropout

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Dropout", "dot_product_attention"]


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
        The source of keys. The argument `rngs` of a call may be another source, or a key. No key
        is used if rate is known to be 0 or 1.

    Raises
    ------
    ValueError, TypeError
        If a call requires a key but none is given, if rngs is of the wrong type, or if
        deterministic is None both in the constructor and in the call. The errors are those of Flax.
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
        if deterministic is not None:
            result = result_without_mask(inputs, self.rate, deterministic)
            if result is not None:
                return result
        rngs = self.rngs if rngs is None else rngs
        if deterministic is None or not isinstance(rngs, (nnx.Rngs, nnx.RngStream, jax.Array)):
            # This raises Flax's error. The rate is 0.5, since Flax does not support a traced rate.
            return nnx.Dropout(0.5, deterministic=deterministic)(inputs, rngs=rngs)
        if isinstance(rngs, nnx.Rngs):
            rngs = rngs[self.rng_collection]
        key = rngs() if isinstance(rngs, nnx.RngStream) else rngs
        return dropout(key, inputs, self.rate, tuple(self.broadcast_dims))


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: Any = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: nnx.Module | None = None,
    promote_dtype: Callable[..., Any] = promote_dtype,
    **options: Any,
) -> jax.Array:
    """Compute attention with dropout, as `flax.nnx.dot_product_attention` does.

    Pass this function to the modules of nnx as ``attention_fn``.

    Parameters
    ----------
    dropout_rng : JAX key or None
        The key that determines the mask of the attention weights.
    dropout_rate : float or scalar array
        The probability that a weight is dropped. It may be traced.
    broadcast_dropout : bool, default True
        If true, all batch dimensions and heads of the weights share one mask.
    deterministic : bool, default False
        If true, no weight is dropped.
    query, key, value, bias, mask, dtype, precision, module, promote_dtype, **options
        As in `flax.nnx.dot_product_attention`.

    Returns
    -------
    array of shape ``[batch..., q_length, num_heads, v_depth_per_head]``
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    if (
        not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
        or key.shape[-3] != value.shape[-3]
        or query.shape[-2] % value.shape[-2]
    ):
        # This raises Flax's error. With a rate other than 0, Flax does not call fused kernels.
        nnx.dot_product_attention(query, key, value, dropout_rate=0.5, deterministic=True)
    weights = dot_product_attention_weights(
        query,
        key,
        bias,
        mask,
        deterministic=True,
        dtype=query.dtype,
        precision=precision,
        module=module,
        promote_dtype=promote_dtype,
        **options,
    )
    weights = drop_weights(weights, dropout_rng, dropout_rate, broadcast_dropout, deterministic)
    heads_per_value = weights.shape[-3] // value.shape[-2]  # more than 1 in grouped-query attention
    value = jnp.repeat(value, heads_per_value, axis=-2)
    return jnp.einsum("...hqk,...khd->...qhd", weights, value, precision=precision)

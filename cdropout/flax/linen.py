"""Dropout for `flax.linen`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
from flax import linen
from jax import numpy as jnp

from cdropout.flax.functional import drop_weights, result_without_mask
from cdropout.jax import dropout

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Dropout", "dot_product_attention"]


class Dropout(linen.Dropout):
    """Replacement for `flax.linen.Dropout` with the same arguments.

    Parameters
    ----------
    rate, broadcast_dims, deterministic
        As in `cdropout.flax.Dropout`.
    rng_collection : str
        The name of the stream in ``apply(..., rngs=)`` that provides keys.

    Raises
    ------
    ValueError, flax.errors.InvalidRngError
        If deterministic is not given exactly once, in the constructor or in the call, or if a call
        requires a key but the stream is missing. The errors are those of Flax.
    TypeError, ValueError
        If a call has arguments for which `cdropout.jax.dropout` raises these errors.
    """

    @linen.compact
    def __call__(
        self, inputs: jax.Array, deterministic: bool | None = None, rng: Any = None
    ) -> jax.Array:
        """Return the inputs after dropout. A key `rng`, if given, is used instead of the stream."""
        deterministic = linen.merge_param("deterministic", self.deterministic, deterministic)
        result = result_without_mask(inputs, self.rate, deterministic)
        if result is not None:
            return result
        key = self.make_rng(self.rng_collection) if rng is None else rng
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
    module: linen.Module | None = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: Callable[..., Any] | None = None,
    qk_attn_weights_einsum: Callable[..., Any] | None = None,
    attn_weights_value_einsum: Callable[..., Any] | None = None,
) -> jax.Array:
    """Compute attention with dropout, as `flax.linen.dot_product_attention` does.

    Pass this function to the modules of linen as ``attention_fn``.

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
    query, key, value, bias, mask, dtype, precision, module, force_fp32_for_softmax, \
einsum_dot_general, qk_attn_weights_einsum, attn_weights_value_einsum
        As in `flax.linen.dot_product_attention`.

    Returns
    -------
    array of shape ``[batch..., q_length, num_heads, v_depth_per_head]``
    """
    if not (qk_attn_weights_einsum or attn_weights_value_einsum):
        dot_general = einsum_dot_general or jax.lax.dot_general
        einsum = partial(jnp.einsum, precision=precision, _dot_general=dot_general)
        qk_attn_weights_einsum = attn_weights_value_einsum = einsum
        precision = einsum_dot_general = None

    def drop_and_multiply(equation: str, weights: Any, value: Any) -> Any:
        weights = drop_weights(weights, dropout_rng, dropout_rate, broadcast_dropout, deterministic)
        return attn_weights_value_einsum(equation, weights, value)  # type: ignore[misc]

    return linen.dot_product_attention(
        query,
        key,
        value,
        bias,
        mask,
        deterministic=True,
        dtype=dtype,
        precision=precision,
        module=module,
        force_fp32_for_softmax=force_fp32_for_softmax,
        einsum_dot_general=einsum_dot_general,
        qk_attn_weights_einsum=qk_attn_weights_einsum,
        attn_weights_value_einsum=attn_weights_value_einsum and drop_and_multiply,
    )

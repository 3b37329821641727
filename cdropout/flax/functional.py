"""Functions for both nnx and linen."""

from __future__ import annotations

from typing import Any

import jax
from jax import numpy as jnp

from cdropout._core.arguments import check_flag
from cdropout.jax import dropout


def result_without_mask(inputs: Any, rate: Any, deterministic: bool) -> Any:
    """Return the result of dropout if no mask is needed, otherwise None.

    A traced rate needs a mask, even if it is 0 or 1 when the program runs.
    """
    check_flag(deterministic, "deterministic")
    if deterministic:
        return inputs
    if isinstance(rate, jax.core.Tracer) or rate not in (0, 1):
        return None
    return jnp.zeros_like(inputs) if rate else inputs


def drop_weights(
    weights: Any, rng: Any, rate: Any, broadcast_dropout: bool, deterministic: bool
) -> Any:
    """Return attention weights after dropout.

    If broadcast_dropout is true, all batch dimensions and heads share one mask.
    """
    result = result_without_mask(weights, rate, deterministic)
    if result is not None:
        return result
    return dropout(rng, weights, rate, tuple(range(weights.ndim - 2)) if broadcast_dropout else ())

"""Dropout for JAX on the CPU. A JAX key determines the mask, and XLA calls the kernels."""

from cdropout.jax.functional import dropout, seed_and_call

__all__ = ["dropout", "seed_and_call"]

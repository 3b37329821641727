"""Dropout for JAX on the CPU. A JAX key determines the mask, and XLA calls the kernels."""

try:
    import jax
except ImportError as error:
    raise ImportError("cdropout.jax needs JAX: run `pip install 'cdropout[jax]'`") from error

from cdropout.environment import check_version

check_version(jax)

from cdropout.jax.functional import dropout, seed_and_call

__all__ = ["dropout", "seed_and_call"]

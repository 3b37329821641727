"""Dropout for Flax: `Dropout` replaces `nnx.Dropout`; `LinenDropout` replaces `linen.Dropout`."""

import cdropout.jax  # noqa: F401  # its ImportError contains the install command for JAX
from cdropout.environment import check_version

try:
    import flax
except ImportError as error:
    raise ImportError("cdropout.flax needs Flax: run `pip install 'cdropout[flax]'`") from error

check_version(flax)

from cdropout.flax.linen import Dropout as LinenDropout
from cdropout.flax.nnx import Dropout, dot_product_attention

__all__ = ["Dropout", "LinenDropout", "dot_product_attention"]

"""Dropout for PyTorch on the CPU, with the names and semantics of torch.nn."""

try:
    import torch
except ImportError as error:
    raise ImportError(
        "cdropout.torch needs PyTorch: run `pip install 'cdropout[torch]'`"
    ) from error

from cdropout.environment import check_version

check_version(torch)

from cdropout.torch.attention import scaled_dot_product_attention
from cdropout.torch.checkpoint import checkpoint_context
from cdropout.torch.functional import (
    alpha_dropout,
    bias_dropout_add,
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
    mc_dropout,
)
from cdropout.torch.modules import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropPath,
    FeatureAlphaDropout,
    convert,
    revert,
)
from cdropout.torch.monte_carlo import always_on
from cdropout.torch.overrides import accelerate, disable, enable

__all__ = [
    "AlphaDropout",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "DropPath",
    "FeatureAlphaDropout",
    "accelerate",
    "alpha_dropout",
    "always_on",
    "bias_dropout_add",
    "checkpoint_context",
    "convert",
    "disable",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "enable",
    "feature_alpha_dropout",
    "mc_dropout",
    "revert",
    "scaled_dot_product_attention",
]

"""Dropout for PyTorch on the CPU, with the names and semantics of torch.nn."""

import re

try:
    import torch
except ImportError as error:
    raise ImportError(
        "cdropout.torch needs PyTorch 2.13: run `pip install 'cdropout[torch]'`"
    ) from error

if not (2, 13) <= tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (3, 0):
    raise ImportError(
        "cdropout.torch supports PyTorch 2.13 and later versions below 3.0, "
        f"but found {torch.__version__}"
    )

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
]

"""Dropout on the CPU at the speed of memory, with masks that are values."""

# Only the first interpreter that imports the compiled modules can use them. NumPy is imported
# before them, so that another interpreter, in which this import fails, does not become the first.
import numpy  # noqa: F401

__version__ = "0.1.0.dev0"

try:
    from cdropout._core.mask import Mask
except ModuleNotFoundError as error:
    if error.name != "cdropout._core.mask":
        raise
    from cdropout.environment import unbuilt_checkout

    raise ImportError(unbuilt_checkout()) from None
except ValueError as error:  # CDROPOUT_ISA or CDROPOUT_NUM_THREADS has an invalid value
    from cdropout.environment import exit_command

    exit_command(error)
    raise

from cdropout._core.dispatch import get_table
from cdropout._core.executor import get_num_threads, set_num_threads
from cdropout._core.generator import Generator, default_generator, manual_seed
from cdropout.functional import (
    alpha_dropout,
    bias_dropout_add,
    bias_dropout_add_backward,
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    dropout_backward,
    feature_alpha_dropout,
    mc_dropout,
)
from cdropout.include import get_include
from cdropout.modules import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropPath,
    FeatureAlphaDropout,
    always_on,
)

__all__ = [
    "AlphaDropout",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "Generator",
    "Mask",
    "alpha_dropout",
    "always_on",
    "bias_dropout_add",
    "bias_dropout_add_backward",
    "default_generator",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_backward",
    "feature_alpha_dropout",
    "get_include",
    "get_num_threads",
    "get_table",
    "manual_seed",
    "mc_dropout",
    "set_num_threads",
]

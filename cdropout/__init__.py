"""Dropout on the CPU at the speed of memory, with masks that are values."""

try:
    from cdropout.core.masks import Mask
except ModuleNotFoundError as error:
    if error.name != "cdropout.core.masks":
        raise
    raise ImportError("this checkout of cdropout has not been built: run `pip install .` in it and import elsewhere") from None

from cdropout.core.generators import Generator, default_generator, manual_seed
from cdropout.core.threads import get_num_threads, set_num_threads
from cdropout.functional import dropout, dropout_backward
from cdropout.include import get_include
from cdropout.modules import Dropout

__all__ = [
    "Dropout",
    "Generator",
    "Mask",
    "default_generator",
    "dropout",
    "dropout_backward",
    "get_include",
    "get_num_threads",
    "manual_seed",
    "set_num_threads",
]

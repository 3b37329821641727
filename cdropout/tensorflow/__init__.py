"""Dropout for TensorFlow on the CPU: its names and errors, at the speed of memory."""

import re

try:
    import tensorflow
except ImportError as error:
    raise ImportError(
        "cdropout.tensorflow needs TensorFlow 2.16 or newer: "
        "run `pip install 'cdropout[tensorflow]'`"
    ) from error

if not (2, 16) <= tuple(int(n) for n in re.findall(r"\d+", tensorflow.__version__)[:2]) < (3, 0):
    raise ImportError(
        "cdropout.tensorflow is written for TensorFlow 2.16 and later ones below 3.0, "
        f"but found {tensorflow.__version__}"
    )

from cdropout.tensorflow.functional import dropout, stateless_dropout

__all__ = ["dropout", "stateless_dropout"]

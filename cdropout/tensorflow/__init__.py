"""Dropout for TensorFlow on the CPU, with the arguments and errors of `tf.nn.dropout`."""

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
        "cdropout.tensorflow needs TensorFlow 2.16 or newer, but older than 3.0; "
        f"TensorFlow {tensorflow.__version__} is installed"
    )

from cdropout.tensorflow.functional import dropout, stateless_dropout

__all__ = ["dropout", "stateless_dropout"]

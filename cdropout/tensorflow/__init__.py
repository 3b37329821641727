"""Dropout for TensorFlow on the CPU, with the arguments of the dropout functions of `tf.nn`."""

try:
    import tensorflow
except ImportError as error:
    raise ImportError(
        "cdropout.tensorflow needs TensorFlow: run `pip install 'cdropout[tensorflow]'`"
    ) from error

from cdropout.environment import check_version

check_version(tensorflow)

from cdropout.tensorflow.functional import dropout, stateless_dropout

__all__ = ["dropout", "stateless_dropout"]

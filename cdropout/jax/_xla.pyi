"""Types of jax/_xla.pyx."""

from cdropout._core.dtypes import FLOATS_TEXT as FLOATS_TEXT

handler: object  # a PyCapsule

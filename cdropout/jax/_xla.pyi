"""Types of jax/_xla.pyx."""

from cdropout._core.dtypes import LISTED as LISTED

handler: object  # a PyCapsule

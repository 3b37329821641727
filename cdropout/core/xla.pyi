"""Types of core/xla.pyx."""

from cdropout.core.dtypes import LISTED as LISTED

handler: object  # a capsule

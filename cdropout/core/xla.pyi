"""Types of core/xla.pyx."""

handler: object  # a capsule

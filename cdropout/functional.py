"""Dropout as functions of arrays: an array in, an array of the same kind out."""

from cdropout.core.calls import dropout, dropout_backward

__all__ = ["dropout", "dropout_backward"]

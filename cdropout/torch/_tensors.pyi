"""Types of torch/_tensors.pyx."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cdropout.torch._draw import Draw

def is_plain(x: Tensor) -> bool: ...
def is_ordinary(x: Tensor) -> bool: ...
def overlap(shape: Sequence[int], strides: Sequence[int]) -> bool: ...
def compute(x: Tensor, draw: Draw) -> Tensor | Any: ...  # None if x is not plain
def compute_gradient(gy: Tensor, draw: Draw) -> Tensor | None: ...

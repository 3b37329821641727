"""Types of torch/_tensors.pyx."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cdropout.torch._draw import LazyMask

def is_supported(x: Tensor) -> bool: ...
def runs_eagerly(x: Tensor) -> bool: ...
def elements_overlap(shape: Sequence[int], strides: Sequence[int]) -> bool: ...
def apply_mask(x: Tensor, mask: LazyMask) -> Tensor | Any: ...  # returns None if x is not supported
def apply_window(
    x: Tensor, y: Tensor, mask: LazyMask, start: int, strides: tuple[int, ...]
) -> None: ...
def apply_mask_to_gradient(gy: Tensor, mask: LazyMask) -> Tensor | None: ...

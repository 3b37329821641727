"""Types of torch/_attention.pyx."""

import torch
from torch import Tensor

from cdropout.torch._draw import LazyMask

class TileSoftmax:
    def __init__(self, dtype: torch.dtype) -> None: ...
    def draw(
        self,
        mask: LazyMask,
        start: int,
        strides: tuple[int, ...],
        shape: tuple[int, ...],
        visible: int,
    ) -> None: ...
    def forward(self, weights: Tensor, sums: Tensor) -> None: ...
    def recompute(self, weights: Tensor, sums: Tensor, dropped: Tensor | None) -> None: ...
    def backward(self, weights: Tensor, gradient: Tensor) -> None: ...

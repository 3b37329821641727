"""Types of torch/_dropout_add.pyx."""

import torch
from torch import Tensor

from cdropout.torch._draw import LazyMask

def is_in_c_order(mask: LazyMask) -> bool: ...
def add_in_one_pass(x: Tensor, bias: Tensor | None, residual: Tensor, mask: LazyMask) -> Tensor: ...
def differentiate_in_one_pass(
    gy: Tensor, bias_shape: torch.Size, mask: LazyMask
) -> tuple[Tensor, Tensor]: ...

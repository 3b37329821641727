"""Types of torch/_attention.pyx."""

from torch import Tensor

from cdropout.torch._draw import LazyMask

TILE: int
MAX_TILE: int
MIN_ROWS: int
CAUSAL_TILES: int
MIN_CAUSAL_ROWS: int
function_addresses: list[int]
is_available: bool

def use_functions(addresses: list[int]) -> None: ...
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    out: Tensor,
    sums: Tensor,
    mask: LazyMask,
    start: int,
    strides: tuple[int, ...],
    is_causal: bool,
    scale: float,
) -> None: ...
def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    gy: Tensor,
    sums: Tensor,
    gquery: Tensor | None,
    gkey: Tensor | None,
    gvalue: Tensor | None,
    gmask: Tensor | None,
    mask: LazyMask,
    start: int,
    strides: tuple[int, ...],
    is_causal: bool,
    scale: float,
) -> None: ...

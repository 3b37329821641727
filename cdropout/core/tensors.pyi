"""Types of core/tensors.pyx."""

from collections.abc import Callable, Sequence
from threading import local
from typing import Any, TypeAlias

from torch import Generator as TorchGenerator
from torch import Tensor

from cdropout.core.generators import Generator

# The call number, p, the axes along which one draw is shared, and the factor, of a mask
_Name: TypeAlias = tuple[int, float, tuple[int, ...], float | None]

SEEDS: int

def is_plain(x: Tensor) -> bool: ...
def is_ordinary(x: Tensor) -> bool: ...
def compute(
    x: Tensor, seed: int, name: _Name, inplace: bool = False
) -> Tensor | Any: ...  # None if x is not plain
def compute_gradient(gy: Tensor, draw: tuple[int, _Name, bool]) -> Tensor | None: ...
def keep_mask(shape: Sequence[int], seed: int, name: _Name) -> Tensor: ...

class Cell(local):
    draw: Callable[[int, int], Tensor]
    address: int
    def __init__(self) -> None: ...

cell: Cell

def draw_seed() -> int: ...
def next_name(generator: Generator) -> tuple[int, int]: ...

class Replayed(local):
    generators: tuple[TorchGenerator | Generator, ...]

replayed: Replayed

def draw_from(generator: TorchGenerator | Generator) -> tuple[Tensor, int]: ...

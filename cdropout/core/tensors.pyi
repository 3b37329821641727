"""Types of core/tensors.pyx."""

from collections.abc import Callable, Sequence
from threading import local
from typing import Any, TypeAlias

import torch
from torch import Tensor

from cdropout.core.generators import Generator

# The call number, p, the axes along which one draw is shared, and the form, of a mask
_Name: TypeAlias = tuple[int, float, tuple[int, ...], str]

SEEDS: int

def is_plain(x: Tensor) -> bool: ...
def is_ordinary(x: Tensor) -> bool: ...
def overlap(shape: Sequence[int], strides: Sequence[int]) -> bool: ...

class Cell(local):
    draw: Callable[[int, int], Tensor]
    address: int
    def __init__(self) -> None: ...

cell: Cell

def state_of(generator: torch.Generator | Generator | None) -> Any: ...
def restore(generator: torch.Generator | Generator | None, before: Any, after: Any) -> None: ...

FORMS: tuple[str, ...]

def linear(name: _Name) -> _Name: ...

class Draw:
    keep: Tensor | None
    def __init__(
        self,
        p: float,
        shared: tuple[int, ...],
        form: str,
        inplace: bool = False,
        generator: torch.Generator | Generator | None = None,
    ) -> None: ...
    def numbers(self) -> tuple[int, _Name]: ...

def drawn(seed: int, name: _Name) -> Draw: ...
def compute(x: Tensor, draw: Draw) -> Tensor | Any: ...  # None if x is not plain
def compute_gradient(gy: Tensor, draw: Draw) -> Tensor | None: ...

class Replayed(local):
    generators: tuple[torch.Generator | Generator, ...]

replayed: Replayed

def draw_from(generator: torch.Generator | Generator) -> tuple[Tensor, int]: ...

"""Types of core/draws.pyx."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import local
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from cdropout.core.generators import Generator

# The call number, p, the axes along which one draw is shared, and the form, of a mask
_Name: TypeAlias = tuple[int, float, tuple[int, ...], str]

SEEDS: int
FORMS: tuple[str, ...]

class Cell(local):
    draw: Callable[[int, int], Tensor]
    address: int
    def __init__(self) -> None: ...

cell: Cell

class Replayed(local):
    generators: tuple[torch.Generator | Generator, ...]

replayed: Replayed

def draw_from(generator: torch.Generator | Generator) -> tuple[Tensor, int]: ...
def state_of(generator: torch.Generator | Generator | None) -> Any: ...
def set_state(generator: torch.Generator | Generator | None, state: Any) -> None: ...
def undisturbed() -> AbstractContextManager[None]: ...
def restore(generator: torch.Generator | Generator | None, before: Any, after: Any) -> None: ...
def linear(name: _Name) -> _Name: ...

@final
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

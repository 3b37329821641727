"""Types of torch/_draw.pyx."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import local
from typing import Any, final

import torch
from torch import Tensor

from cdropout._core.generator import Generator
from cdropout._core.mask import Mask

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

def check_generator(generator: object) -> None: ...
def draw_from(generator: torch.Generator | Generator) -> tuple[Tensor, int]: ...
def state_of(generator: torch.Generator | Generator | None) -> Any: ...
def set_state(generator: torch.Generator | Generator | None, state: Any) -> None: ...
def undisturbed() -> AbstractContextManager[None]: ...
def restore(generator: torch.Generator | Generator | None, before: Any, after: Any) -> None: ...
def derivative_of(form: str) -> str: ...

@final
class Draw:
    p: float
    inplace: bool
    drawn: bool
    generator: torch.Generator | Generator | None
    keep: Tensor | None
    def __init__(
        self,
        p: float,
        axes: tuple[int, ...],
        form: str,
        inplace: bool = False,
        generator: torch.Generator | Generator | None = None,
    ) -> None: ...
    def out_of_place(self) -> Draw: ...
    def derivative(self) -> Draw: ...
    def with_call(self, call: int) -> Draw: ...
    def batched(self, one_mask: bool) -> Draw: ...
    def constants(self) -> tuple[int, float, list[int], str]: ...
    def numbers(
        self, shape: tuple[int, ...]
    ) -> tuple[int, int, int, tuple[int, ...] | None, float, float, bool]: ...

def known(mask: Mask, form: str, inplace: bool = False) -> Draw: ...
def seeded(seed: int, call: int, p: float, axes: tuple[int, ...], form: str) -> Draw: ...

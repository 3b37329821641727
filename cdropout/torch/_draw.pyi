"""Types of torch/_draw.pyx."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import local
from typing import Any, final

import torch
from torch import Tensor

from cdropout._core.generator import Generator
from cdropout._core.mask import Mask

SEED_LIMIT: int
FORMS: tuple[str, ...]

class SeedBuffer(local):
    draw: Callable[[int, int], Tensor]
    address: int
    def __init__(self) -> None: ...

seed_buffer: SeedBuffer

class Replayed(local):
    generators: tuple[torch.Generator | Generator, ...]

replayed: Replayed

def check_generator(generator: object) -> None: ...
def draw_from(generator: torch.Generator | Generator) -> tuple[Tensor, int]: ...
def state_of(generator: torch.Generator | Generator | None) -> Any: ...
def set_state(generator: torch.Generator | Generator | None, state: Any) -> None: ...
def without_modes() -> AbstractContextManager[None]: ...
def restore(generator: torch.Generator | Generator | None, before: Any, after: Any) -> None: ...
def derivative_of(form: str) -> str: ...

@final
class LazyMask:
    p: float
    inplace: bool
    drawn: bool
    generator: torch.Generator | Generator | None
    keep: Tensor | None
    def __init__(
        self,
        p: float,
        broadcast_axes: tuple[int, ...],
        form: str,
        inplace: bool = False,
        generator: torch.Generator | Generator | None = None,
    ) -> None: ...
    def out_of_place(self) -> LazyMask: ...
    def derivative(self) -> LazyMask: ...
    def with_call(self, call: int) -> LazyMask: ...
    def with_batch_axis(self, shared: bool) -> LazyMask: ...
    def dropout_arguments(self) -> tuple[int, float, list[int], str]: ...
    def apply_mask_arguments(
        self, shape: tuple[int, ...]
    ) -> tuple[int, int, int, tuple[int, ...] | None, float, float, bool]: ...

def given_mask(given: Mask, form: str, inplace: bool = False) -> LazyMask: ...
def seeded_mask(
    seed: int,
    call: int,
    p: float,
    broadcast_axes: tuple[int, ...],
    form: str,
    inplace: bool = False,
) -> LazyMask: ...

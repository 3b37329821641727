"""Checkpoints of functions that draw from explicit generators."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.checkpoint import noop_context_fn

from cdropout._core.generator import Generator
from cdropout.torch._draw import replayed, set_state, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    _Generators: TypeAlias = tuple[torch.Generator | Generator, ...]
    _Contexts: TypeAlias = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def checkpoint_context(
    *generators: torch.Generator | Generator,
    context_fn: Callable[[], _Contexts] = noop_context_fn,
) -> Callable[[], _Contexts]:
    """Return a `context_fn` for `torch.utils.checkpoint.checkpoint` that restores generators.

    A checkpoint runs its function again during the backward pass. With PyTorch's default generator,
    dropout draws the same mask in both runs, because the checkpoint restores that generator. With
    ``generator=``, dropout raises RuntimeError in the second run unless this context restores the
    generator.

    Parameters
    ----------
    *generators : torch.Generator or cdropout.Generator
        All generators that the checkpointed function uses.
    context_fn : callable, optional
        A `context_fn` whose contexts are entered as well, such as one for selective checkpoints.

    Returns
    -------
    callable
        A value for the argument `context_fn` of `checkpoint`. PyTorch accepts this argument only
        with ``use_reentrant=False``.

    Raises
    ------
    TypeError
        If a generator is neither a torch.Generator nor a cdropout.Generator.

    Notes
    -----
    Before the second run, the generators are set to the states that they had at the start of the
    first run. After the second run, they are set to the states that they had before the second
    run. Other threads must not draw from the generators during the second run.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.checkpoint import checkpoint
    >>> import cdropout as cd
    >>> from cdropout.torch import checkpoint_context, dropout
    >>> rng = cd.Generator(seed=1)
    >>> def block(x):
    ...     return dropout(x.sin(), 0.5, generator=rng).exp()
    >>> x = torch.ones(8, requires_grad=True)
    >>> y = checkpoint(block, x, use_reentrant=False, context_fn=checkpoint_context(rng))
    >>> y.sum().backward()
    >>> torch.equal(x.grad != 0, y != 1)
    True
    """
    for generator in generators:
        if not isinstance(generator, (torch.Generator, Generator)):
            raise TypeError(
                "checkpoint_context takes torch.Generators and cdropout.Generators, "
                f"but got {type(generator).__name__}"
            )

    def contexts() -> _Contexts:
        first, second = context_fn()
        run = _FirstRun(generators, first)
        return run, _SecondRun(run, second)

    return contexts


def _states(generators: _Generators) -> list[Any]:
    return [state_of(generator) for generator in generators]


def _restore(generators: _Generators, states: list[Any]) -> None:
    for generator, state in zip(generators, states, strict=True):
        set_state(generator, state)


class _FirstRun:
    """Record the states that generators have at the start of the first run."""

    def __init__(self, generators: _Generators, inner: AbstractContextManager[Any]) -> None:
        self.generators, self.inner = generators, inner

    def __enter__(self) -> None:
        self.states = _states(self.generators)
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self.inner.__exit__(*error)


class _SecondRun:
    """Set the generators to the states of the first run, and set them back after the second run."""

    def __init__(self, first: _FirstRun, inner: AbstractContextManager[Any]) -> None:
        self.first, self.inner = first, inner

    def __enter__(self) -> None:
        generators = self.first.generators
        self.before = _states(generators)
        self.outer = replayed.generators
        self.inner.__enter__()
        replayed.generators = (*self.outer, *generators)
        _restore(generators, self.first.states)

    def __exit__(self, *error: Any) -> bool | None:
        replayed.generators = self.outer
        _restore(self.first.generators, self.before)
        return self.inner.__exit__(*error)

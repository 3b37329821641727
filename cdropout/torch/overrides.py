"""Reroutes PyTorch's own CPU dropout here, whoever calls it: functions, attention, RNNs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
import warnings
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from cdropout.torch._draw import Draw
from cdropout.torch._tensors import is_ordinary, is_plain
from cdropout.torch.autograd import eagerly, in_a_graph, in_eager_mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cdropout.torch.autograd import Way

    _Function = TypeVar("_Function", bound=Callable[..., Any])


SUSPENDS = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
SUSPENDED = types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType  # their results
REFUSAL = (
    "accelerate() cannot decorate a generator function or a coroutine function, whose call returns "
    "before it runs: use `with accelerate():` inside of it"
)

FORMS = (  # of dropout: whether it is alpha dropout, and the first of the axes that share a draw
    ("dropout", False, None),
    ("feature_dropout", False, 2),
    ("alpha_dropout", True, None),
    ("feature_alpha_dropout", True, 2),
)
KEYS = "AutogradCPU", "CPU"  # CPU alone is what tensors made in inference mode have
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class _Switch:
    """Whether dropout is rerouted: in the whole process, as operators know no threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.library: torch.library.Library | None = None
        self.on = False  # by enable
        self.depth = 0  # of accelerate, in all threads together
        self.active = False

    def change(self, on: bool | None = None, deeper: int = 0) -> None:
        """Turn the switch, or enter and leave accelerate."""
        with self.lock:
            if self.library is None:
                self.library = _registered()
            self.on = self.on if on is None else on
            self.depth += deeper
            self.active = self.on or self.depth > 0


_switch = _Switch()


def enable() -> None:
    """Reroute PyTorch's dropout on the CPU, in all threads, until `disable` is called.

    Whatever calls the operators aten::dropout, feature_dropout, alpha_dropout and
    feature_alpha_dropout, in place or not, or aten::native_dropout, is reached: the functions and
    modules of torch.nn, attention and recurrent nets, scripted and third-party models. Masks then
    come from one seed per call of PyTorch's generator, so `torch.manual_seed` still repeats them,
    but they differ from PyTorch's own. They are the same under a dispatch mode, such as
    FlopCounterMode. Other devices, types and layouts, subclasses, transforms of torch.func and
    compiled graphs stay with PyTorch.

    Notes
    -----
    The first call registers the operators, for good: to take them away would pull them from under
    other threads. When disabled, they pass every call on to PyTorch's kernels, which adds some
    microseconds to each.
    """
    _switch.change(on=True)


def disable() -> None:
    """Undo `enable`; without it, do nothing. An `accelerate` that is running stays in force."""
    _switch.change(on=False)


class _Acceleration(contextlib.ContextDecorator):
    def __enter__(self) -> None:
        _switch.change(deeper=1)

    def __exit__(self, *error: object) -> None:
        _switch.change(deeper=-1)

    def __call__(self, function: _Function) -> _Function:
        inner = inspect.unwrap(function)
        if any(suspends(f) for f in (inner, type(inner).__call__) for suspends in SUSPENDS):
            raise TypeError(REFUSAL)

        @functools.wraps(function)
        def accelerated(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if isinstance(result, SUSPENDED):
                if not isinstance(result, types.AsyncGeneratorType):
                    result.close()  # a coroutine would warn that it was never awaited
                raise TypeError(REFUSAL)
            return result

        return cast("_Function", accelerated)


def accelerate() -> _Acceleration:
    """Reroute PyTorch's dropout on the CPU for a while, as `enable` does.

    It is a context manager and a decorator of functions. It nests, and ends on an error too. It
    holds in all threads of the process, until the last one that entered it has left.

    Raises
    ------
    TypeError
        If it decorates a generator function or a coroutine function, or if the decorated function
        returns a generator or a coroutine.
    """
    return _Acceleration()


# ---- the operators ------------------------------------------------------------------------------


def _registered() -> torch.library.Library:
    """Return a library with a kernel for each form of dropout, above and below autograd.

    A dispatch mode may take a form apart instead of calling it: that is rerouted as well.
    """
    library = torch.library.Library("aten", "IMPL")
    for name, alpha, first in FORMS:
        for inplace in (False, True):
            form = name + "_" * inplace
            for key in KEYS:
                kernel = torch.library.get_kernel(f"aten::{form}", key)
                function = functools.partial(_rerouted, kernel.call_boxed, alpha, first, inplace)
                library.impl(form, function, key, with_keyset=True)
            operator = getattr(torch.ops.aten, form).default
            if COMPOSITE not in operator.py_kernels:
                theirs = operator._op_dk
                function = functools.partial(_rerouted, theirs, alpha, first, inplace, COMPOSITE)
                operator.py_impl(COMPOSITE)(function)
    for key in KEYS:
        kernel = torch.library.get_kernel("aten::native_dropout", key)
        with warnings.catch_warnings():  # that a kernel is replaced is the purpose
            warnings.simplefilter("ignore")
            native = functools.partial(_native, kernel)
            library.impl("native_dropout", native, key, with_keyset=True)
    return library


def _our_way(x: Tensor, p: float, train: bool | None) -> Way | None:
    """Return the function that applies a mask here; None where PyTorch's kernel has to."""
    if not (_switch.active and train is not False and 0 < p <= 1):
        return None
    if is_ordinary(x):
        return in_eager_mode
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return None
    return in_a_graph if is_plain(x) and x.numel() != 0 else None  # under a dispatch mode


def _rerouted(
    theirs: Callable[..., Tensor],
    alpha: bool,
    first: int | None,
    inplace: bool,
    keys: Any,
    x: Tensor,
    p: float,
    train: bool,
) -> Tensor:
    """One form of dropout; `first` is the first of the axes along which a feature is shared."""
    way = _our_way(x, p, train)
    if way is None or x.dim() < (first or 0):
        return theirs(keys, x, p, train)
    shared = () if first is None else tuple(range(first, x.dim()))
    return way(x, p, inplace, None, shared, "alpha" if alpha else "scale")


def _native(
    kernel: Any, keys: Any, x: Tensor, p: float, train: bool | None
) -> tuple[Tensor, Tensor]:
    """The form that returns its mask too, as bools; backward does not use it."""
    if _our_way(x, p, train) is not in_eager_mode:
        return kernel.call_boxed(keys, x, p, train)
    keep = torch.empty(x.shape, dtype=torch.bool, device="cpu")
    draw = Draw(p, (), "scale")
    draw.keep = keep
    return eagerly(x, draw), keep

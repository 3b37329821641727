"""Kernels that replace PyTorch's own CPU dropout, also within attention and recurrent networks."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import types
import warnings
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from cdropout.torch._draw import LazyMask
from cdropout.torch._tensors import is_supported, runs_eagerly
from cdropout.torch.autograd import (
    apply_eagerly,
    apply_to_dtensor,
    dropout_by_operators,
    dropout_eagerly,
    is_dtensor,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cdropout.torch.autograd import Implementation

    _Function = TypeVar("_Function", bound=Callable[..., Any])


# Checks for functions whose calls return before their bodies run, and types that such calls return
SUSPENDABLE_CHECKS = (
    inspect.isgeneratorfunction,
    inspect.iscoroutinefunction,
    inspect.isasyncgenfunction,
)
SUSPENDABLE_RESULTS = types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType
REFUSAL = (
    "accelerate() cannot decorate a generator function or a coroutine function, whose call returns "
    "before it runs: use `with accelerate():` inside of it"
)

OPERATORS = (  # name of the operator, form of the mask, first broadcast axis or None
    ("dropout", "scale", None),
    ("feature_dropout", "scale", 2),
    ("alpha_dropout", "alpha", None),
    ("feature_alpha_dropout", "alpha", 2),
)
DISPATCH_KEYS = "AutogradCPU", "CPU"  # tensors created in inference mode have only the key CPU
COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


class _Switch:
    """The state of the replacement, shared by all threads, like the registered kernels."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.library: torch.library.Library | None = None
        self.enabled = False
        self.depth = 0  # number of active contexts of accelerate, in all threads together
        self.active = False

    def change(self, enabled: bool | None = None, depth_change: int = 0) -> None:
        """Enable or disable the replacement, or enter or leave a context of accelerate."""
        with self.lock:
            if self.library is None:
                self.library = _register_kernels()
            self.enabled = self.enabled if enabled is None else enabled
            self.depth += depth_change
            self.active = self.enabled or self.depth > 0


_switch = _Switch()


def enable() -> None:
    """Replace PyTorch's dropout on the CPU, in all threads, until `disable` is called.

    The replacement affects all callers of the operators aten::dropout, feature_dropout,
    alpha_dropout and feature_alpha_dropout, in place or not, and aten::native_dropout: functions
    and modules of torch.nn, attention, recurrent networks, scripted and third-party models. Each
    call draws one seed from PyTorch's generator. `torch.manual_seed` therefore makes the masks
    reproducible, but the masks differ from those of PyTorch. A dispatch mode, such as
    FlopCounterMode, does not change the masks. PyTorch's kernels are still used for other devices,
    types and layouts, for subclasses, under transforms of torch.func and in compiled graphs.

    Notes
    -----
    The first call registers kernels for these operators. The kernels of this package remain
    registered after `disable`, since other threads may be using them. They then pass each call to
    PyTorch's kernels. This takes a few additional microseconds per call.
    """
    _switch.change(enabled=True)


def disable() -> None:
    """Undo `enable`. An active context of `accelerate` remains in effect."""
    _switch.change(enabled=False)


class _Acceleration(contextlib.ContextDecorator):
    def __enter__(self) -> None:
        _switch.change(depth_change=1)

    def __exit__(self, *error: object) -> None:
        _switch.change(depth_change=-1)

    def __call__(self, function: _Function) -> _Function:
        inner = inspect.unwrap(function)
        if any(check(f) for f in (inner, type(inner).__call__) for check in SUSPENDABLE_CHECKS):
            raise TypeError(REFUSAL)

        @functools.wraps(function)
        def accelerated(*args: Any, **kwargs: Any) -> Any:
            with self:
                result = function(*args, **kwargs)
            if isinstance(result, SUSPENDABLE_RESULTS):
                if not isinstance(result, types.AsyncGeneratorType):
                    result.close()  # prevents the warning that a coroutine was never awaited
                raise TypeError(REFUSAL)
            return result

        return cast("_Function", accelerated)


def accelerate() -> _Acceleration:
    """Replace PyTorch's dropout on the CPU, as `enable` does, within a context.

    The result can be used as a context manager or as a decorator of functions. Contexts can be
    nested. The replacement affects all threads of the process, and ends when the last context is
    left, also if an exception is raised.

    Raises
    ------
    TypeError
        If a generator function or a coroutine function is decorated, or if the decorated function
        returns a generator or a coroutine.
    """
    return _Acceleration()


# ---- kernels ------------------------------------------------------------------------------------


def _register_kernels() -> torch.library.Library:
    """Return a library with a kernel for each operator, above and below autograd.

    A dispatch mode may decompose an operator instead of calling a kernel, so the decompositions are
    replaced as well.
    """
    library = torch.library.Library("aten", "IMPL")
    for base, form, first_axis in OPERATORS:
        for inplace in (False, True):
            name = base + "_" * inplace
            for key in DISPATCH_KEYS:
                native = torch.library.get_kernel(f"aten::{name}", key).call_boxed
                kernel = functools.partial(_dropout_kernel, native, form, first_axis, inplace)
                library.impl(name, kernel, key, with_keyset=True)
            operator = getattr(torch.ops.aten, name).default
            if COMPOSITE not in operator.py_kernels:
                arguments = operator._op_dk, form, first_axis, inplace, COMPOSITE
                operator.py_impl(COMPOSITE)(functools.partial(_dropout_kernel, *arguments))
    for key in DISPATCH_KEYS:
        native = torch.library.get_kernel("aten::native_dropout", key).call_boxed
        with warnings.catch_warnings():  # PyTorch warns that a kernel is replaced
            warnings.simplefilter("ignore")
            native_kernel = functools.partial(_native_dropout_kernel, native)
            library.impl("native_dropout", native_kernel, key, with_keyset=True)
    return library


def _implementation_for(x: Tensor, p: float, train: bool | None) -> Implementation | None:
    """Return the function that applies masks to x, or None if PyTorch's kernel has to be called."""
    if not (_switch.active and train is not False and 0 < p <= 1):
        return None
    if runs_eagerly(x):
        return dropout_eagerly
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return None
    # Here, x is empty, x is not supported, or a dispatch mode is active
    return dropout_by_operators if is_supported(x) and x.numel() != 0 else None


def _dropout_kernel(
    native: Callable[..., Tensor],
    form: str,
    first_axis: int | None,
    inplace: bool,
    keys: Any,
    x: Tensor,
    p: float,
    train: bool,
) -> Tensor:
    """Return the result of one of OPERATORS; all axes from `first_axis` on are broadcast axes."""
    implementation = _implementation_for(x, p, train)
    sharded = is_dtensor(x) and _switch.active and train and 0 < p <= 1
    if not (implementation or sharded) or x.dim() < (first_axis or 0):
        return native(keys, x, p, train)
    broadcast_axes = () if first_axis is None else tuple(range(first_axis, x.dim()))
    if implementation is None:

        def fallback(*_arguments: Any) -> Tensor:
            return native(keys, x, p, train)

        return apply_to_dtensor(fallback, x, p, inplace, None, None, broadcast_axes, form)
    return implementation(x, p, inplace, None, broadcast_axes, form)


def _native_dropout_kernel(
    native: Callable[..., tuple[Tensor, Tensor]],
    keys: Any,
    x: Tensor,
    p: float,
    train: bool | None,
) -> tuple[Tensor, Tensor]:
    """Return y and the mask as bools, like native_dropout; backward does not use the bools."""
    if _implementation_for(x, p, train) is not dropout_eagerly:
        return native(keys, x, p, train)
    keep = torch.empty(x.shape, dtype=torch.bool, device="cpu")
    mask = LazyMask(p, (), "scale")
    mask.keep = keep
    return apply_eagerly(x, mask), keep

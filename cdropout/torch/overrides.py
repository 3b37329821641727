"""Kernels that replace PyTorch's own CPU dropout, also within attention and recurrent networks."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch._C import DispatchKey

from cdropout.torch._draw import LazyMask
from cdropout.torch._tensors import is_supported, runs_eagerly
from cdropout.torch.attention import replaced_attention
from cdropout.torch.autograd import (
    apply_eagerly,
    dropout_by_operators,
    dropout_eagerly,
    dropout_of_dtensor,
    is_empty,
    is_supported_dtensor,
    is_traced,
    next_seed,
)
from cdropout.torch.dynamo import compile_lock, guard_on, never_compile
from cdropout.torch.operators import dropout_operator, saved_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
COMPOSITE = DispatchKey.CompositeImplicitAutograd


class _Switch:
    """The state of the replacement. All threads share this state and the registered kernels."""

    def __init__(self) -> None:
        self.library: torch.library.Library | None = None
        self.enabled = False
        self.depth = 0  # number of active contexts of accelerate, in all threads together
        # For each forward pass that a checkpoint now repeats: its state, and `enabled` and `depth`
        self.repeated: list[tuple[bool, bool, int]] = []
        self.active = False

    def change(self, enabled: bool | None = None, depth_change: int = 0) -> None:
        """Enable or disable the replacement, or enter or leave a context of accelerate."""
        with compile_lock:  # waits while another thread compiles a graph for the present state
            if self.library is None:
                self.library = _register_kernels()
                guard_on(self)
                _keep_state_in_checkpoints(self)
            self.enabled = self.enabled if enabled is None else enabled
            self.depth += depth_change
            self.update()

    def update(self) -> None:
        active, enabled, depth = self.repeated[-1] if self.repeated else (False, False, 0)
        self.active = active or self.enabled > enabled or self.depth > depth

    @contextlib.contextmanager
    def repeat(self, active: bool) -> Iterator[None]:
        """Set the state, in all threads, to that of a forward pass that a checkpoint repeats."""
        with compile_lock:
            self.repeated.append((active, self.enabled, self.depth))
            self.update()
        try:
            yield
        finally:
            with compile_lock:
                self.repeated.pop()
                self.update()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle only `active`, for the guards that PyTorch stores with compiled graphs."""
        return types.SimpleNamespace, (), {"active": self.active}


_switch = _Switch()
_change_uncompiled = torch.compiler.disable(
    _switch.change,
    reason="accelerate, enable and disable cannot be called with fullgraph=True: "
    "call them outside of the compiled function",
)


def enable() -> None:
    """Replace PyTorch's dropout on the CPU, in all threads, until `disable` is called.

    The replacement affects the operators aten::dropout, feature_dropout, alpha_dropout and
    feature_alpha_dropout, their in-place variants, aten::native_dropout, and
    aten::scaled_dot_product_attention if its `dropout_p` is not 0. These operators are called by
    functions and modules of torch.nn, attention, recurrent networks, scripted models and
    third-party models. In attention with fewer than 2**16 weights, only the dropout of the weights
    is replaced, which takes less time and gives the same masks. The seed of each mask is drawn from
    PyTorch's generator. `torch.manual_seed` therefore makes the masks reproducible, but the masks
    differ from those of PyTorch. A dispatch mode, such as FlopCounterMode, does not change the
    masks. PyTorch's kernels are still used for other devices, types and layouts, for most
    subclasses of Tensor, and under transforms of torch.func.

    Code that torch.compile has compiled has the same masks as code that is not compiled. Whether
    dropout is replaced is a global state. Compiled code has a guard on this state, as on the grad
    mode: a function is compiled once for calls with the replacement and once for calls without it.
    The compiler's caches also have separate files for the two cases. Compiled code must not change
    this state. With ``fullgraph=True``, a change raises an error. Otherwise, PyTorch does not
    compile the function that makes the change, but compiles the functions that it calls. An
    exported program contains PyTorch's dropout, which is replaced when the program runs, or by
    ``run_decompositions``.

    Notes
    -----
    The first call registers kernels for these operators. It also deletes compiled code, which
    torch.compile then compiles again. The kernels of this package remain registered after
    `disable`, since other threads may be using them. They then pass each call to PyTorch's kernels,
    with the same masks and the same compiled code as without this package. This takes a few
    additional microseconds per call.
    """
    _change_uncompiled(enabled=True)


def disable() -> None:
    """Undo `enable`. An active context of `accelerate` remains in effect."""
    _change_uncompiled(enabled=False)


class _Acceleration(contextlib.ContextDecorator):
    def __enter__(self) -> None:
        _change_uncompiled(depth_change=1)

    def __exit__(self, *error: object) -> None:
        _change_uncompiled(depth_change=-1)

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
    nested. The replacement affects all threads of the process. It ends when the last context is
    left, even if an exception is raised, unless `enable` was called. The backward pass may run
    outside of the context. If it repeats a forward pass that ran within the context (see
    torch.utils.checkpoint), the replacement is in effect during this repetition.

    Raises
    ------
    TypeError
        If a generator function or a coroutine function is decorated, or if the decorated function
        returns a generator or a coroutine.
    """
    return _Acceleration()


# ---- checkpoints --------------------------------------------------------------------------------


def _keep_state_in_checkpoints(switch: _Switch) -> None:
    """Make checkpoints repeat each forward pass in the state of the switch in which it was run.

    This changes two internal functions of torch.utils.checkpoint, one for each value of
    `use_reentrant`. Both receive the function that is repeated.
    """
    from torch.utils import checkpoint

    frame: Any = checkpoint._CheckpointFrame
    reentrant: Any = checkpoint.CheckpointFunction
    init, forward = frame.__init__, reentrant.forward

    def with_state(function: Callable[..., Any]) -> Callable[..., Any]:
        return partial(_run_with_state, switch, switch.active, function)

    def init_with_state(
        self: Any, recompute_fn: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> None:
        init(self, with_state(recompute_fn), *args, **kwargs)

    def forward_with_state(ctx: Any, run_function: Callable[..., Any], *args: Any) -> Any:
        return forward(ctx, with_state(run_function), *args)

    frame.__init__ = init_with_state
    reentrant.forward = staticmethod(forward_with_state)


def _run_with_state(
    switch: _Switch, active: bool, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if switch.active == active:
        return function(*args, **kwargs)
    with switch.repeat(active):
        return function(*args, **kwargs)


# ---- kernels ------------------------------------------------------------------------------------


def _register_kernels() -> torch.library.Library:
    """Return a library with two kernels for each operator, one for each key in DISPATCH_KEYS.

    While a graph is traced, and within a dispatch mode, PyTorch calls an operator's Python kernel
    or decomposition instead of the kernels in the library. This function therefore also sets
    the Python kernels.
    """
    library = torch.library.Library("aten", "IMPL")
    never_compile(_dropout_kernel)
    never_compile(_native_dropout_kernel)
    for base, form, first_axis in OPERATORS:
        for inplace in (False, True):
            name = base + "_" * inplace
            operator = getattr(torch.ops.aten, name).default
            options = form, first_axis, inplace
            original = operator.py_kernels.get(COMPOSITE, partial(operator._op_dk, COMPOSITE))
            traced = partial(_traced_dropout_kernel, original, *options)
            operator.py_kernels[COMPOSITE] = traced
            for key in DISPATCH_KEYS:
                native = torch.library.get_kernel(f"aten::{name}", key).call_boxed
                kernel = partial(_dropout_kernel, native, *options)
                library.impl(name, kernel, key, with_keyset=True)
                operator.py_kernels[getattr(DispatchKey, key)] = traced
            operator._dispatch_cache.clear()
    for key in DISPATCH_KEYS:
        native = torch.library.get_kernel("aten::native_dropout", key).call_boxed
        with warnings.catch_warnings():  # PyTorch warns that a kernel is replaced
            warnings.simplefilter("ignore")
            native_kernel = partial(_native_dropout_kernel, native)
            library.impl("native_dropout", native_kernel, key, with_keyset=True)
    _register_attention(library)
    return library


def _register_attention(library: torch.library.Library) -> None:
    """Register kernels of scaled_dot_product_attention in the same way as those of dropout."""
    operator = torch.ops.aten.scaled_dot_product_attention.default
    never_compile(_attention_kernel)
    original = operator.py_kernels.get(COMPOSITE, partial(operator._op_dk, COMPOSITE))
    traced = partial(_traced_attention_kernel, original)
    operator.py_kernels[COMPOSITE] = traced
    for key in DISPATCH_KEYS:
        native = torch.library.get_kernel(operator.name(), key).call_boxed
        kernel = partial(_attention_kernel, native)
        library.impl("scaled_dot_product_attention", kernel, key, with_keyset=True)
        operator.py_kernels[getattr(DispatchKey, key)] = traced
    operator._dispatch_cache.clear()


def _implementation_for(x: Tensor, p: float, train: bool | None) -> Implementation | None:
    """Return the function that applies masks to x, or None if PyTorch's kernel has to be called."""
    if not (_switch.active and train is not False and 0 < p <= 1):
        return None
    if runs_eagerly(x):
        return dropout_eagerly
    if torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None:
        return None
    if is_supported_dtensor(x):
        return dropout_of_dtensor
    # Here, x is empty, x is not supported, or a dispatch mode or a tracer is active
    return dropout_by_operators if (is_supported(x) or is_traced(x)) and not is_empty(x) else None


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
    """Return the result of an operator in OPERATORS; `native` is PyTorch's kernel."""
    y = _replaced_dropout(form, first_axis, inplace, x, p, train)
    return native(keys, x, p, train) if y is None else y


def _traced_dropout_kernel(
    original: Callable[..., Tensor],
    form: str,
    first_axis: int | None,
    inplace: bool,
    x: Tensor,
    p: float,
    train: bool,
) -> Tensor:
    """Return the result of an operator in OPERATORS.

    `original` is PyTorch's Python kernel or decomposition of the operator.
    """
    y = _replaced_dropout(form, first_axis, inplace, x, p, train)
    return original(x, p, train) if y is None else y


def _replaced_dropout(
    form: str, first_axis: int | None, inplace: bool, x: Tensor, p: float, train: bool
) -> Tensor | None:
    """Return the result of an operator in OPERATORS, or None if PyTorch's kernel has to be called.

    If `first_axis` is not None, all axes from this one on are broadcast axes.
    """
    implementation = _implementation_for(x, p, train)
    if implementation is None or x.dim() < (first_axis or 0):
        return None
    broadcast_axes = () if first_axis is None else tuple(range(first_axis, x.dim()))
    return implementation(x, p, inplace, None, broadcast_axes, form)


def _native_dropout_kernel(
    native: Callable[..., tuple[Tensor, Tensor]],
    keys: Any,
    x: Tensor,
    p: float,
    train: bool | None,
) -> tuple[Tensor, Tensor]:
    """Return y and a mask of bools, like native_dropout; the backward pass ignores the bools."""
    implementation = _implementation_for(x, p, train)
    if implementation is None or implementation is dropout_of_dtensor:
        return native(keys, x, p, train)
    if implementation is dropout_by_operators:
        seed, call = next_seed(p, None)
        seed, ones = saved_seed(seed), torch.ones_like(x, requires_grad=False)
        keep = dropout_operator(ones, seed, call, p, [], "keep").bool()
        return dropout_operator(x, seed, call, p, [], "scale"), keep
    keep = torch.empty(x.shape, dtype=torch.bool, device="cpu")
    mask = LazyMask(p, (), "scale")
    mask.keep = keep
    return apply_eagerly(x, mask), keep


def _attention_kernel(
    native: Callable[..., Tensor], keys: Any, *args: Any, **options: Any
) -> Tensor:
    """Return the result of scaled_dot_product_attention."""
    y = replaced_attention(*args, **options) if _switch.active else None
    return native(keys, *args, **options) if y is None else y


def _traced_attention_kernel(original: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Return the result of attention; `original` is PyTorch's Python kernel or decomposition."""
    y = replaced_attention(*args, **options) if _switch.active else None
    return original(*args, **options) if y is None else y

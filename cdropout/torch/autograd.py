"""Application of masks to tensors: in eager mode, under torch.func and in graphs."""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, is_grad_enabled
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_functorch_wrapped_tensor,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.fx import Proxy
from torch.fx.experimental.symbolic_shapes import guard_or_false

from cdropout._core.dtypes import FLOATS, FLOATS_TEXT
from cdropout._core.generator import Generator
from cdropout._core.mask import Mask, check_mask, check_not_given
from cdropout.torch._draw import (
    SEED_LIMIT,
    LazyMask,
    check_generator,
    draw_from,
    given_mask,
    restore,
    state_of,
)
from cdropout.torch._tensors import (
    apply_mask,
    apply_mask_to_gradient,
    elements_overlap,
    is_supported,
    runs_eagerly,
)
from cdropout.torch.fx import REPLACEMENTS, record_call
from cdropout.torch.operators import (
    dropout_operator,
    mask_operator,
    move_batch_axis_first,
    saved_seed,
)

Source: TypeAlias = torch.Generator | Generator | None
# The type of functions f(x, p, inplace, generator, broadcast_axes, form) that apply a new mask
Implementation: TypeAlias = Callable[[Tensor, float, bool, Source, tuple[int, ...], str], Tensor]

DTYPES = tuple(getattr(torch, name) for name in FLOATS)

# The types of the tensors that tracers use, each with the dispatch mode that has to be active
TRACED = {
    FakeTensor: torch._C._TorchDispatchModeKey.FAKE,
    FunctionalTensor: torch._C._TorchDispatchModeKey.FUNCTIONAL,
}


# ---- seeds --------------------------------------------------------------------------------------


def next_seed(p: float, generator: Source) -> tuple[Tensor, int]:
    """Return the seed, as a tensor, and the call number of a new mask.

    If p is 1, both are 0 and nothing is drawn.
    """
    if p == 1:
        return torch.zeros((), dtype=torch.int64, device="cpu"), 0
    if generator is not None:
        if is_dynamo_compiling():
            torch._dynamo.graph_break(
                msg="generator= cannot be used with fullgraph=True or in a strict export; "
                "PyTorch's default generator can"
            )
        return draw_from(generator)
    # Without the argument `generator`, the compiler would draw from its own generator
    return torch.randint(SEED_LIMIT, (), generator=None, device="cpu"), 0


def restore_on_error(
    generator: Source, draw: Callable[[], Any], use: Callable[[Any], Tensor]
) -> Tensor:
    """Return use(draw()). If `use` raises an error in code that is not compiled, undo the draw."""
    if is_compiling():
        return use(draw())
    check_generator(generator)
    before = state_of(generator)
    value = draw()
    after = state_of(generator)
    try:
        return use(value)
    except BaseException:
        restore(generator, before, after)
        raise


# ---- autograd functions -------------------------------------------------------------------------


class EagerDropout(torch.autograd.Function):
    """Dropout in eager mode. `forward` takes ctx, since a separate setup_context is slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: LazyMask) -> Tensor:
        ctx.mask = mask
        if mask.inplace:
            ctx.mark_dirty(x)
        return apply_mask(x, mask)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        gx = apply_mask_to_gradient(gy, ctx.mask)
        if gx is None:
            gx = TransformableDropout.apply(gy, None, ctx.mask.derivative())
        return gx, None


# Function.apply unwraps its arguments, and the apply method of the node looks up `backward`. For
# small tensors, this takes a noticeable part of the time of a call, so both functions are bypassed.
apply_eager_dropout = super(torch.autograd.Function, EagerDropout).apply
EagerDropout._backward_cls.apply = EagerDropout.backward  # type: ignore[attr-defined]


class TransformableDropout(torch.autograd.Function):
    """Dropout under torch.func, in forward mode and in second derivatives; it is affine in x.

    The argument `seed` is a tensor, or None if the seed of `mask` is already drawn.
    """

    @staticmethod
    def forward(x: Tensor, seed: Tensor | None, mask: LazyMask) -> Tensor:
        if seed is not None:
            return dropout_operator(x, seed, *mask.dropout_arguments())
        if torch._C._len_torch_dispatch_stack():
            return mask_operator(x, *mask.apply_mask_arguments(tuple(x.shape)))
        if is_supported(x):
            return apply_mask(x, mask)
        # apply_mask does not support x, a gradient such as a lazy zero or a tensor of a legacy vmap
        wide = torch.float32 if x.dtype.itemsize == 2 else x.dtype
        scales = apply_mask(torch.ones(x.shape, dtype=wide, device="cpu"), mask.derivative())
        return torch.where(scales != 0, x.to(wide) * scales, 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _x, seed, mask = inputs
        ctx.mask = mask.derivative()
        ctx.has_seed = seed is not None
        if seed is not None:
            ctx.save_for_backward(seed)
            ctx.save_for_forward(seed)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
        return TransformableDropout.jvp(ctx, gy), None, None

    @staticmethod
    def jvp(ctx: Any, gx: Tensor, *_others: None) -> Tensor:
        seed = ctx.saved_tensors[0] if ctx.has_seed else None
        return TransformableDropout.apply(gx, seed, ctx.mask)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, seed: Tensor | None, mask: LazyMask
    ) -> tuple[Tensor, int]:
        x, seed = move_batch_axis_first(info, in_dims, x, seed)
        return TransformableDropout.apply(x, seed, mask.with_batch_axis(in_dims[1] is None)), 0


# ---- implementations ----------------------------------------------------------------------------


def _check_in_place(x: Tensor) -> None:
    """Raise PyTorch's error, before a mask is drawn, if x cannot be written to."""
    if torch._debug_has_internal_overlap(x):  # an overlap is certain or possible
        _check_overlap(x)
    differentiable = x.requires_grad and torch.is_grad_enabled()
    if differentiable and (x.is_leaf or x._is_view()):
        x.copy_(x)  # raises PyTorch's error unless x is a view that can be written to
    if x.is_inference() and not torch.is_inference_mode_enabled():
        x.copy_(x)  # raises PyTorch's error


def _check_overlap(x: Tensor) -> None:
    """Raise RuntimeError if elements of x may share memory; PyTorch detects only some overlaps."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    if elements_overlap(x.shape, x.stride()):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a "
            "single memory location. Please clone() the tensor before performing the operation."
        )


def apply_eagerly(x: Tensor, mask: LazyMask) -> Tensor:
    """Return x with a mask applied in eager mode; use autograd only if a derivative is needed."""
    forward_mode = forward_ad._current_level >= 0
    needs_grad = x.requires_grad and is_grad_enabled()
    if mask.inplace:
        _check_in_place(x)
        if forward_mode or (needs_grad and x._is_view()):
            return x.copy_(apply_eagerly(x, mask.out_of_place()))
    if forward_mode:
        if mask.keep is None:
            return apply_under_transforms(x, mask)
        apply_mask(x, mask)  # fills mask.keep
        return TransformableDropout.apply(x, None, mask)
    if needs_grad:
        return apply_eager_dropout(x, mask)
    y = apply_mask(x, mask)
    if mask.inplace and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return y


def apply_under_transforms(x: Tensor, mask: LazyMask) -> Tensor:
    """Return x with a mask applied under torch.func or in forward mode.

    The option `randomness` of vmap determines how seeds are drawn.
    """

    def apply(seed: Tensor | None, out_of_place: LazyMask) -> Tensor:
        y = TransformableDropout.apply(x, seed, out_of_place)
        return x.copy_(y) if mask.inplace else y

    if mask.inplace:
        _check_overlap(x)
    if mask.drawn:
        return apply(None, mask.out_of_place())
    return restore_on_error(
        mask.generator,
        lambda: next_seed(mask.p, mask.generator),
        lambda drawn: apply(drawn[0], mask.with_call(drawn[1])),
    )


def dropout_eagerly(
    x: Tensor,
    p: float,
    inplace: bool,
    generator: Source,
    broadcast_axes: tuple[int, ...],
    form: str,
) -> Tensor:
    """Return x with a new mask applied in eager mode."""
    return apply_eagerly(x, LazyMask(p, broadcast_axes, form, inplace, generator))


def dropout_under_transforms(
    x: Tensor,
    p: float,
    inplace: bool,
    generator: Source,
    broadcast_axes: tuple[int, ...],
    form: str,
) -> Tensor:
    """Return x with a new mask applied under torch.func."""
    return apply_under_transforms(x, LazyMask(p, broadcast_axes, form, inplace, generator))


def dropout_by_operators(
    x: Tensor,
    p: float,
    inplace: bool,
    generator: Source,
    broadcast_axes: tuple[int, ...],
    form: str,
) -> Tensor:
    """Return x with a new mask applied by operators, which can be recorded in graphs."""

    def apply(drawn: tuple[Tensor, int]) -> Tensor:
        seed, call = drawn
        y = dropout_operator(x, saved_seed(seed), call, p, list(broadcast_axes), form)
        return x.copy_(y) if inplace else y

    if inplace and not is_compiling():
        _check_overlap(x)
    return restore_on_error(generator, lambda: next_seed(p, generator), apply)


def apply_given_mask(
    implementation: Implementation, x: Tensor, mask: Mask, inplace: bool, form: str
) -> Tensor:
    """Return x with a given Mask applied; `implementation` is `implementation_for(x)`."""
    if mask.p == 0 and (mask.scale == 1 or form == "alpha"):
        return x
    lazy = given_mask(mask, form, inplace)
    if implementation is dropout_eagerly:
        return apply_eagerly(x, lazy)
    if implementation is dropout_under_transforms:
        return apply_under_transforms(x, lazy)
    if inplace and not is_compiling():
        _check_overlap(x)
    y = mask_operator(x, *lazy.apply_mask_arguments(mask.shape))
    return x.copy_(y) if inplace else y


def is_empty(x: Tensor) -> bool:
    """Return whether x has no elements. Return False if this depends on data in a traced graph."""
    empty: bool = guard_or_false(x.numel() == 0)
    return empty


def is_dtensor(x: Tensor) -> bool:
    """Return whether x is a DTensor, without importing torch.distributed.tensor."""
    return type(x).__name__ == "DTensor" and hasattr(x, "device_mesh")


def is_supported_dtensor(x: Tensor) -> bool:
    """Return whether x is a DTensor of a supported type on the CPU."""
    return is_dtensor(x) and x.device.type == "cpu" and x.dtype in DTYPES


def implementation_for(x: Tensor) -> Implementation | None:
    """Return the function that applies masks to x.

    Return None if x is a DTensor or has to be passed to PyTorch.
    """
    if is_dtensor(x):
        return None
    if not is_dynamo_compiling() and runs_eagerly(x):
        return dropout_eagerly
    if is_compiling():  # torch.compile or torch.export
        return dropout_by_operators if _has_supported_type(x) else None
    if torch._C._get_tracing_state() is not None:
        return None
    if torch._C._are_functorch_transforms_active():
        if type(x) is not Tensor or not _has_supported_type(x):
            return None
        functionalized = any(
            level.key() == TransformType.Functionalize for level in get_interpreter_stack() or ()
        )
        return dropout_by_operators if functionalized else dropout_under_transforms
    return dropout_by_operators if is_supported(x) or is_traced(x) else None


def _has_supported_type(x: Tensor) -> bool:
    """Return whether x is a strided CPU tensor of a supported type.

    A transform of torch.func, or a tracer such as make_fx, may have wrapped x.
    """
    return x.device.type == "cpu" and x.dtype in DTYPES and x.layout is torch.strided


def is_traced(x: Tensor) -> bool:
    """Return whether x is a supported tensor in a graph that make_fx or aot_function records."""
    key = TRACED.get(type(x))
    return (
        key is not None and torch._C._get_dispatch_mode(key) is not None and _has_supported_type(x)
    )


# ---- dropout ------------------------------------------------------------------------------------


def apply_dropout(
    fallback: Callable[..., Tensor],
    x: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    generator: Source,
    mask: Mask | None,
    broadcast_axes: tuple[int, ...] = (),
    form: str = "scale",
) -> Tensor:
    """Return x with a new or given mask applied; if x is not supported, call `fallback`.

    `fallback` is PyTorch's function, or a function that calls it.
    """
    if (
        training is True
        and 0 < p < 1
        and mask is None
        and not is_dynamo_compiling()
        and runs_eagerly(x)
    ):
        return apply_eagerly(x, LazyMask(p, broadcast_axes, form, inplace, generator))
    valid = isinstance(training, bool) and 0 <= p <= 1
    implementation = implementation_for(x) if valid else None
    if implementation is None:
        if valid and training and is_supported_dtensor(x):
            return dropout_of_dtensor(x, p, inplace, generator, broadcast_axes, form, mask)
        if isinstance(x, Proxy):
            function = REPLACEMENTS[fallback]
            return record_call(function, x, p, training, inplace, generator=generator, mask=mask)
        if valid and training:
            _check_fallback(x, generator, mask)
        return _call_fallback(fallback, x, p, training, inplace)
    if mask is not None and training:
        if is_dynamo_compiling():
            return apply_dropout_uncompiled(
                fallback, x, p, training, inplace, generator, mask, broadcast_axes, form
            )
        check_not_given("generator", generator)
        check_mask(mask, tuple(x.shape), broadcast_axes, p)
        return apply_given_mask(implementation, x, mask, inplace, form)
    if not training or p == 0 or (implementation is not dropout_eagerly and is_empty(x)):
        return x
    return implementation(x, float(p), inplace, generator, broadcast_axes, form)


@torch.compiler.disable(
    reason="dropout of a DTensor cannot be traced: compile it without fullgraph=True"
)
def dropout_of_dtensor(*arguments: Any) -> Tensor:
    """Apply dropout to a DTensor. `dtensor` is imported only here, as it imports collectives."""
    from cdropout.torch import dtensor

    return dtensor.dropout_of_dtensor(*arguments)


# With a given mask, torch.compile breaks the graph and calls this function eagerly
apply_dropout_uncompiled = torch.compiler.disable(
    apply_dropout, reason="mask= cannot be used with fullgraph=True or in a strict export"
)


def _check_fallback(x: Tensor, generator: Source, mask: Mask | None) -> None:
    """Raise NotImplementedError if `generator` or `mask` is given: PyTorch has neither argument."""
    for name, value in ("generator", generator), ("mask", mask):
        if value is None:
            continue
        if torch._C._get_tracing_state() is not None:
            raise NotImplementedError(
                f"{name}= cannot be used while traced by torch.jit.trace, which records "
                f"PyTorch's own dropout, without {name}="
            )
        raise NotImplementedError(
            f"{name}= is supported for plain CPU tensors of {FLOATS_TEXT}, but got "
            f"a {type(x).__name__} of {x.dtype} on {x.device}, which is passed to PyTorch's dropout"
        )


def _call_fallback(
    fallback: Callable[..., Tensor], x: Tensor, p: float, training: bool, inplace: bool
) -> Tensor:
    """Return `fallback(...)`; if PyTorch rejects the layout or type of x, raise a clearer error.

    The clearer error has the type of PyTorch's error and names the supported tensors.
    """
    try:
        return fallback(x, p, training, inplace)
    except RuntimeError as error:  # or NotImplementedError, a subclass
        if x.is_floating_point() and x.layout is torch.strided:
            raise
        raise type(error)(
            "dropout takes strided tensors of floating-point numbers, "
            f"but got a {x.layout} tensor of {x.dtype}"
        ) from error

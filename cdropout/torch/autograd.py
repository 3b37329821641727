"""A mask applied to a tensor, with derivatives: eagerly, under torch.func, in compiled graphs."""

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

from cdropout.torch._draw import SEEDS, Draw, check_generator, draw_from, known, restore, state_of
from cdropout._core.dtypes import FLOATS, FLOATS_TEXT
from cdropout._core.generator import Generator
from cdropout._core.mask import Mask, check_mask, check_not_given
from cdropout.torch._tensors import compute, compute_gradient, is_ordinary, is_plain, overlap
from cdropout.torch.operators import batched, dropout_operator, mask_operator, saved_seed
from cdropout.torch.fx import PUBLIC, symbolic_call

# What masks may be drawn from, and what applies one: (x, p, inplace, generator, shared, form)
Source: TypeAlias = torch.Generator | Generator | None
Way: TypeAlias = Callable[[Tensor, float, bool, Source, tuple[int, ...], str], Tensor]

DTYPES = tuple(getattr(torch, name) for name in FLOATS)

# Tensors of tracers, with the dispatch modes in which they can be computed with
TRACED = {
    FakeTensor: torch._C._TorchDispatchModeKey.FAKE,
    FunctionalTensor: torch._C._TorchDispatchModeKey.FUNCTIONAL,
}


# ---- which mask -------------------------------------------------------------------------------


def next_seed(p: float, generator: Source) -> tuple[Tensor, int]:
    """Return the seed, as a tensor, and the call number of the next mask; p = 1 draws nothing."""
    if p == 1:
        return torch.zeros((), dtype=torch.int64, device="cpu"), 0
    if generator is not None:
        if is_dynamo_compiling():
            torch._dynamo.graph_break(
                msg="generator= cannot be used with fullgraph=True or in a strict export; "
                "PyTorch's default generator can"
            )
        return draw_from(generator)
    # The compiler replaces the overload of randint without a generator by a generator of its own
    return torch.randint(SEEDS, (), generator=None, device="cpu"), 0


def then_or_restore(
    generator: Source, draw: Callable[[], Any], use: Callable[[Any], Tensor]
) -> Tensor:
    """Return use(draw()); if `use` raises an error, set the generator back to before the draw."""
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


# ---- the step, and its derivatives --------------------------------------------------------------


class Eager(torch.autograd.Function):
    """The step as eager mode records it: in PyTorch's older form, which costs it least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: Draw) -> Tensor:
        ctx.draw = draw
        if draw.inplace:
            ctx.mark_dirty(x)
        return compute(x, draw)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        gx = compute_gradient(gy, ctx.draw)
        return Masked.apply(gy, None, ctx.draw.derivative()) if gx is None else gx, None


# Outside of torch.func, Function.apply looks at forward's signature, and the node's apply at which
# of its methods is there, anew in each call: for a small tensor longer than its dropout takes.
record = super(torch.autograd.Function, Eager).apply
Eager._backward_cls.apply = Eager.backward  # type: ignore[attr-defined]


class Masked(torch.autograd.Function):
    """The step for all else: torch.func, forward mode, second derivatives. It is affine in x.

    The seed is a tensor where a draw has none yet, and None otherwise.
    """

    @staticmethod
    def forward(x: Tensor, seed: Tensor | None, draw: Draw) -> Tensor:
        if seed is not None:
            return dropout_operator(x, seed, *draw.constants())
        if torch._C._len_torch_dispatch_stack():
            return mask_operator(x, *draw.numbers(tuple(x.shape)))
        if is_plain(x):
            return compute(x, draw)
        # a gradient that is a batch of vmap's older kind, lazy zeros, ...
        wide = torch.float32 if x.dtype.itemsize == 2 else x.dtype
        scales = compute(torch.ones(x.shape, dtype=wide, device="cpu"), draw.derivative())
        return torch.where(scales != 0, x.to(wide) * scales, 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _x, seed, draw = inputs
        ctx.draw = draw.derivative()
        ctx.has_seed = seed is not None
        if seed is not None:
            ctx.save_for_backward(seed)
            ctx.save_for_forward(seed)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
        return Masked.jvp(ctx, gy), None, None

    @staticmethod
    def jvp(ctx: Any, gx: Tensor, *_others: None) -> Tensor:
        return Masked.apply(gx, ctx.saved_tensors[0] if ctx.has_seed else None, ctx.draw)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, seed: Tensor | None, draw: Draw
    ) -> tuple[Tensor, int]:
        x, seed = batched(info, in_dims, x, seed)
        return Masked.apply(x, seed, draw.batched(in_dims[1] is None)), 0


# ---- the ways to it -----------------------------------------------------------------------------


def _check_in_place(x: Tensor) -> None:
    """Refuse a tensor that cannot be written to before anything is drawn, in PyTorch's words."""
    if torch._debug_has_internal_overlap(x):  # it may have, as far as PyTorch knows
        _check_overlap(x)
    differentiable = x.requires_grad and torch.is_grad_enabled()
    if differentiable and (x.is_leaf or x._is_view()):
        x.copy_(x)
    if x.is_inference() and not torch.is_inference_mode_enabled():
        x.copy_(x)


def _check_overlap(x: Tensor) -> None:
    """RuntimeError if elements of x may share memory; PyTorch finds only some of them."""
    while is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    if overlap(x.shape, x.stride()):
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a "
            "single memory location. Please clone() the tensor before performing the operation."
        )


def eagerly(x: Tensor, draw: Draw) -> Tensor:
    """Apply a mask eagerly; record it in autograd only if a derivative is needed."""
    forward_mode = forward_ad._current_level >= 0
    watched = x.requires_grad and is_grad_enabled()
    if draw.inplace:
        _check_in_place(x)
        if forward_mode or (watched and x._is_view()):
            return x.copy_(eagerly(x, draw.out_of_place()))
    if forward_mode:
        if draw.keep is None:
            return transformed(x, draw)
        compute(x, draw)  # fills keep
        return Masked.apply(x, None, draw)
    if watched:
        return record(x, draw)
    y = compute(x, draw)
    if draw.inplace and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return y


def transformed(x: Tensor, draw: Draw) -> Tensor:
    """Apply a mask under torch.func, where vmap's randomness decides what a draw is."""

    def apply(seed: Tensor | None, outside: Draw) -> Tensor:
        y = Masked.apply(x, seed, outside)
        return x.copy_(y) if draw.inplace else y

    if draw.inplace:
        _check_overlap(x)
    if draw.drawn:
        return apply(None, draw.out_of_place())
    return then_or_restore(
        draw.generator,
        lambda: next_seed(draw.p, draw.generator),
        lambda drawn: apply(drawn[0], draw.with_call(drawn[1])),
    )


def in_eager_mode(
    x: Tensor, p: float, inplace: bool, generator: Source, shared: tuple[int, ...], form: str
) -> Tensor:
    """Apply a new mask eagerly."""
    return eagerly(x, Draw(p, shared, form, inplace, generator))


def under_transforms(
    x: Tensor, p: float, inplace: bool, generator: Source, shared: tuple[int, ...], form: str
) -> Tensor:
    """Apply a new mask under torch.func."""
    return transformed(x, Draw(p, shared, form, inplace, generator))


def in_a_graph(
    x: Tensor, p: float, inplace: bool, generator: Source, shared: tuple[int, ...], form: str
) -> Tensor:
    """Apply a new mask as operators, for compilers and dispatch modes."""

    def apply(drawn: tuple[Tensor, int]) -> Tensor:
        seed, call = drawn
        y = dropout_operator(x, saved_seed(seed), call, p, list(shared), form)
        return x.copy_(y) if inplace else y

    if inplace and not is_compiling():
        _check_overlap(x)
    return then_or_restore(generator, lambda: next_seed(p, generator), apply)


def apply_given_mask(way: Way, x: Tensor, mask: Mask, inplace: bool, form: str) -> Tensor:
    """Apply a given mask in the way of `way_for`."""
    if mask.p == 0 and (mask.scale == 1 or form == "alpha"):
        return x
    draw = known(mask, form, inplace)
    if way is in_eager_mode:
        return eagerly(x, draw)
    if way is under_transforms:
        return transformed(x, draw)
    if inplace and not is_compiling():
        _check_overlap(x)
    y = mask_operator(x, *draw.numbers(mask.shape))
    return x.copy_(y) if inplace else y


def way_for(x: Tensor) -> Way | None:
    """The function that applies masks to x here and now; None where PyTorch's own op has to."""
    if not is_dynamo_compiling() and is_ordinary(x):
        return in_eager_mode
    if is_compiling():  # by torch.export too
        return in_a_graph if _fits(x) else None
    if torch._C._get_tracing_state() is not None:
        return None
    if torch._C._are_functorch_transforms_active():
        if type(x) is not Tensor or not _fits(x):
            return None
        functionalized = any(
            level.key() == TransformType.Functionalize for level in get_interpreter_stack() or ()
        )
        return in_a_graph if functionalized else under_transforms
    return in_a_graph if is_plain(x) or _is_traced(x) else None  # x may be empty too


def _fits(x: Tensor) -> bool:
    """Whether x, whatever wraps it, is a strided CPU tensor of floats that the kernels know."""
    return x.device.type == "cpu" and x.dtype in DTYPES and x.layout is torch.strided


def _is_traced(x: Tensor) -> bool:
    """Return whether x stands for a tensor in a graph that make_fx or aot_function records."""
    key = TRACED.get(type(x))
    return key is not None and torch._C._get_dispatch_mode(key) is not None and _fits(x)


def masked(
    peer: Callable[..., Tensor],
    x: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    generator: Source,
    mask: Mask | None,
    shared: tuple[int, ...] = (),
    form: str = "scale",
) -> Tensor:
    """Apply a mask to x; `peer` is PyTorch's function for all that is left to it."""
    if (
        training is True
        and 0 < p < 1
        and mask is None
        and not is_dynamo_compiling()
        and is_ordinary(x)
    ):
        return eagerly(x, Draw(p, shared, form, inplace, generator))
    sound = isinstance(training, bool) and 0 <= p <= 1
    way = way_for(x) if sound else None
    if way is None:
        if isinstance(x, Proxy):
            function = PUBLIC[peer]
            return symbolic_call(function, x, p, training, inplace, generator=generator, mask=mask)
        if sound and training:
            _check_left(x, generator, mask)
        return _left_to(peer, x, p, training, inplace)
    if mask is not None and training:
        if is_dynamo_compiling():
            return masked_in_a_break(peer, x, p, training, inplace, generator, mask, shared, form)
        check_not_given("generator", generator)
        check_mask(mask, tuple(x.shape), shared, p)
        return apply_given_mask(way, x, mask, inplace, form)
    if not training or p == 0 or (way is not in_eager_mode and x.numel() == 0):
        return x
    return way(x, float(p), inplace, generator, shared, form)


# A given mask breaks the graph of torch.compile, which then calls this function
masked_in_a_break = torch.compiler.disable(
    masked, reason="mask= cannot be used with fullgraph=True or in a strict export"
)


def _check_left(x: Tensor, generator: Source, mask: Mask | None) -> None:
    """Refuse arguments that PyTorch's function, which x is left to, does not have."""
    for name, value in ("generator", generator), ("mask", mask):
        if value is None:
            continue
        if torch._C._get_tracing_state() is not None:
            raise NotImplementedError(
                f"{name}= cannot be used while traced by torch.jit.trace, which records "
                "PyTorch's own dropout: it has none"
            )
        raise NotImplementedError(
            f"{name}= is taken for ordinary CPU tensors of {FLOATS_TEXT}; "
            f"PyTorch's own dropout has none, and a {type(x).__name__} of {x.dtype} "
            f"on {x.device} is left to it"
        )


def _left_to(
    peer: Callable[..., Tensor], x: Tensor, p: float, training: bool, inplace: bool
) -> Tensor:
    """PyTorch's function, with its errors, but in clear words where a kind of tensor is refused."""
    try:
        return peer(x, p, training, inplace)
    except RuntimeError as error:  # NotImplementedError is one
        if x.is_floating_point() and x.layout is torch.strided:
            raise
        raise type(error)(
            "dropout takes strided tensors of floating-point numbers, "
            f"but got a {x.layout} tensor of {x.dtype}"
        ) from error

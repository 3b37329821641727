"""A mask applied to a tensor, with derivatives: eagerly, under torch.func, in compiled graphs."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, is_grad_enabled
from torch._C._functorch import TransformType, get_interpreter_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.fx import Proxy

from cdropout.core.generators import Generator
from cdropout.core.tensors import (
    SEEDS,
    compute,
    compute_gradient,
    draw_from,
    draw_seed,
    is_ordinary,
    is_plain,
)
from cdropout.torch.tracing import PUBLIC, saved_seed, symbolic_call

if TYPE_CHECKING:
    from cdropout.core.tensors import _Name

# What masks may be drawn from, and what applies one: (x, p, inplace, generator, shared, factor)
Source: TypeAlias = torch.Generator | Generator | None
Way: TypeAlias = Callable[[Tensor, float, bool, Source, tuple[int, ...], float | None], Tensor]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WORD = 2**64 - 1

# Tensors of tracers, with the dispatch modes in which they can be computed with
TRACED = {
    FakeTensor: torch._C._TorchDispatchModeKey.FAKE,
    FunctionalTensor: torch._C._TorchDispatchModeKey.FUNCTIONAL,
}


# ---- which mask -------------------------------------------------------------------------------


def check_generator(generator: object) -> None:
    """TypeError unless a mask can be drawn from generator."""
    if not (generator is None or isinstance(generator, (torch.Generator, Generator))):
        raise TypeError(
            "generator has to be None, a torch.Generator or a cdropout.Generator, "
            f"but got {type(generator).__name__}"
        )


def draw_name(p: float, generator: Source) -> tuple[Tensor, int]:
    """The seed, as a tensor, and the call number of the next mask; p = 1 draws nothing."""
    check_generator(generator)
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


def draw_numbers(p: float, generator: Source) -> tuple[int, int]:
    """The same name as two ints: `draw_name` for eager mode, where no tensor needs to be made."""
    if generator is None and p != 1:
        return draw_seed(), 0
    seed, call = draw_name(p, generator)
    return int(seed.item()) & WORD, call


# ---- the step, and its derivatives --------------------------------------------------------------


class Eager(torch.autograd.Function):
    """The step as eager mode records it: in PyTorch's older form, which costs it least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: "tuple[int, _Name, bool]") -> Tensor:
        ctx.draw = draw
        if draw[2]:
            ctx.mark_dirty(x)
        return compute(x, *draw)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None]:
        gx = compute_gradient(gy, ctx.draw)
        return Masked.apply(gy, *ctx.draw[:2]) if gx is None else gx, None


# Outside of torch.func, Function.apply looks at forward's signature, and the node's apply at which
# of its methods is there, anew in each call: for a small tensor longer than its dropout takes.
record = super(torch.autograd.Function, Eager).apply
Eager._backward_cls.apply = Eager.backward  # type: ignore[attr-defined]


def batched(
    step: Callable[..., Tensor],
    info: Any,
    in_dims: tuple[int | None, ...],
    x: Tensor,
    seed: Tensor,
    name: "_Name",
) -> tuple[Tensor, int]:
    """The rule for vmap: one mask over the whole batch, or one that all of it shares."""
    call, p, shared, factor = name
    x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
    shared = tuple(axis + 1 for axis in shared)
    if in_dims[1] is None:
        shared = (0, *shared)
    else:
        seed = seed.select(in_dims[1], 0)  # the first sample's seed names the mask of them all
    return step(x, seed, (call, p, shared, factor)), 0


class Masked(torch.autograd.Function):
    """The step for all else: torch.func, forward mode, second derivatives. It is linear in x."""

    @staticmethod
    def forward(x: Tensor, seed: Tensor | int, name: "_Name") -> Tensor:
        if isinstance(seed, Tensor):
            call, p, shared, factor = name
            return torch.ops.cdropout.dropout(x, seed, call, p, shared, factor)
        if is_plain(x):
            return compute(x, seed, name)
        ones = torch.ones(x.shape, dtype=x.dtype, device="cpu")
        return x * compute(ones, seed, name, True)  # a batch of vmap's older kind, lazy zeros, ...

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _x, seed, ctx.name = inputs
        if isinstance(seed, Tensor):
            ctx.save_for_backward(seed)
            ctx.save_for_forward(seed)
            seed = None
        ctx.seed = seed

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
        return Masked.jvp(ctx, gy), None, None

    @staticmethod
    def jvp(ctx: Any, gx: Tensor, *_others: None) -> Tensor:
        seed = ctx.saved_tensors[0] if ctx.seed is None else ctx.seed
        return Masked.apply(gx, seed, ctx.name)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, seed: Tensor, name: "_Name"
    ) -> tuple[Tensor, int]:
        return batched(Masked.apply, info, in_dims, x, seed, name)


# The step as an operator, for graphs: the mask's seed is a tensor in the graph
library = torch.library.Library("cdropout", "FRAGMENT")
library.define(
    "dropout(Tensor x, Tensor seed, SymInt call, float p, SymInt[] shared, float? factor) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_operator = torch.ops.cdropout.dropout.default


@torch.library.impl(library, "dropout", "CPU")
def _(
    x: Tensor, seed: Tensor, call: int, p: float, shared: list[int], factor: float | None
) -> Tensor:
    return compute(x, int(seed.item()) & WORD, (call, p, tuple(shared), factor))


@torch.library.register_fake(_operator)
def _(
    x: Tensor, seed: Tensor, call: int, p: float, shared: list[int], factor: float | None
) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_vmap(_operator)
def _(info: Any, in_dims: Any, x: Tensor, seed: Tensor, *name: Any) -> tuple[Tensor, int]:
    return batched(lambda x, seed, name: _operator(x, seed, *name), info, in_dims, x, seed, name)


class InGraph(torch.autograd.Function):
    """The operator's derivatives, for one level of autograd: those of torch.func come in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, name: list[Any], keys: Any) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.save_for_forward(seed)
        ctx.name = name
        with torch._C._AutoDispatchBelowAutograd():
            return _operator.redispatch(keys & torch._C._after_autograd_keyset, x, seed, *name)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None, None]:
        return _operator(gy, *ctx.saved_tensors, *ctx.name), None, None, None

    @staticmethod
    def jvp(ctx: Any, gx: Tensor, *_others: None) -> Tensor:
        return _operator(gx, *ctx.saved_tensors, *ctx.name)


def _differentiable(keys: Any, x: Tensor, seed: Tensor, *name: Any) -> Tensor:
    # torch.func's levels call this in turn: Function.apply itself would begin them anew
    with enable_single_level_autograd_function():
        return super(torch.autograd.Function, InGraph).apply(x, seed, name, keys)


library.impl("dropout", _differentiable, "Autograd", with_keyset=True)


# ---- the ways to it -----------------------------------------------------------------------------


def _check_in_place(x: Tensor) -> None:
    """Let PyTorch refuse a tensor that cannot be written to, before anything is drawn."""
    if torch._debug_has_internal_overlap(x) == 1:
        x.detach().mul_(1)
    differentiable = x.requires_grad and torch.is_grad_enabled()
    if differentiable and (x.is_leaf or x._is_view()):
        x.copy_(x)
    if x.is_inference() and not torch.is_inference_mode_enabled():
        x.copy_(x)


def in_eager_mode(
    x: Tensor,
    p: float,
    inplace: bool,
    generator: Source,
    shared: tuple[int, ...],
    factor: float | None,
) -> Tensor:
    """At once; autograd only hears of it if it has to."""
    if inplace or generator is not None or p == 1 or forward_ad._current_level >= 0:
        return _with_options(x, p, inplace, generator, shared, factor)
    name = (0, p, shared, factor)
    if x.requires_grad and is_grad_enabled():
        return record(x, (draw_seed(), name, False))
    return compute(x, draw_seed(), name)


def _with_options(
    x: Tensor,
    p: float,
    inplace: bool,
    generator: Source,
    shared: tuple[int, ...],
    factor: float | None,
) -> Tensor:
    """What few calls ask of eager mode."""
    forward_mode = forward_ad._current_level >= 0
    watched = forward_mode or (x.requires_grad and is_grad_enabled())
    check_generator(generator)
    if inplace:
        _check_in_place(x)
        if forward_mode or (watched and x._is_view()):
            return x.copy_(_with_options(x, p, False, generator, shared, factor))
    seed, call = draw_numbers(p, generator)
    name = (call, p, shared, factor)
    if forward_mode:
        return Masked.apply(x, seed, name)
    if watched:
        return record(x, (seed, name, inplace))
    y = compute(x, seed, name, inplace)
    if inplace and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return y


def under_transforms(
    x: Tensor,
    p: float,
    inplace: bool,
    generator: Source,
    shared: tuple[int, ...],
    factor: float | None,
) -> Tensor:
    """Under torch.func, where vmap's randomness decides what a draw is."""
    seed, call = draw_name(p, generator)
    y = Masked.apply(x, seed, (call, p, shared, factor))
    return x.copy_(y) if inplace else y


def in_a_graph(
    x: Tensor,
    p: float,
    inplace: bool,
    generator: Source,
    shared: tuple[int, ...],
    factor: float | None,
) -> Tensor:
    """As operators, where a compiler or a dispatch mode looks on."""
    seed, call = draw_name(p, generator)
    y = _operator(x, saved_seed(seed), call, p, list(shared), factor)
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
    shared: tuple[int, ...] = (),
    factor: float | None = None,
) -> Tensor:
    """A new mask, applied to x; `peer` is PyTorch's function for all that is not for us."""
    if training is True and 0 < p < 1 and not is_dynamo_compiling() and is_ordinary(x):
        return in_eager_mode(x, p, inplace, generator, shared, factor)
    sound = isinstance(training, bool) and 0 <= p <= 1
    way = way_for(x) if sound else None
    if way is None:
        if isinstance(x, Proxy):
            return symbolic_call(PUBLIC[peer], x, p, training, inplace, generator=generator)
        if generator is not None and sound and training:
            if torch._C._get_tracing_state() is not None:
                raise NotImplementedError(
                    "generator= cannot be used while traced by torch.jit.trace, which records "
                    "PyTorch's own dropout: it has none"
                )
            raise NotImplementedError(
                "generator= is taken for ordinary CPU tensors of float16, bfloat16, float32 or "
                f"float64; PyTorch's own dropout has none, and a {type(x).__name__} of {x.dtype} "
                f"on {x.device} is left to it"
            )
        return _left_to(peer, x, p, training, inplace)
    if not training or p == 0 or (way is not in_eager_mode and x.numel() == 0):
        return x
    return way(x, float(p), inplace, generator, shared, factor)


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

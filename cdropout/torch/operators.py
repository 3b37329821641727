"""PyTorch operators for dropout in graphs, and for the seed that the backward pass needs."""

import importlib
import math
import sys
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from cdropout._core.mask import Mask
from cdropout.torch._draw import LazyMask, derivative_of, given_mask, seeded_mask
from cdropout.torch._tensors import apply_mask

UINT64_MAX = 2**64 - 1
# PyTorch 2.13 and later have region_activation_memory_budget
REGION_BUDGET = getattr(traceback, "MEMORY_BUDGET_ANNOTATION_KEY", None)


def is_transformed() -> bool:
    """Return whether a transform of torch.func or forward-mode differentiation is active."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def move_batch_axis_first(
    info: Any, in_dims: tuple[int | None, ...], x: Tensor, seed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return x with the batch axis first, and one seed for the whole batch."""
    x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
    if seed is not None and in_dims[1] is not None:
        seed = seed.select(in_dims[1], 0)  # the seed of the first sample determines the whole mask
    return x, seed


# ---- dropout ------------------------------------------------------------------------------------

# The seed of a new mask is a tensor in the graph; the numbers of a given mask are constants.
# AOTInductor passes None for an empty list, so that the types of lists have to be optional.
library = torch.library.Library("cdropout", "FRAGMENT")
ARGUMENTS = "Tensor seed, SymInt call, float p, SymInt[]? broadcast_axes, str form"
library.define(
    f"dropout(Tensor x, {ARGUMENTS}) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# Only `inductor` uses the operators in place, which have no derivatives: the first one in graphs,
# the second one in code. In some versions, Inductor cannot call operators that return their input.
library.define(f"inplace_dropout(Tensor(a!) x, {ARGUMENTS}) -> Tensor(a!)")
library.define(f"dropout_(Tensor(a!) x, {ARGUMENTS}) -> ()")
library.define(
    "apply_mask(Tensor x, int seed, int call, int start, int[]? strides, float p, float scale, "
    "bool alpha) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
dropout_operator = torch.ops.cdropout.dropout.default
mask_operator = torch.ops.cdropout.apply_mask.default


def mask_of(
    seed: Tensor,
    call: int,
    p: float,
    broadcast_axes: list[int] | None = None,
    form: str = "scale",
    inplace: bool = False,
) -> LazyMask:
    """Return the mask for the arguments of an operator. The schema passes a uint64 as int64."""
    unsigned = int(seed.item()) & UINT64_MAX
    return seeded_mask(unsigned, call, p, tuple(broadcast_axes or ()), form, inplace)


@torch.library.impl(library, "dropout", "CPU")
def _(x: Tensor, *args: Any) -> Tensor:
    return apply_mask(x, mask_of(*args))


@torch.library.impl(library, "dropout_", "CPU")
def _(x: Tensor, seed: Tensor, call: int, p: float, axes: list[int] | None, form: str) -> None:
    apply_mask(x, mask_of(seed, call, p, axes, form, inplace=True))


@torch.library.impl(library, "inplace_dropout", "CPU")
def _(x: Tensor, *args: Any) -> Tensor:
    torch.ops.cdropout.dropout_.default(x, *args)
    return x


@torch.library.impl(library, "apply_mask", "CPU")
def _(
    x: Tensor,
    seed: int,
    call: int,
    start: int,
    strides: list[int] | None,
    p: float,
    scale: float,
    alpha: bool,
) -> Tensor:
    seed, call, start = seed & UINT64_MAX, call & UINT64_MAX, start & UINT64_MAX
    mask = Mask(tuple(x.shape), p, seed, call, start, strides, scale)
    return apply_mask(x, given_mask(mask, "alpha" if alpha else "scale"))


@torch.library.register_fake(dropout_operator)
def _(x: Tensor, seed: Tensor, *constants: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("cdropout::inplace_dropout", lib=library)
def _(x: Tensor, *args: Any) -> Tensor:
    return x


@torch.library.register_fake("cdropout::dropout_", lib=library)
def _(x: Tensor, *args: Any) -> None:
    pass


@torch.library.register_fake(mask_operator)
def _(x: Tensor, *numbers: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_vmap(dropout_operator)
def _(
    info: Any,
    in_dims: Any,
    x: Tensor,
    seed: Tensor,
    call: int,
    p: float,
    broadcast_axes: list[int] | None,
    form: str,
) -> tuple[Tensor, int]:
    x, one_seed = move_batch_axis_first(info, in_dims, x, seed)
    mask = seeded_mask(0, call, p, tuple(broadcast_axes or ()), form)
    mask = mask.with_batch_axis(in_dims[1] is None)
    return dropout_operator(x, one_seed, *mask.dropout_arguments()), 0


@torch.library.register_vmap(mask_operator)
def _(
    info: Any,
    in_dims: Any,
    x: Tensor,
    seed: int,
    call: int,
    start: int,
    strides: list[int] | None,
    *others: Any,
) -> tuple[Tensor, int]:
    x, _ = move_batch_axis_first(info, in_dims, x, None)
    sample_strides = Mask(tuple(x.shape[1:]), 0).strides if strides is None else strides
    return mask_operator(x, seed, call, start, (0, *sample_strides), *others), 0


class OperatorDerivatives(_SingleLevelFunction):
    """The derivatives of an operator at one level of autograd.

    torch.func calls the operator once per level. `torch.autograd.Function` would restart at the
    first level. The derivative applies the same operator, with the last argument `last`.
    """

    @staticmethod
    def forward(ctx: Any, operator: Any, last: Any, keys: Any, x: Tensor, *args: Any) -> Tensor:
        seeds = [arg for arg in args if isinstance(arg, Tensor)]
        ctx.save_for_backward(*seeds)
        ctx.save_for_forward(*seeds)
        ctx.operator, ctx.arguments = operator, len(args)
        ctx.constants = (*args[len(seeds) : -1], last)
        # `apply` disables gradients, but the lower levels of torch.func need them
        with (
            torch.enable_grad(),
            _set_fwd_grad_enabled(True),
            torch._C._AutoDispatchBelowAutograd(),
        ):
            return operator.redispatch(keys & torch._C._after_autograd_keyset, x, *args)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        gx = OperatorDerivatives.jvp(ctx, None, None, None, gy)
        return None, None, None, gx, *[None] * ctx.arguments

    @staticmethod
    def jvp(ctx: Any, _operator: None, _last: None, _keys: None, gx: Tensor, *_: None) -> Tensor:
        return ctx.operator(gx, *ctx.saved_tensors, *ctx.constants)


def _differentiable(operator: Any, keys: Any, x: Tensor, *args: Any) -> Tensor:
    result: Tensor
    if not (x.requires_grad and torch.is_grad_enabled()) and not is_transformed():
        with torch._C._AutoDispatchBelowAutograd():
            result = operator.redispatch(keys & torch._C._after_autograd_keyset, x, *args)
        return result
    last = derivative_of(args[-1]) if isinstance(args[-1], str) else False
    derivatives: Any = OperatorDerivatives
    with enable_single_level_autograd_function():
        result = derivatives.apply(operator, last, keys, x, *args)
    return result


for _operator in dropout_operator, mask_operator:
    _name = _operator.name().partition("::")[2]
    library.impl(_name, partial(_differentiable, _operator), "Autograd", with_keyset=True)


# ---- seeds --------------------------------------------------------------------------------------


@torch.library.custom_op("cdropout::saved_seed", mutates_args=(), device_types="cpu")
def saved_seed(seed: Tensor) -> Tensor:
    """Return a copy of `seed`. A compiled forward pass saves the copy for its backward pass."""
    return seed.clone()


@saved_seed.register_fake
def _(seed: Tensor) -> Tensor:
    return torch.empty_like(seed)


@saved_seed.register_vmap
def _(info: Any, in_dims: tuple[int | None], seed: Tensor) -> tuple[Tensor, int | None]:
    return saved_seed(seed), in_dims[0]


@cache
def _optimize_inductor() -> None:
    """Import `inductor`. Do nothing if this version of PyTorch does not have what it needs."""
    with suppress(ImportError, AttributeError, TypeError):
        importlib.import_module("cdropout.torch.inductor")


@saved_seed.register_torch_dispatch(ProxyTorchDispatchMode)
def _(mode: ProxyTorchDispatchMode, op: Any, types: Any, args: Any, kwargs: Any = None) -> object:
    """Record the operator so that the partitioner cannot repeat it in the backward pass.

    With a small ``activation_memory_budget``, the backward pass would otherwise draw another seed.
    With a budget of 0, the partitioner would save nothing. This function therefore replaces the
    budget of this operator by the smallest positive number.
    """
    if "torch._inductor.compile_fx" in sys.modules:  # the import of Inductor takes seconds
        _optimize_inductor()
    result = mode.__torch_dispatch__(op, types, args, kwargs)
    meta = next(node.meta for node in reversed(mode.tracer.graph.nodes) if node.target is op)
    if "recompute" in meta:  # set by a checkpoint, which restores the generator's state
        return result
    if meta.get("custom", {}).get(REGION_BUDGET) == 0:
        raise RuntimeError(
            "dropout saves its seed for the backward pass, but region_activation_memory_budget(0) "
            "saves nothing: use a small positive budget"
        )
    meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if functorch_config.activation_memory_budget == 0:
        meta["memory_budget"] = math.ulp(0.0)
    return result

"""The step as an operator, for graphs, and the operator that saves its seed."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.fx.traceback import MEMORY_BUDGET_ANNOTATION_KEY
from torch.utils.checkpoint import CheckpointPolicy

from cdropout.core.draws import drawn, linear
from cdropout.core.tensors import compute

if TYPE_CHECKING:
    from cdropout.core.draws import _Name

WORD = 2**64 - 1


def batched(
    step: Callable[..., Tensor],
    info: Any,
    in_dims: tuple[int | None, ...],
    x: Tensor,
    seed: Tensor,
    name: "_Name",
) -> tuple[Tensor, int]:
    """The rule for vmap: one mask over the whole batch, or one that all of it shares."""
    call, p, shared, form = name
    x = x.expand(info.batch_size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
    shared = tuple(axis + 1 for axis in shared)
    if in_dims[1] is None:
        shared = (0, *shared)
    else:
        seed = seed.select(in_dims[1], 0)  # the first sample's seed names the mask of them all
    return step(x, seed, (call, p, shared, form)), 0


# ---- the step -----------------------------------------------------------------------------------

# The mask's seed is a tensor in the graph
library = torch.library.Library("cdropout", "FRAGMENT")
library.define(
    "dropout(Tensor x, Tensor seed, SymInt call, float p, SymInt[] shared, str form) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
dropout_operator = torch.ops.cdropout.dropout.default


@torch.library.impl(library, "dropout", "CPU")
def _(x: Tensor, seed: Tensor, call: int, p: float, shared: list[int], form: str) -> Tensor:
    return compute(x, drawn(int(seed.item()) & WORD, (call, p, tuple(shared), form)))


@torch.library.register_fake(dropout_operator)
def _(x: Tensor, seed: Tensor, call: int, p: float, shared: list[int], form: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_vmap(dropout_operator)
def _(info: Any, in_dims: Any, x: Tensor, seed: Tensor, *name: Any) -> tuple[Tensor, int]:
    return batched(
        lambda x, seed, name: dropout_operator(x, seed, *name), info, in_dims, x, seed, name
    )


class InGraph(torch.autograd.Function):
    """The operator's derivatives, for one level of autograd: those of torch.func come in turn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, name: Any, keys: Any) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.save_for_forward(seed)
        ctx.name = linear(name)
        with torch._C._AutoDispatchBelowAutograd():
            return dropout_operator.redispatch(
                keys & torch._C._after_autograd_keyset, x, seed, *name
            )

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None, None]:
        return dropout_operator(gy, *ctx.saved_tensors, *ctx.name), None, None, None

    @staticmethod
    def jvp(ctx: Any, gx: Tensor, *_others: None) -> Tensor:
        return dropout_operator(gx, *ctx.saved_tensors, *ctx.name)


def _differentiable(keys: Any, x: Tensor, seed: Tensor, *name: Any) -> Tensor:
    # torch.func's levels call this in turn: Function.apply itself would begin them anew
    with enable_single_level_autograd_function():
        return super(torch.autograd.Function, InGraph).apply(x, seed, name, keys)


library.impl("dropout", _differentiable, "Autograd", with_keyset=True)


# ---- its seed -----------------------------------------------------------------------------------


@torch.library.custom_op("cdropout::saved_seed", mutates_args=(), device_types="cpu")
def saved_seed(seed: Tensor) -> Tensor:
    """Return a copy of `seed`, which a compiled backward pass takes from its forward pass."""
    return seed.clone()


@saved_seed.register_fake
def _(seed: Tensor) -> Tensor:
    return torch.empty_like(seed)


@saved_seed.register_vmap
def _(info: Any, in_dims: tuple[int | None], seed: Tensor) -> tuple[Tensor, int | None]:
    return saved_seed(seed), in_dims[0]


@saved_seed.register_torch_dispatch(ProxyTorchDispatchMode)
def _(mode: ProxyTorchDispatchMode, op: Any, types: Any, args: Any, kwargs: Any = None) -> object:
    """Record the operator, and forbid the partitioner to compute it again for the backward pass.

    With a small ``activation_memory_budget``, the backward pass would otherwise draw another seed.
    A budget of 0 saves nothing at all, so the smallest positive one takes its place.
    """
    result = mode.__torch_dispatch__(op, types, args, kwargs)
    meta = next(node.meta for node in reversed(mode.tracer.graph.nodes) if node.target is op)
    if "recompute" in meta:  # a checkpoint decides, and restores the state of the generator
        return result
    if meta.get("custom", {}).get(MEMORY_BUDGET_ANNOTATION_KEY) == 0:
        raise RuntimeError(
            "dropout saves its seed for the backward pass, but region_activation_memory_budget(0) "
            "saves nothing: use a small positive budget"
        )
    meta["recompute"] = CheckpointPolicy.MUST_SAVE
    if functorch_config.activation_memory_budget == 0:
        meta["memory_budget"] = math.ulp(0.0)
    return result

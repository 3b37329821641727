"""Optimizations of compiled graphs that contain dropout, for PyTorch's compiler Inductor.

They do not change results. Dropout writes to the memory of its input if the input is not needed
later. The gradient of dropout(relu(x)) is computed without the mask and the signs of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.fx_passes.joint_graph import pass_patterns
from torch._inductor.fx_passes.reinplace import InplaceableOp, inplaceable_ops
from torch._inductor.lowering import fallback_handler, register_lowering
from torch._inductor.pattern_matcher import Arg, CallFunction, Match, register_graph_pattern
from torch._inductor.virtualized import V
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq

from cdropout._core.mask import Mask

aten = torch.ops.aten
dropout = torch.ops.cdropout.dropout.default
inplace_dropout = torch.ops.cdropout.inplace_dropout.default
dropout_ = torch.ops.cdropout.dropout_.default
saved_seed = torch.ops.cdropout.saved_seed.default


# ---- dropout in place ---------------------------------------------------------------------------


def _can_be_in_place(node: Node) -> bool:
    """Return whether the input of a dropout node is temporary and has the strides of the result.

    Inductor itself checks that the input is not needed later. It would accept an input of the graph
    that is overwritten later, even if the result of dropout is needed after that.
    """
    x: Any = node.args[0]
    if x.op != "call_function":
        return False
    return statically_known_true(sym_eq(node.meta["val"].stride(), x.meta["val"].stride()))


@register_lowering(inplace_dropout, type_promotion_kind=None)
def _(x: Any, *args: Any) -> Any:
    x.realize()
    V.graph.mark_buffer_mutated(x.get_name())  # computes what depends on x before x changes
    fallback_handler(dropout_, add_to_fallback_set=False)(x, *args)
    return x


inplaceable_ops[dropout] = InplaceableOp(inplace_dropout, 0, _can_be_in_place)


@register_lowering(saved_seed, type_promotion_kind=None)
def _(seed: Any) -> Any:
    return seed  # the graph has been partitioned, so that nothing draws the seed again


# ---- gradients of dropout after ReLU ------------------------------------------------------------


def _is_zero(node: Any) -> bool:
    position = {aten.scalar_tensor.default: 0, aten.full.default: 1}.get(node.target)
    return position is not None and node.args[position] == 0


def _dropout_of_relu(match: Match) -> Node | None:
    """Return the node y = dropout(relu(x)) if `match` is the gradient of x with respect to y."""
    condition, zero, gradient = match.args
    if gradient.target is not dropout or condition.target is not aten.le.Scalar:
        return None
    relu, limit = condition.args
    _, *arguments = gradient.args
    _, _, p, _, form = arguments
    if relu.target is aten.relu.default and limit == 0 and _is_zero(zero):
        for y in relu.users:
            if y.target is dropout and y.args == (relu, *arguments) and form == "scale" and p < 1:
                return y
    return None


@register_graph_pattern(
    CallFunction(aten.where.self, Arg(), Arg(), Arg()),
    extra_check=lambda match: _dropout_of_relu(match) is not None,
    pass_dict=pass_patterns[0],
)
def _(match: Match, condition: Any, zero: Any, gradient: Any) -> None:
    """Compute the gradient of y = dropout(relu(x)) from y.

    The gradient is zero where y is zero, and gy * scale elsewhere, because y is zero where x was
    dropped or not positive. Otherwise, the graph would draw the mask again and would save the signs
    of x as bools, which Inductor's code writes slowly.
    """
    y, where, graph = _dropout_of_relu(match), match.output_node(), match.graph
    gy, _, _, p, _, _ = gradient.args
    with graph.inserting_before(where):
        is_zero = graph.call_function(aten.le.Scalar, (y, 0))
        scaled = graph.call_function(aten.mul.Tensor, (gy, Mask((), p).scale))
    is_zero.meta, scaled.meta = dict(condition.meta), dict(gradient.meta)
    where.args = is_zero, zero, scaled

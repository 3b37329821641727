"""The function `bias_dropout_add` in one pass over memory: in eager mode and as an operator."""

from typing import Any

import torch
from torch import Size, Tensor, is_grad_enabled
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

from cdropout._core.mask import Mask, check_mask, check_not_given
from cdropout.torch._draw import LazyMask, given_mask, seeded_mask
from cdropout.torch._dropout_add import add_in_one_pass, differentiate_in_one_pass, is_in_c_order
from cdropout.torch._tensors import apply_mask_to_gradient, is_supported, runs_eagerly
from cdropout.torch.autograd import (
    Source,
    TransformableDropout,
    dropout_by_operators,
    implementation_for,
    is_empty,
    next_seed,
    restore_on_error,
)
from cdropout.torch.operators import (
    dropout_operator,
    is_transformed,
    library,
    mask_of,
    move_batch_axis_first,
    saved_seed,
)


def try_one_pass(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    p: float,
    training: bool,
    generator: Source,
    mask: Mask | None,
) -> Tensor | None:
    """Return the result of `bias_dropout_add`, or None if it cannot be computed in one pass."""
    if training is not True or not 0 <= p <= 1 or (p == 0 and mask is None):
        return None
    if not is_dynamo_compiling() and runs_eagerly(x):
        return _add_eagerly(x, bias, residual, p, generator, mask)
    if mask is None and (is_compiling() or not torch._C._are_functorch_transforms_active()):
        return _add_by_operator(x, bias, residual, p, generator)
    return None


def _repeats_along(x: Tensor, bias: Tensor) -> bool:
    """Return whether the shape of `bias`, without leading ones, is not empty and ends x.shape."""
    shape = bias.shape
    while len(shape) > 0 and shape[0] == 1:
        shape = shape[1:]
    return len(shape) > 0 and x.shape[-len(shape) :] == shape


def _have_equal_form(x: Tensor, bias: Tensor | None, residual: Tensor) -> bool:
    """Return whether the types are equal and one pass supports the shapes."""
    if residual.dtype != x.dtype or residual.shape != x.shape:
        return False
    return bias is None or (
        bias.dtype == x.dtype and bias.dim() <= x.dim() and _repeats_along(x, bias)
    )


# ---- eager mode ---------------------------------------------------------------------------------


def _add_eagerly(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    p: float,
    generator: Source,
    mask: Mask | None,
) -> Tensor | None:
    if (
        not (is_supported(residual) and (bias is None or is_supported(bias)))
        or not (x.is_contiguous() and residual.is_contiguous())
        or not (bias is None or bias.is_contiguous())
        or not _have_equal_form(x, bias, residual)
        or forward_ad._current_level >= 0
    ):
        return None
    if mask is None:
        lazy = LazyMask(p, (), "scale", False, generator)
    else:
        check_not_given("generator", generator)
        check_mask(mask, tuple(x.shape), (), p)
        lazy = given_mask(mask, "scale")
        if not is_in_c_order(lazy):
            return None
    needs_grad = x.requires_grad or residual.requires_grad
    if (needs_grad or (bias is not None and bias.requires_grad)) and is_grad_enabled():
        return apply_eager_addition(x, bias, residual, lazy)
    return add_in_one_pass(x, bias, residual, lazy)


class EagerAddition(torch.autograd.Function):
    """`bias_dropout_add` in eager mode. `forward` takes ctx, as in `EagerDropout`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, residual: Tensor, mask: LazyMask
    ) -> Tensor:
        ctx.mask = mask
        ctx.bias_shape = None if bias is None else bias.shape
        return add_in_one_pass(x, bias, residual, mask)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, needs_bias, needs_residual, _ = ctx.needs_input_grad
        gx = gbias = None
        if needs_x or needs_bias:
            gx, gbias = _gradients(gy, ctx.bias_shape if needs_bias else None, ctx.mask)
        return gx if needs_x else None, gbias, gy if needs_residual else None, None


apply_eager_addition = super(torch.autograd.Function, EagerAddition).apply
EagerAddition._backward_cls.apply = EagerAddition.backward  # type: ignore[attr-defined]


def _gradients(gy: Tensor, bias_shape: Size | None, mask: LazyMask) -> tuple[Tensor, Tensor | None]:
    """Return the gradients with respect to x and, unless `bias_shape` is None, bias."""
    recorded = forward_ad._current_level >= 0 or (gy.requires_grad and is_grad_enabled())
    if bias_shape is not None and bias_shape.numel() != gy.numel() and not recorded:
        if runs_eagerly(gy):
            return differentiate_in_one_pass(gy.contiguous(), bias_shape, mask)
    gx = apply_mask_to_gradient(gy, mask)
    if gx is None:
        gx = TransformableDropout.apply(gy, None, mask)
    return gx, None if bias_shape is None else gx.sum_to_size(bias_shape)


# ---- operators ----------------------------------------------------------------------------------

library.define(
    "bias_dropout_add(Tensor x, Tensor? bias, Tensor residual, Tensor seed, SymInt call, float p) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    "bias_dropout_add_backward(Tensor gy, Tensor seed, SymInt call, float p, SymInt[] bias_shape) "
    "-> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
forward_operator = torch.ops.cdropout.bias_dropout_add.default
backward_operator = torch.ops.cdropout.bias_dropout_add_backward.default


def _add_by_operator(
    x: Tensor, bias: Tensor | None, residual: Tensor, p: float, generator: Source
) -> Tensor | None:
    operands = (x, residual) if bias is None else (x, bias, residual)
    if (
        any(implementation_for(tensor) is not dropout_by_operators for tensor in operands)
        or is_empty(x)
        or not _have_equal_form(x, bias, residual)
    ):
        return None

    def apply(drawn: tuple[Tensor, int]) -> Tensor:
        seed, call = drawn
        return forward_operator(x, bias, residual, saved_seed(seed), call, float(p))

    return restore_on_error(generator, lambda: next_seed(p, generator), apply)


@torch.library.impl(library, "bias_dropout_add", "CPU")
def _(
    x: Tensor, bias: Tensor | None, residual: Tensor, seed: Tensor, call: int, p: float
) -> Tensor:
    bias = None if bias is None else bias.contiguous()
    return add_in_one_pass(x.contiguous(), bias, residual.contiguous(), mask_of(seed, call, p))


@torch.library.impl(library, "bias_dropout_add_backward", "CPU")
def _(
    gy: Tensor, seed: Tensor, call: int, p: float, bias_shape: list[int]
) -> tuple[Tensor, Tensor]:
    mask = mask_of(seed, call, p)
    return differentiate_in_one_pass(gy.contiguous(), Size(bias_shape), mask)


@torch.library.register_fake(forward_operator)
def _(x: Tensor, *_others: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.register_fake(backward_operator)
def _(
    gy: Tensor, seed: Tensor, call: int, p: float, bias_shape: list[int]
) -> tuple[Tensor, Tensor]:
    gx = torch.empty_like(gy, memory_format=torch.contiguous_format)
    return gx, gy.new_empty(bias_shape)


def _add_in_three_steps(
    x: Tensor, bias: Tensor | None, residual: Tensor, seed: Tensor, call: int, p: float
) -> Tensor:
    total = x if bias is None else x + bias
    return residual + dropout_operator(total, seed, call, p, [], "scale")


def _differentiate_in_two_steps(
    gy: Tensor, seed: Tensor, call: int, p: float, bias_shape: list[int]
) -> tuple[Tensor, Tensor]:
    gx = dropout_operator(gy, seed, call, p, [], "scale")
    return gx, gx.sum_to_size(bias_shape)


@torch.library.register_vmap(forward_operator)
def _(
    info: Any,
    in_dims: Any,
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    seed: Tensor,
    call: int,
    p: float,
) -> tuple[Tensor, int]:
    x_dim, bias_dim, residual_dim, seed_dim = in_dims[:4]
    x, one_seed = move_batch_axis_first(info, (x_dim, seed_dim), x, seed)
    residual, _ = move_batch_axis_first(info, (residual_dim, None), residual, None)
    if bias is not None:
        bias, _ = move_batch_axis_first(info, (bias_dim, None), bias, None)
        x = x + bias.reshape(bias.shape[:1] + (1,) * (x.dim() - bias.dim()) + bias.shape[1:])
    mask = seeded_mask(0, call, p, (), "scale").with_batch_axis(seed_dim is None)
    return residual + dropout_operator(x, one_seed, *mask.dropout_arguments()), 0


@torch.library.register_vmap(backward_operator)
def _(
    info: Any,
    in_dims: Any,
    gy: Tensor,
    seed: Tensor,
    call: int,
    p: float,
    bias_shape: list[int],
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    gy, one_seed = move_batch_axis_first(info, in_dims, gy, seed)
    mask = seeded_mask(0, call, p, (), "scale").with_batch_axis(in_dims[1] is None)
    gx = dropout_operator(gy, one_seed, *mask.dropout_arguments())
    ones = (1,) * (gx.dim() - 1 - len(bias_shape))
    gbias = gx.sum_to_size((gx.shape[0], *ones, *bias_shape))
    return (gx, gbias.reshape(gx.shape[0], *bias_shape)), (0, 0)


class OperatorAddition(torch.autograd.Function):
    """The derivative of the operator outside of transforms of torch.func."""

    @staticmethod
    def forward(
        ctx: Any,
        keys: Any,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor,
        seed: Tensor,
        *constants: Any,
    ) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.constants = constants
        ctx.bias_shape = None if bias is None else bias.shape
        with torch._C._AutoDispatchBelowAutograd():
            keys = keys & torch._C._after_autograd_keyset
            return forward_operator.redispatch(keys, x, bias, residual, seed, *constants)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        _, needs_x, needs_bias, needs_residual, *others = ctx.needs_input_grad
        gx = gbias = None
        if needs_bias:
            gx, gbias = backward_operator(gy, *ctx.saved_tensors, *ctx.constants, ctx.bias_shape)
        elif needs_x:
            gx = dropout_operator(gy, *ctx.saved_tensors, *ctx.constants, [], "scale")
        gx = gx if needs_x else None
        return None, gx, gbias, gy if needs_residual else None, *[None] * len(others)


def _differentiable_forward(keys: Any, *args: Any) -> Tensor:
    return _add_in_three_steps(*args) if is_transformed() else OperatorAddition.apply(keys, *args)


def _differentiable_backward(keys: Any, gy: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    if is_transformed() or (gy.requires_grad and is_grad_enabled()):
        return _differentiate_in_two_steps(gy, *args)
    with torch._C._AutoDispatchBelowAutograd():
        return backward_operator.redispatch(keys & torch._C._after_autograd_keyset, gy, *args)


library.impl("bias_dropout_add", _differentiable_forward, "Autograd", with_keyset=True)
library.impl("bias_dropout_add_backward", _differentiable_backward, "Autograd", with_keyset=True)

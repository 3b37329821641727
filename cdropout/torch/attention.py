"""Attention with dropout: the function, the operators in compiled graphs, and derivatives."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn import Parameter

from cdropout._core.mask import Mask, check_mask, check_not_given
from cdropout.torch import _attention
from cdropout.torch._draw import given_mask
from cdropout.torch._tensors import runs_eagerly
from cdropout.torch.autograd import (
    _check_fallback,
    dropout_by_operators,
    dropout_eagerly,
    dropout_under_transforms,
    implementation_for,
    is_empty,
    next_seed,
    restore_on_error,
)
from cdropout.torch.functional import _refuse_to_script, dropout
from cdropout.torch.fx import has_proxy, record_call
from cdropout.torch.operators import (
    UINT64_MAX,
    dropout_operator,
    library,
    mask_operator,
    saved_seed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cdropout.torch.autograd import Source

MAX_DIMS = 32  # axes of a tensor
MIN_WEIGHTS = 1 << 16  # with fewer weights, it takes less time to replace only the dropout


# ---- operators ----------------------------------------------------------------------------------

# The arguments that determine the weights. Those from `seed` to `dropout_scale` determine the mask.
ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor seed, SymInt call, "
    "int start, SymInt[]? strides, float p, float? dropout_scale, bool is_causal, float? scale"
)
library.define(
    f"attention({ARGUMENTS}) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
library.define(
    f"attention_backward(Tensor gy, Tensor sums, bool[] needed, {ARGUMENTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
attention_operator = torch.ops.cdropout.attention.default
backward_operator = torch.ops.cdropout.attention_backward.default


class Attention:
    """The arguments of the operators with float32 or float64 tensors and with the drawn mask."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        seed: Tensor,
        call: int,
        start: int,
        strides: list[int] | None,
        p: float,
        dropout_scale: float | None,
        is_causal: bool,
        scale: float | None,
    ) -> None:
        _check_shapes_and_types(query, key, value)
        mask = _mask(query, key, seed, call, start, strides, p, dropout_scale)
        self.inputs = query, key, value, attn_mask
        self.dtype = torch.float32 if query.dtype.itemsize == 2 else query.dtype
        self.shape = *query.shape[:-1], key.shape[-2]
        self.empty = 0 in (*self.shape, query.shape[-1], value.shape[-1])
        if attn_mask is not None:
            attn_mask = attn_mask.resolve_neg()
            if attn_mask._is_zerotensor():  # it has no memory
                attn_mask = attn_mask.clone()
            if attn_mask.dtype is not torch.bool:
                attn_mask = attn_mask.to(self.dtype)
            attn_mask = attn_mask.expand(self.shape)
        self.tensors: Any = (
            *(_convert(t, self.dtype) for t in (query, key, value)),
            attn_mask,
        )
        if scale is None:
            scale = _default_scale(query)
        self.mask: Any = given_mask(mask, "scale"), mask.start, mask.strides, is_causal, scale
        self.is_causal = is_causal

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the output, and two numbers per row of the scores.

        The second number was subtracted from the scores: the largest score, or 0. The first number
        is the logarithm of the sum of the exponentials of these differences. One number, the sum of
        both, would be less exact, because a large score would hide the digits of the logarithm.
        """
        query, _key, value, _attn_mask = self.inputs
        if self.empty:
            out = query.new_zeros(*self.shape[:-1], value.shape[-1])
            return out, query.new_zeros(*self.shape[:-1], 2, dtype=self.dtype)
        out = query.new_empty(*self.shape[:-1], value.shape[-1])
        sums = query.new_empty(*self.shape[:-1], 2, dtype=self.dtype)
        wide = out if out.dtype == self.dtype else torch.empty_like(out, dtype=self.dtype)
        arguments: Any = (*self.tensors, wide, sums, *self.mask)
        _attention.forward(*arguments)
        if wide is not out:
            out.copy_(wide)
        return out, sums

    def backward(self, gy: Tensor, sums: Tensor, needed: list[bool]) -> list[Tensor]:
        """Return the gradients of query, key, value and attn_mask. Unneeded gradients are empty."""
        unseen = self.is_causal and self.shape[-2] < self.shape[-1]  # keys that no row sees
        new = torch.zeros if unseen or self.empty else torch.empty
        gradients: list[Tensor | None] = [
            new(t.shape, dtype=self.dtype, device="cpu") if need else None
            for t, need in zip(self.inputs[:3], needed, strict=False)
        ]
        attn_mask, gmask, expanded = self.inputs[3], None, None
        if needed[3] and attn_mask is not None:
            summed = attn_mask.numel() < math.prod(self.shape)  # over axes along which it repeats
            dtype = torch.float64 if summed else self.dtype
            gmask = torch.zeros(attn_mask.shape, dtype=dtype, device="cpu")
            expanded = gmask.expand(self.shape)
        gy, sums = gy.to(self.dtype), sums.contiguous()
        arguments: Any = (*self.tensors, gy, sums, *gradients, expanded, *self.mask)
        if not self.empty:
            _attention.backward(*arguments)
        return [
            gy.new_empty(0) if t is None or g is None else g.to(t.dtype)
            for t, g in zip(self.inputs, [*gradients, gmask], strict=True)
        ]


def _check_shapes_and_types(query: Tensor, key: Tensor, value: Tensor) -> None:
    tensors = query, key, value
    if any(
        t.dtype != query.dtype or not t.is_floating_point() or not 2 <= t.dim() <= MAX_DIMS
        for t in tensors
    ):
        raise TypeError(
            "query, key and value have to be tensors of one floating-point type, with 2 to "
            f"{MAX_DIMS} dimensions"
        )
    if (
        key.shape[:-2] != query.shape[:-2]
        or key.shape[-1] != query.shape[-1]
        or value.shape[:-1] != key.shape[:-1]
    ):
        raise ValueError(
            "query, key and value have to be of the shapes (..., L, E), (..., S, E) and "
            f"(..., S, Ev), but got {[tuple(t.shape) for t in tensors]}"
        )


def _convert(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return t in this type. Axes along which t was expanded are expanded again afterwards."""
    if t.dtype == dtype:
        return t
    axes = tuple(slice(None if stride else 1) for stride in t.stride())
    return t[axes].to(dtype).expand(t.shape)


def _default_scale(query: Tensor) -> float:
    return max(query.shape[-1], 1) ** -0.5  # 1 / math.sqrt would make a symbol a constant


def _mask(
    query: Tensor,
    key: Tensor,
    seed: Tensor,
    call: int,
    start: int,
    strides: list[int] | None,
    p: float,
    dropout_scale: float | None,
) -> Mask:
    """Return the mask of the weights. The schema passes uint64 numbers as int64."""
    shape = (*query.shape[:-1], key.shape[-2])
    number, call, start = (int(n) & UINT64_MAX for n in (seed.item(), call, start))
    return Mask(shape, p, number, call, start, strides, dropout_scale)


@torch.library.impl(library, "attention", "CPU")
def _(*args: Any) -> tuple[Tensor, Tensor]:
    return Attention(*args).forward()


@torch.library.impl(library, "attention_backward", "CPU")
def _(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_eager_backward(*args))


@torch.library.register_fake(attention_operator)
def _(query: Tensor, key: Tensor, value: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float32 if query.dtype.itemsize == 2 else query.dtype
    return (
        query.new_empty(*query.shape[:-1], value.shape[-1]),
        query.new_empty(*query.shape[:-1], 2, dtype=wide),
    )


@torch.library.register_fake(backward_operator)
def _(gy: Tensor, _sums: Tensor, needed: list[bool], *args: Any) -> tuple[Tensor, ...]:
    return tuple(
        t.new_empty(t.shape) if need else gy.new_empty(0)
        for t, need in zip(args[:4], needed, strict=True)
    )


def _batched(info: Any, dims: tuple[Any, ...], args: tuple[Any, ...]) -> list[Any]:
    """Return the values of ARGUMENTS, with the batch axis first in query to attn_mask."""
    query, key, value, attn_mask, seed, call, start, strides, *others = args
    shape = *_without(query, dims[0])[:-1], _without(key, dims[1])[-2]
    tensors = [
        t if t is None else _move_first(info, t, dim)
        for t, dim in zip((query, key, value, attn_mask), dims, strict=False)
    ]
    m = tensors[3]
    if m is not None:  # the axes after the batch axis are aligned at the end
        tensors[3] = m.reshape(m.shape[0], *[1] * (len(shape) + 1 - m.dim()), *m.shape[1:])
    if dims[4] is None:
        strides = 0, *(Mask(shape, 0).strides if strides is None else strides)
    else:  # the seed of the first sample determines the whole mask
        seed = seed.select(dims[4], 0)
    return [*tensors, seed, call, start, strides, *others]


def _without(t: Tensor, dim: int | None) -> tuple[int, ...]:
    return tuple(t.shape) if dim is None else tuple(t.select(dim, 0).shape)


def _move_first(info: Any, t: Tensor, dim: int | None) -> Tensor:
    return t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)


@torch.library.register_vmap(attention_operator)
def _(info: Any, dims: Any, *args: Any) -> tuple[Any, Any]:
    return attention_operator(*_batched(info, dims, args)), (0, 0)


@torch.library.register_vmap(backward_operator)
def _(
    info: Any, dims: Any, gy: Tensor, sums: Tensor, needed: list[bool], *args: Any
) -> tuple[Any, Any]:
    batched = _batched(info, dims[3:], args)
    first = (_move_first(info, t, dim) for t, dim in zip((gy, sums), dims, strict=False))
    gradients = backward_operator(*first, needed, *batched)
    ga = gradients[3]
    if needed[3]:
        lead = args[3].shape if dims[6] is None else _without(args[3], dims[6])
        ga = ga.reshape(info.batch_size, *lead)
    return (*gradients[:3], ga), tuple(0 if need else None for need in needed)


# ---- derivatives --------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, attn_mask, seed, *ctx.constants = inputs
    ctx.save_for_backward(query, key, value, attn_mask, seed, output[1])


def _derivative(
    backward: Callable[..., Sequence[Tensor]], ctx: Any, gy: Tensor
) -> tuple[Tensor | None, ...]:
    query, key, value, attn_mask, seed, sums = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:4])
    inputs = query, key, value, attn_mask, seed, *ctx.constants
    gradients: Sequence[Tensor | None]
    if torch.is_grad_enabled():
        gradients = _differentiable_gradients(gy, needed, *inputs)
    else:
        gradients = backward(gy, sums, needed, *inputs)
    none = [None] * (len(inputs) - 4)
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), *none


class OperatorAttention(torch.autograd.Function):
    """The derivative of the operator outside of transforms of torch.func."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        inputs, keys = inputs[:-1], inputs[-1] & torch._C._after_autograd_keyset
        with torch._C._AutoDispatchBelowAutograd():
            output = attention_operator.redispatch(keys, *inputs)
        _save(ctx, inputs, output)
        ctx.mark_non_differentiable(output[1])
        return output

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _gsums: Tensor) -> tuple[Tensor | None, ...]:
        return *_derivative(backward_operator, ctx, gy), None


def _differentiable(keys: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return OperatorAttention.apply(*inputs, keys)
    y = _attention_in_steps(*inputs)
    sums = y.detach().new_zeros(*y.shape[:-1], 2)  # only the backward operator needs the sums
    return y, sums if y.dtype.itemsize > 2 else sums.float()


library.impl("attention", _differentiable, "Autograd", with_keyset=True)


class EagerAttention(torch.autograd.Function):
    """Attention in eager mode. It does what the operator does, but its calls take less time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = Attention(*inputs).forward()
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        eager = gy.layout is torch.strided and runs_eagerly(gy)
        return _derivative(_eager_backward if eager else backward_operator, ctx, gy)


def _eager_backward(gy: Tensor, sums: Tensor, needed: list[bool], *args: Any) -> list[Tensor]:
    return Attention(*args).backward(gy, sums, needed)


def _differentiable_gradients(gy: Tensor, needed: list[bool], *inputs: Any) -> list[Tensor | None]:
    """Return the gradients that `backward` returns, with a graph for further derivatives."""
    # Views keep the gradients apart if one of the inputs was computed from another one
    tensors: list[Any] = [t if t is None else t.view_as(t) for t in inputs[:4]]
    y = _attention_in_steps(*tensors, *inputs[4:])
    wanted = [t for t, need in zip(tensors, needed, strict=True) if need]
    gradients = iter(torch.autograd.grad(y, wanted, gy, create_graph=True))
    return [next(gradients) if need else None for need in needed]


def _attention_in_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    seed: Tensor,
    call: int,
    start: int,
    strides: list[int] | None,
    p: float,
    dropout_scale: float | None,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Return the output of the operator, computed by operations that have all derivatives."""

    def drop(weights: Tensor) -> Tensor:
        if not start and strides is None and dropout_scale is None:
            return dropout_operator(weights, seed, call, p, [], "scale")
        mask = _mask(query, key, seed, call, start, strides, p, dropout_scale)
        return mask_operator(weights, *given_mask(mask, "scale").apply_mask_arguments(mask.shape))

    return _unfused(query, key, value, attn_mask, is_causal, scale, drop)


def _unfused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    drop: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return attention as PyTorch computes it with dropout; `drop` applies the mask to weights."""
    dtype = query.dtype
    with torch.autocast("cpu", enabled=False):
        if dtype.itemsize == 2:
            query, key, value = query.float(), key.float(), value.float()
        scale = _default_scale(query) if scale is None else scale
        scores = (query * scale) @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device="cpu").tril()
        if attn_mask is not None:
            if attn_mask.dtype is torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(
                    attn_mask.logical_not(), -math.inf
                )
            total = scores + attn_mask
            if total.shape != scores.shape:
                raise RuntimeError(
                    f"output with shape {list(scores.shape)} doesn't match the broadcast shape "
                    f"{list(total.shape)}"
                )
            scores = total
        hidden = (scores == -math.inf).all(-1, keepdim=True)  # rows whose weights are all zero
        weights = scores.masked_fill(hidden, 0).softmax(-1).masked_fill(hidden, 0)
        return (drop(weights) @ value).to(dtype)


# ---- the function -------------------------------------------------------------------------------


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Compute attention, with dropout applied to the attention weights.

    The weights, of shape (..., L, S), are usually computed in tiles, without storing all of them.
    The backward pass computes the weights and draws the mask again.

    Parameters
    ----------
    query, key, value : Tensor
        Tensors of the shapes (..., L, E), (..., S, E) and (..., S, Ev).
    attn_mask : Tensor, optional
        A tensor that can be expanded to the shape of the weights: bools, which are True where a key
        is visible, or numbers that are added to the scores. It may require a gradient.
    dropout_p : float, default 0.0
        The probability that a weight is dropped. If it is 0 and `mask` is None, PyTorch
        computes the result.
    is_causal : bool, default False
        If true, row i sees only the keys 0, ..., i, and `attn_mask` must be None.
    scale : float, optional
        The number by which the scores are multiplied; by default ``1 / sqrt(E)``.
    enable_gqa : bool, default False
        If true, `key` and `value` may have fewer heads than `query`, along the third axis from the
        end. Each head of `key` and `value` is used by several adjacent heads of `query`.
    generator : None, torch.Generator or cdropout.Generator
        The source of the mask, as in `dropout`.
    mask : cdropout.Mask, optional
        A mask of the shape of the weights to apply instead of a new one, as in `dropout`.
        `dropout_p` must be equal to ``mask.p`` or be left at its default.

    Returns
    -------
    Tensor
        The output, of shape (..., L, Ev).

    Raises
    ------
    RuntimeError
        For the arguments for which `torch.nn.functional.scaled_dot_product_attention` raises it.
    ValueError, TypeError, NotImplementedError
        If `generator` or `mask` cannot be used, as in `dropout`.

    See Also
    --------
    accelerate : uses this function for PyTorch's attention.

    Notes
    -----
    The mask is the one that ``dropout(weights, dropout_p)`` would draw at this point. Softmax and
    scores of 16-bit types are computed in float32. A dropped weight is replaced by +0.0, even if it
    is NaN.

    Each tile contains all keys of some rows, so that softmax needs no second pass over the tiles.
    The derivatives of the gradient, and all results under torch.func, in forward mode and for
    p = 1, are computed from the whole matrix of weights, as PyTorch computes them.

    Examples
    --------
    >>> import torch
    >>> from cdropout.torch import scaled_dot_product_attention
    >>> q, k, v = torch.randn(3, 2, 8, 100, 64, requires_grad=True).unbind()
    >>> y = scaled_dot_product_attention(q, k, v, dropout_p=0.1, is_causal=True)
    >>> y.shape
    torch.Size([2, 8, 100, 64])
    """
    arguments = query, key, value, attn_mask, dropout_p, is_causal
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    if has_proxy(*arguments):
        function = scaled_dot_product_attention
        return record_call(function, *arguments, generator=generator, mask=mask, **options)
    if mask is None and not 0 < dropout_p <= 1:
        return F.scaled_dot_product_attention(*arguments, **options)
    implementations = {implementation_for(t) for t in (query, key, value)}
    if None in implementations or not _is_plain(attn_mask, query):
        _check_fallback(query, generator, mask)
        return F.scaled_dot_product_attention(*arguments, **options)
    if mask is not None:
        if is_dynamo_compiling():
            return _attention_uncompiled(*arguments, **options, generator=generator, mask=mask)
        check_not_given("generator", generator)
        if not isinstance(mask, Mask):
            check_mask(mask, (), (), dropout_p)  # raises TypeError
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (_as_autocast(t) for t in (query, key, value))
        attn_mask = None if attn_mask is None else _as_autocast(attn_mask)
    p = dropout_p if mask is None else mask.p
    if 0 < p < 1 and forward_ad._current_level < 0 and _is_moderate(scale):
        if dropout_under_transforms not in implementations:
            aligned = align(query, key, value, attn_mask, is_causal, enable_gqa)
            if aligned is not None:
                if mask is not None:
                    check_mask(mask, aligned.shape, (), dropout_p, default=0.0)
                traced = implementations != {dropout_eagerly}
                return attend(aligned, dropout_p, is_causal, scale, generator, mask, traced)
    if mask is not None and dropout_p not in (0.0, mask.p):
        check_mask(mask, mask.shape, (), dropout_p, default=0.0)  # raises ValueError
    tensors = query, key, value, attn_mask
    metas: list[Any] = [None if t is None else torch.empty_like(t, device="meta") for t in tensors]
    options["is_causal"] = is_causal
    F.scaled_dot_product_attention(*metas, **options)  # raises PyTorch's errors
    if enable_gqa:
        key, value = (_repeat_heads(t, query.shape[-3]) for t in (key, value))
    drop = partial(dropout, p=dropout_p if mask is None else mask.p, generator=generator, mask=mask)
    return _unfused(query, key, value, attn_mask, is_causal, scale, drop)


# With a given mask, torch.compile breaks the graph and calls this function eagerly
_attention_uncompiled = torch.compiler.disable(
    scaled_dot_product_attention,
    reason="mask= cannot be used with fullgraph=True or in a strict export",
)


def _is_plain(attn_mask: Tensor | None, query: Tensor) -> bool:
    """Return whether attn_mask is None or a strided CPU Tensor, Parameter or type(query)."""
    return attn_mask is None or (
        type(attn_mask) in (Tensor, Parameter, type(query))
        and attn_mask.device.type == "cpu"
        and attn_mask.layout is torch.strided
    )


def _is_moderate(scale: float | None) -> bool:
    """Return whether scaling moderate numbers in float32 neither rounds to 0 nor overflows."""
    return scale is None or 1e-30 < abs(scale) < 1e30


def _as_autocast(t: Tensor) -> Tensor:
    """Return t in the type to which autocast converts arguments of PyTorch's attention."""
    if not t.is_floating_point() or t.dtype is torch.float64:
        return t
    return t.to(torch.get_autocast_dtype("cpu"))


def _repeat_heads(t: Tensor, heads: int) -> Tensor:
    return t.repeat_interleave(heads // t.shape[-3], -3)


class Aligned(NamedTuple):
    """Tensors with equal leading axes, as the operator takes them, and the shape of the weights."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    shape: tuple[int, ...]


def align(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    enable_gqa: bool,
) -> Aligned | None:
    """Return views with equal leading axes, or None if the operator does not support the tensors.

    With `enable_gqa`, the heads become two axes: the heads of `key`, and for each of them the heads
    of `query`.
    """
    tensors = query, key, value
    if not _attention.is_available or max(t.dim() for t in tensors) > MAX_DIMS:
        return None
    if any(t.dtype != query.dtype or t.dim() < 2 or is_empty(t) for t in tensors):
        return None
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    if attn_mask is not None and (
        is_causal or attn_mask.dtype not in (torch.bool, torch.float32, query.dtype)
    ):
        return None
    shape = _broadcast(query.shape[:-2], key.shape[:-2])
    if enable_gqa:
        if min(t.dim() for t in (query, key, value)) < 3:
            return None
        heads, groups = query.shape[-3], key.shape[-3]
        if groups != value.shape[-3] or heads % groups:
            return None
        shape = _broadcast(query.shape[:-2], (*key.shape[:-3], 1))
        query = query.unflatten(-3, (groups, -1))
        key, value = key.unsqueeze(-3), value.unsqueeze(-3)
        if attn_mask is not None and attn_mask.dim() > 2:
            if attn_mask.shape[-3] == 1:
                attn_mask = attn_mask.unsqueeze(-3)
            elif attn_mask.shape[-3] == heads:
                attn_mask = attn_mask.unflatten(-3, (groups, -1))
            else:
                return None
    lead = _broadcast(query.shape[:-2], key.shape[:-2])
    if lead is None or shape is None or _broadcast(lead, value.shape[:-2]) != lead:
        return None
    rows, keys = query.shape[-2], key.shape[-2]
    if attn_mask is not None:
        weights = *lead, rows, keys
        if _broadcast(weights, attn_mask.shape) != weights:
            return None
    query, key, value = (t.expand(*lead, *t.shape[-2:]) for t in (query, key, value))
    return Aligned(query, key, value, attn_mask, (*shape, rows, keys))


def _broadcast(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...] | None:
    """Return the shape to which two shapes are broadcast, or None if they do not fit."""
    ndim = max(len(first), len(second))
    pairs = list(
        zip(*((1,) * (ndim - len(shape)) + tuple(shape) for shape in (first, second)), strict=True)
    )
    if any(a != b and a != 1 and b != 1 for a, b in pairs):
        return None
    return tuple(a if a == b or b == 1 else b for a, b in pairs)


def attend(
    aligned: Aligned,
    p: float,
    is_causal: bool,
    scale: float | None,
    generator: Source,
    mask: Mask | None,
    traced: bool,
) -> Tensor:
    """Return the result of the operator, with a new mask or a given one."""
    *tensors, shape = aligned
    dim = aligned.query.dim()
    if not traced and torch.is_grad_enabled():  # inference tensors cannot be saved
        tensors = [t if t is None or not t.is_inference() else t.clone() for t in tensors]

    def run(*numbers: Any) -> Tensor:
        inputs = *tensors, *numbers, is_causal, scale
        if traced:
            return cast("Tensor", attention_operator(*inputs)[0])
        return cast("Tensor", EagerAttention.apply(*inputs))

    def apply(drawn: tuple[Tensor, int]) -> Tensor:
        seed, call = drawn
        return run(saved_seed(seed) if traced else seed, call, 0, None, p, None)

    if mask is None:
        y = restore_on_error(generator, lambda: next_seed(p, generator), apply)
    else:
        numbers = given_mask(mask, "scale").apply_mask_arguments(shape)
        number, call, start, strides, p, dropout_scale, _shifts = numbers
        if strides is not None and dim > len(shape):
            _groups, heads = aligned.query.shape[-4:-2]
            groups = (heads * strides[-3] + 2**63) % 2**64 - 2**63  # an int64
            strides = *strides[:-3], groups, *strides[-3:]
        seed = torch.tensor(number, dtype=torch.int64, device="cpu")
        y = run(seed, call, start, strides, p, dropout_scale)
    return y.flatten(-4, -3) if dim > len(shape) else y


def replaced_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Return the result of the operator, or None if only PyTorch's dropout is to be replaced."""
    if not 0 < dropout_p < 1 or forward_ad._current_level >= 0 or not _is_moderate(scale):
        return None
    implementations = {implementation_for(t) for t in (query, key, value)}
    if not implementations <= {dropout_eagerly, dropout_by_operators}:
        return None
    if not _is_plain(attn_mask, query):
        return None
    try:
        aligned = align(query, key, value, attn_mask, is_causal, enable_gqa)
    except GuardOnDataDependentSymNode:  # a size depends on data
        return None
    if aligned is None:
        return None
    size = math.prod(aligned.shape)
    if isinstance(size, int) and size < MIN_WEIGHTS:  # not for symbols, which would need a guard
        return None
    traced = implementations != {dropout_eagerly}
    return attend(aligned, dropout_p, is_causal, scale, None, None, traced)


scaled_dot_product_attention.__dict__["__prepare_scriptable__"] = partial(
    _refuse_to_script, scaled_dot_product_attention.__name__
)

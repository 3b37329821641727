"""Attention with dropout: tiles of the scores are computed, dropped and used while in the cache.

The forward pass saves one number per row of the scores. The backward pass computes each tile and its
window of the mask again.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from cdropout._core.mask import Mask, check_mask, check_not_given
from cdropout.torch._draw import given_mask
from cdropout.torch._openmp import call_on_threads, can_call_on_threads
from cdropout.torch._tensors import apply_window, runs_eagerly
from cdropout.torch.autograd import (
    _check_fallback,
    dropout_by_operators,
    dropout_eagerly,
    dropout_under_transforms,
    implementation_for,
    next_seed,
    restore_on_error,
)
from cdropout.torch.functional import dropout
from cdropout.torch.fx import REPLACEMENTS, has_proxy, record_call
from cdropout.torch.operators import (
    UINT64_MAX,
    dropout_operator,
    library,
    mask_operator,
    saved_seed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cdropout.torch._draw import LazyMask
    from cdropout.torch.autograd import Source

TILE = 1 << 18  # elements of a tile; two tiles of float32 fit in the second-level cache
CAUSAL_TILES = 4  # tiles per column of the scores; tiles of fewer rows skip more hidden keys
MIN_CAUSAL_ROWS = 64  # matrix products of fewer rows are slow
MIN_WEIGHTS = (
    1 << 19
)  # with fewer weights, `accelerate` replaces only the dropout: calls take less time
MAX_SCORE = 40  # exponentials of numbers up to 40 are summed without subtracting the largest number
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


# ---- tiles --------------------------------------------------------------------------------------


class Heads(NamedTuple):
    """Tensors of three axes: heads, rows (or keys), and columns; and positions in the mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None  # a view of the shape (heads, rows, keys)
    start: int
    strides: tuple[int, ...]
    others: tuple[Tensor, ...]


class Attention:
    """Attention of tensors of equal leading axes, with a drawn mask; it needs no autograd."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        mask: LazyMask,
        start: int,
        strides: tuple[int, ...],
        is_causal: bool,
        scale: float,
    ) -> None:
        self.tensors = query, key, value
        self.attn_mask, self.mask, self.start, self.strides = attn_mask, mask, start, strides
        self.is_causal, self.scale = is_causal, scale
        self.rows, self.keys = query.shape[-2], key.shape[-2]
        self.dtype = torch.float32 if query.dtype.itemsize == 2 else query.dtype

    def heads(self, *others: Tensor) -> Iterator[Heads]:
        """Yield the heads; all leading axes are merged into one if this copies no tensor."""
        query, key, value = self.tensors
        lead = query.shape[:-2]
        attn_mask = self.attn_mask
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*lead, self.rows, self.keys)
        tensors = [t for t in (query, key, value, attn_mask, *others) if t is not None]
        mask_strides = self.strides[:-2]
        if all(_can_merge(lead, s) for s in (mask_strides, *(t.stride()[:-2] for t in tensors))):
            merged = [t.reshape(math.prod(lead), *t.shape[-2:]) for t in tensors]
            strides = mask_strides[-1:] or (0,)
            parts: Iterable[tuple[list[Tensor], int]] = [(merged, self.start)]
        else:
            strides = mask_strides[-1:]
            parts = (
                (
                    [t[index] for t in tensors],
                    self.start + sum(map(int.__mul__, index, mask_strides[:-1])),
                )
                for index in itertools.product(*map(range, lead[:-1]))
            )
        for part, start in parts:
            q, k, v, *rest = part
            m = rest.pop(0) if attn_mask is not None else None
            yield Heads(q, k, v, m, start, (*strides, *self.strides[-2:]), tuple(rest))

    def lengths(self, heads: int) -> tuple[int, int]:
        """Return the number of heads and of rows of a tile."""
        size = TILE * 4 // self.dtype.itemsize
        rows = self.rows
        if self.is_causal:
            rows = min(rows, max(rows // CAUSAL_TILES, MIN_CAUSAL_ROWS))
        rows = max(1, min(rows, size // self.keys))
        together = max(1, min(size // (rows * self.keys), heads // torch.get_num_threads()))
        return together, rows

    # ---- forward --------------------------------------------------------------------------------

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the output, and the logarithm of the sum of the exponentials of each row."""
        query, _key, value = self.tensors
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(*query.shape[:-1], 1, dtype=self.dtype)
        for normalize in (False, True):
            for h in self.heads(out, sums):
                together, rows = self.lengths(len(h.query))
                work = partial(self._forward_heads, h, rows, normalize)
                _run(_slices(len(h.query), together), work)
            if math.isfinite(sums.sum().item()):
                break
        return out, sums

    def _forward_heads(
        self, h: Heads, rows: int, normalize: bool, groups: Iterator[slice]
    ) -> None:
        """Fill the output and the sums of groups of heads.

        If `normalize` is true, weights are normalized before the dropout instead of afterwards. This
        takes longer, but only in this case, a dropped weight is 0 if the sum of the row is NaN.
        """
        buffer = Buffer(self.dtype)
        masked = self.is_causal or h.attn_mask is not None
        for heads in groups:
            group = Group(self, h, heads, rows)
            bounded = group.has_small_scores()
            targets = zip(*(t[heads].split(rows, 1) for t in h.others), strict=True)
            for i, (out, sums) in enumerate(targets):
                weights = group.scores(i, buffer)
                if bounded:
                    total = weights.exp_().sum(-1, keepdim=True)
                    largest = 0
                else:
                    largest = torch.amax(weights, -1, keepdim=True)
                    if masked:  # the weights of a row without visible keys are zeros
                        largest.masked_fill_(largest == -math.inf, 0)
                    total = weights.sub_(largest).exp_().sum(-1, keepdim=True)
                if masked:
                    total.masked_fill_(total == 0, 1)
                torch.add(total.log(), largest, out=sums)
                if normalize:
                    weights.div_(total)
                    total.fill_(1)
                group.drop(i, weights, weights)
                product = torch.bmm(weights, group.visible(i, group.value))
                torch.div(product, total, out=out)

    # ---- backward -------------------------------------------------------------------------------

    def backward(self, gy: Tensor, sums: Tensor, needed: list[bool]) -> list[Tensor]:
        """Return the gradients of query, key, value and attn_mask, empty where not needed."""
        none = gy.new_empty(0)
        gradients = [
            torch.empty(t.shape, dtype=t.dtype, device="cpu") if need else none
            for t, need in zip(self.tensors, needed[:3], strict=True)
        ]
        ga, expanded = none, []
        if needed[3]:
            attn_mask = cast("Tensor", self.attn_mask)
            ga = torch.zeros(attn_mask.shape, dtype=self.dtype, device="cpu")
            expanded = [ga.expand(*gy.shape[:-2], self.rows, self.keys)]
        given = [g.expand(*gy.shape[:-2], 0, 0) if g is none else g for g in gradients]
        for h in self.heads(gy, sums, *given, *expanded):
            together, rows = self.lengths(len(h.query))
            work = partial(self._backward_heads, h, rows, needed)
            # Heads that share a gradient of attn_mask must not be processed at the same time
            _run(_slices(len(h.query), together), work, not expanded)
        if expanded:
            ga = ga.to(cast("Tensor", self.attn_mask).dtype)
        return [*gradients, ga]

    def _backward_heads(
        self, h: Heads, rows: int, needed: list[bool], groups: Iterator[slice]
    ) -> None:
        """Fill the gradients of groups of heads, and add to the gradient of attn_mask."""
        buffers = Buffer(self.dtype), Buffer(self.dtype)
        gy, sums, *targets = h.others
        for heads in groups:
            group = Group(self, h, heads, rows)
            gq, gk, gv = gradients = [
                self._new_sum(target[heads]) if need else None
                for target, need in zip(targets[:3], needed, strict=False)
            ]
            split = (gy[heads].to(self.dtype), sums[heads], *(t[heads] for t in targets[3:]))
            tiles = list(zip(*(t.split(rows, 1) for t in split), strict=True))
            gq_tiles = [None] * len(tiles) if gq is None else gq.split(rows, 1)
            # The first tile overwrites the sums: with `is_causal`, the last rows see the most keys
            for i in reversed(range(len(tiles))):
                beta = 0 if i == len(tiles) - 1 else 1
                self._backward_tile(group, i, *tiles[i][:2], buffers, beta, gq_tiles[i], gk, gv, tiles[i][2:])
            for target, total in zip(targets, gradients, strict=False):
                if total is not None and total.dtype != target.dtype:
                    target[heads] = total

    def _new_sum(self, target: Tensor) -> Tensor:
        """Return a tensor to which products can be added: `target` if it has the right type."""
        if target.dtype == self.dtype:
            return target
        return torch.empty(target.shape, dtype=self.dtype, device="cpu")

    def _backward_tile(
        self,
        group: Group,
        i: int,
        gy: Tensor,
        sums: Tensor,
        buffers: tuple[Buffer, Buffer],
        beta: int,
        gq: Tensor | None,
        gk: Tensor | None,
        gv: Tensor | None,
        ga: tuple[Tensor, ...],
    ) -> None:
        weights = group.scores(i, buffers[0]).sub_(sums).exp_()
        gradient, transposed = buffers[1](*weights.shape)
        if gv is not None:
            group.drop(i, weights, gradient)
            _add_product(gv, transposed, gy, beta, 1)
        if gq is None and gk is None and not ga:
            return
        torch.bmm(gy, group.visible(i, group.value).mT, out=gradient)
        group.drop(i, gradient, gradient)
        torch._softmax_backward_data(gradient, weights, -1, self.dtype, grad_input=gradient)
        for target in ga:
            axes = tuple(slice(0, None if stride else 1) for stride in target.stride())
            total = target[axes]
            total += gradient.sum_to_size(total.shape)
        if gq is not None:
            _add_product(gq, gradient, group.visible(i, group.key), 0, self.scale)
        if gk is not None:
            _add_product(gk, transposed, group.query[i], beta, self.scale)


class Buffer:
    """Memory for one tile. A call returns a view of the given shape, and the transposed view."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.memory = torch.empty(0, dtype=dtype, device="cpu")
        self.views: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, *shape: int) -> tuple[Tensor, Tensor]:
        if shape not in self.views:
            size = math.prod(shape)
            if size > self.memory.numel():
                self.memory = self.memory.new_empty(size)
                self.views = {}
            view = self.memory[:size].view(shape)
            self.views[shape] = view, view.transpose(1, 2)
        return self.views[shape]


class Group:
    """Adjacent heads that are processed together, split into tiles of `rows` rows."""

    def __init__(self, attention: Attention, h: Heads, heads: slice, rows: int) -> None:
        dtype = attention.dtype
        self.attention, self.rows, self.strides = attention, rows, h.strides
        self.start = h.start + heads.start * h.strides[0]
        self.queries = h.query[heads].to(dtype)
        self.query = self.queries.split(rows, 1)
        self.key, self.value = h.key[heads].to(dtype), h.value[heads].to(dtype)
        self.attn_mask = None if h.attn_mask is None else h.attn_mask[heads].split(rows, 1)

    def visible(self, i: int, t: Tensor) -> Tensor:
        """Return the part of `t`, keys or values, that `is_causal` does not hide from tile i."""
        last = (i + 1) * self.rows
        return t[:, :last] if self.attention.is_causal and last < t.shape[1] else t

    def scores(self, i: int, buffer: Buffer) -> Tensor:
        """Return the scores of tile i for the visible keys."""
        query, key = self.query[i], self.visible(i, self.key)
        scores, _ = buffer(*query.shape[:2], key.shape[1])
        torch.baddbmm(scores, query, key.mT, beta=0, alpha=self.attention.scale, out=scores)
        first = i * self.rows
        if self.attention.is_causal and first < key.shape[1]:
            part = scores[:, :, first:]
            hidden = torch.ones(part.shape[1:], dtype=torch.bool, device="cpu").triu_(1)
            part.masked_fill_(hidden, -math.inf)
        elif self.attn_mask is not None:
            attn_mask = self.attn_mask[i]
            if attn_mask.dtype is torch.bool:
                scores.masked_fill_(attn_mask.logical_not(), -math.inf)
            else:
                scores.add_(attn_mask)
        return scores

    def has_small_scores(self) -> bool:
        """Return whether exponentials of the scores and their sums can neither over- nor underflow.

        This is certain if the product of the largest norms of a query and of a key is small.
        """
        if self.attn_mask is not None and self.attn_mask[0].dtype is not torch.bool:
            return False
        query, key = (torch.linalg.vector_norm(t, dim=-1).amax() for t in (self.queries, self.key))
        return abs(self.attention.scale) * (query * key).item() <= MAX_SCORE

    def drop(self, i: int, x: Tensor, y: Tensor) -> None:
        """Write x with the mask of tile i applied to y."""
        start = self.start + i * self.rows * self.strides[1]
        apply_window(x, y, self.attention.mask, start, self.strides)


def _add_product(total: Tensor, a: Tensor, b: Tensor, beta: int, scale: float) -> None:
    """Set the first rows of `total` to beta * total + scale * a @ b; if beta is 0, clear the others."""
    rows = a.shape[1]
    if rows < total.shape[1]:
        if beta == 0:
            total[:, rows:] = 0
        total = total[:, :rows]
    torch.baddbmm(total, a, b, beta=beta, alpha=scale, out=total)


def _can_merge(lengths: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether axes with these lengths and strides are equivalent to one axis."""
    axes = [axis for axis in zip(lengths, strides, strict=True) if axis[0] != 1]
    return all(a[1] == b[0] * b[1] for a, b in itertools.pairwise(axes))


def _slices(length: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def _run(tasks: list[Any], work: Callable[[Iterator[Any]], None], parallel: bool = True) -> None:
    """Process all tasks: at the same time on PyTorch's threads if there are enough tasks."""
    iterator = iter(tasks)

    def run() -> None:
        no_autocast = torch._C._ExcludeDispatchKeyGuard(AUTOCAST)
        with torch._C.DisableTorchFunction(), torch.inference_mode(), no_autocast:
            work(iterator)

    threads = torch.get_num_threads()
    if parallel and 1 < threads <= len(tasks) and can_call_on_threads():
        call_on_threads(run)
    else:
        run()


# ---- operators ----------------------------------------------------------------------------------

# The arguments that determine the weights; call, start, strides, p and dropout_scale belong to the mask
ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? attn_mask, Tensor seed, SymInt call, int start, "
    "SymInt[]? strides, float p, float? dropout_scale, bool is_causal, float scale"
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


def _attention(
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
    scale: float,
) -> Attention:
    mask = _mask(query, key, seed, call, start, strides, p, dropout_scale)
    return Attention(
        query, key, value, attn_mask, given_mask(mask, "scale"), mask.start, mask.strides, is_causal, scale
    )  # fmt: skip


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
    """Return the mask of the weights. In the schema, 64-bit numbers are signed."""
    shape = (*query.shape[:-1], key.shape[-2])
    unsigned = (int(number) & UINT64_MAX for number in (seed.item(), call, start))
    return Mask(shape, p, *unsigned, strides, dropout_scale)


@torch.library.impl(library, "attention", "CPU")
def _(*args: Any) -> tuple[Tensor, Tensor]:
    return _attention(*args).forward()


@torch.library.impl(library, "attention_backward", "CPU")
def _(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_eager_backward(*args))


@torch.library.register_fake(attention_operator)
def _(query: Tensor, key: Tensor, value: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float32 if query.dtype.itemsize == 2 else query.dtype
    return (
        query.new_empty(*query.shape[:-1], value.shape[-1]),
        query.new_empty(*query.shape[:-1], 1, dtype=wide),
    )


@torch.library.register_fake(backward_operator)
def _(gy: Tensor, _sums: Tensor, needed: list[bool], *args: Any) -> tuple[Tensor, ...]:
    return tuple(
        t.new_empty(t.shape) if need else gy.new_empty(0)
        for t, need in zip(args[:4], needed, strict=True)
    )


def _batched(info: Any, dims: tuple[Any, ...], args: tuple[Any, ...]) -> list[Any]:
    """Return the arguments ARGUMENTS with the batch axis as the first leading axis."""
    query, key, value, attn_mask, seed, call, start, strides, *others = args
    shape = *_without(query, dims[0])[:-1], _without(key, dims[1])[-2]
    tensors = [
        t if t is None else _move_first(info, t, dim)
        for t, dim in zip((query, key, value, attn_mask), dims, strict=False)
    ]
    if attn_mask is not None:  # its other axes are aligned at the end
        m = tensors[3]
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
    backward: Callable[..., Sequence[Tensor]], ctx: Any, gy: Tensor, _gsums: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    query, key, value, attn_mask, seed, sums = ctx.saved_tensors
    needed = list(ctx.needs_input_grad[:4])
    inputs = query, key, value, attn_mask, seed, *ctx.constants
    if torch.is_grad_enabled():
        gradients = _differentiable_gradients(gy, needed, *inputs)
    else:
        gradients = backward(gy, sums, needed, *inputs)
    none = [None] * (len(inputs) - 4)
    return *(g if need else None for g, need in zip(gradients, needed, strict=True)), *none


torch.library.register_autograd(
    "cdropout::attention", partial(_derivative, backward_operator), setup_context=_save
)


class EagerAttention(torch.autograd.Function):
    """Attention in eager mode. It does what the operator does, but its calls take less time."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        output = _attention(*inputs).forward()
        _save(ctx, inputs, output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        eager = gy.layout is torch.strided and runs_eagerly(gy)
        return _derivative(_eager_backward if eager else backward_operator, ctx, gy)


def _eager_backward(gy: Tensor, sums: Tensor, needed: list[bool], *args: Any) -> list[Tensor]:
    return _attention(*args).backward(gy, sums, needed)


def _differentiable_gradients(gy: Tensor, needed: list[bool], *inputs: Any) -> list[Tensor | None]:
    """Return the gradients that `backward` returns, with a graph for further derivatives."""
    query, key, value, attn_mask, seed, call, start, strides, p, dropout_scale, *options = inputs

    def drop(weights: Tensor) -> Tensor:
        if not start and strides is None and dropout_scale is None:
            return dropout_operator(weights, seed, call, p, [], "scale")
        mask = _mask(query, key, seed, call, start, strides, p, dropout_scale)
        return mask_operator(weights, *given_mask(mask, "scale").apply_mask_arguments(mask.shape))

    y = _unfused(query, key, value, attn_mask, *options, drop)
    wanted = [t for t, need in zip(inputs[:4], needed, strict=True) if need]
    gradients = iter(torch.autograd.grad(y, wanted, gy, create_graph=True))
    return [next(gradients) if need else None for need in needed]


def _unfused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    scale: float,
    drop: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return attention as PyTorch computes it with dropout; `drop` applies the mask to the weights."""
    dtype = query.dtype
    with torch.autocast("cpu", enabled=False):
        if dtype.itemsize == 2:
            query, key, value = query.float(), key.float(), value.float()
        scores = (query * scale) @ key.transpose(-2, -1)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device="cpu").tril()
        if attn_mask is None:
            weights = scores.softmax(-1)
        else:
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

    The weights, of shape (..., L, S), are computed in tiles and never stored as a whole: neither by
    the forward pass nor for the backward pass, which draws the mask again.

    Parameters
    ----------
    query, key, value : Tensor
        Tensors of the shapes (..., L, E), (..., S, E) and (..., S, Ev).
    attn_mask : Tensor, optional
        A tensor that can be expanded to the shape of the weights: bools, which are True where a key
        is visible, or numbers that are added to the scores. It may require a gradient.
    dropout_p : float, default 0.0
        The probability that a weight is dropped. If it is 0, PyTorch computes the result.
    is_causal : bool, default False
        If true, row i sees only the keys 0, ..., i, and `attn_mask` must be None.
    scale : float, optional
        The number by which the scores are multiplied; by default ``1 / sqrt(E)``.
    enable_gqa : bool, default False
        If true, `key` and `value` may have fewer heads than `query`, along the third axis from the
        end. Each of them is used by several adjacent heads of `query`.
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
    scores of 16-bit types are computed in float32. A weight that is dropped is +0.0, even if it is
    NaN.

    Each tile contains all keys of some rows, so that softmax needs no second pass over the tiles.
    The derivatives of the gradient, and all derivatives under torch.func and in forward mode, are
    computed from the whole matrix of weights, as PyTorch computes them.

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
        query, key, value, attn_mask = map(_as_autocast, (query, key, value, attn_mask))
    scale = 1 / math.sqrt(query.shape[-1] or 1) if scale is None else scale
    p = dropout_p if mask is None else mask.p
    if 0 < p < 1 and forward_ad._current_level < 0:
        if dropout_under_transforms not in implementations:
            aligned = align(query, key, value, attn_mask, is_causal, enable_gqa)
            if aligned is not None:
                if mask is not None:
                    check_mask(mask, aligned.shape, (), dropout_p, default=0.0)
                traced = implementations != {dropout_eagerly}
                return attend(aligned, dropout_p, is_causal, scale, generator, mask, traced)
    metas = [None if t is None else torch.empty_like(t, device="meta") for t in arguments[:4]]
    F.scaled_dot_product_attention(*metas, 0.0, is_causal, **options)  # raises PyTorch's errors
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
    """Return whether attn_mask is None or a strided CPU tensor, but not of a subclass such as CausalBias."""
    return attn_mask is None or (
        type(attn_mask) in (Tensor, Parameter, type(query))
        and attn_mask.device.type == "cpu"
        and attn_mask.layout is torch.strided
    )


def _as_autocast(t: Tensor | None) -> Tensor | None:
    """Return t in the type to which autocast converts arguments of PyTorch's attention."""
    if t is None or not t.is_floating_point() or t.dtype is torch.float64:
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
    """Return views of the tensors with equal leading axes, or None if the operator cannot take them.

    With `enable_gqa`, the heads become two axes: the heads of `key`, and for each of them the heads
    of `query`.
    """
    if any(t.dtype != query.dtype or t.dim() < 2 or 0 in t.shape for t in (query, key, value)):
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
            attn_mask = (
                attn_mask.unsqueeze(-3)
                if attn_mask.shape[-3] == 1
                else attn_mask.unflatten(-3, (groups, -1))
            )
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
    """Return the shape to which two shapes are broadcast, or None if they cannot be."""
    ndim = max(len(first), len(second))
    pairs = list(
        zip(*((1,) * (ndim - len(shape)) + tuple(shape) for shape in (first, second)), strict=True)
    )
    if any(a != b and a != 1 and b != 1 for a, b in pairs):
        return None
    return tuple(b if a == 1 else a for a, b in pairs)


def attend(
    aligned: Aligned,
    p: float,
    is_causal: bool,
    scale: float,
    generator: Source,
    mask: Mask | None,
    traced: bool,
) -> Tensor:
    """Return the result of the operator, with a new mask or a given one."""
    *tensors, shape = aligned

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
        if strides is not None and tensors[0].dim() > len(shape):
            groups, heads = tensors[0].shape[-4:-2]
            strides = *strides[:-3], heads * strides[-3], *strides[-3:]
        seed = torch.tensor(number, dtype=torch.int64, device="cpu")
        y = run(seed, call, start, strides, p, dropout_scale)
    return y.flatten(-4, -3) if tensors[0].dim() > len(shape) else y


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
    """Return attention by the operator, or None if PyTorch has to call dropout."""
    if not 0 < dropout_p < 1 or forward_ad._current_level >= 0:
        return None
    implementations = {implementation_for(t) for t in (query, key, value)}
    if not implementations <= {dropout_eagerly, dropout_by_operators}:
        return None
    if not _is_plain(attn_mask, query):
        return None
    aligned = align(query, key, value, attn_mask, is_causal, enable_gqa)
    if aligned is None or math.prod(aligned.shape) < MIN_WEIGHTS:
        return None
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    traced = implementations != {dropout_eagerly}
    return attend(aligned, dropout_p, is_causal, scale, None, None, traced)


REPLACEMENTS[F.scaled_dot_product_attention] = scaled_dot_product_attention
scaled_dot_product_attention.__dict__["__prepare_scriptable__"] = lambda: (
    F.scaled_dot_product_attention
)

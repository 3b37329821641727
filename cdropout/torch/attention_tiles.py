"""Attention with dropout in tiles: each tile of weights is used while it is in the cache.

The forward pass saves two numbers per row of the scores. The backward pass computes each tile and
its window of the mask again. The products are PyTorch's; compiled functions compute the softmax.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from cdropout.torch._attention import TileSoftmax
from cdropout.torch._openmp import call_on_threads, can_call_on_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from cdropout.torch._draw import LazyMask

TILE = 1 << 18  # elements of a tile; two tiles of float32 fit in the second-level cache
CAUSAL_TILES = 8  # tiles per column of the scores; tiles of fewer rows skip more hidden keys
MIN_CAUSAL_ROWS = 64  # matrix products of fewer rows are slow
AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


class Heads(NamedTuple):
    """Tensors with the axes heads, rows (or keys) and columns, and their positions in the mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None  # a view of the shape (heads, rows, keys)
    start: int
    strides: tuple[int, ...]
    others: tuple[Tensor, ...]


class Attention:
    """Attention of tensors with equal leading axes, with a drawn mask and without autograd."""

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
        """Yield Heads. All leading axes are merged into one axis if this requires no copies."""
        query, key, value = self.tensors
        lead = query.shape[:-2]
        attn_mask = self.attn_mask
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*lead, self.rows, self.keys)
        tensors = [t for t in (query, key, value, attn_mask, *others) if t is not None]
        mask_strides = self.strides[:-2]
        if all(_can_merge(lead, s) for s in (mask_strides, *(t.stride()[:-2] for t in tensors))):
            merged = [t.reshape(math.prod(lead), *t.shape[-2:]) for t in tensors]
            pairs = zip(lead, mask_strides, strict=True)
            strides = ([stride for length, stride in pairs if length != 1] or [0])[-1:]
            parts: Iterable[tuple[list[Tensor], int]] = [(merged, self.start)]
        else:
            strides = list(mask_strides[-1:])
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
        """Return the output, and two numbers per row of the scores.

        The second number was subtracted from the scores: the largest score, or 0. The first number
        is the logarithm of the sum of the exponentials of these differences. One number, the sum of
        both, would be less exact, because a large score would hide the digits of the logarithm.
        """
        query, _key, value = self.tensors
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = query.new_empty(*query.shape[:-1], 2, dtype=self.dtype)
        for h in self.heads(out, sums):
            together, rows = self.lengths(len(h.query))
            work = partial(self._forward_heads, h, rows)
            _run(_slices(len(h.query), together), work)
        return out, sums

    def _forward_heads(self, h: Heads, rows: int, groups: Iterator[slice]) -> None:
        """Fill the output and the sums of groups of heads."""
        buffer = Buffer(self.dtype)
        for heads in groups:
            group = Group(self, h, heads, rows)
            targets = zip(*(t[heads].split(rows, 1) for t in h.others), strict=True)
            for i, (out, sums) in enumerate(targets):
                weights = group.scores(i, buffer)
                group.draw(i, weights, buffer.softmax)
                buffer.softmax.forward(weights, sums)
                value = group.visible(i, group.value)
                if out.dtype == self.dtype:
                    torch.bmm(weights, value, out=out)
                else:
                    out.copy_(torch.bmm(weights, value))

    # ---- backward -------------------------------------------------------------------------------

    def backward(self, gy: Tensor, sums: Tensor, needed: list[bool]) -> list[Tensor]:
        """Return the gradients of query, key, value and attn_mask. Unneeded gradients are empty."""
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
            # The tile of the last rows, which see the most keys, is first and overwrites the sums
            for i in reversed(range(len(tiles))):
                beta = 0 if i == len(tiles) - 1 else 1
                gy_tile, sums_tile, *ga = tiles[i]
                self._backward_tile(
                    group, i, gy_tile, sums_tile, buffers, beta, gq_tiles[i], gk, gv, ga
                )
            for target, total in zip(targets, gradients, strict=False):
                if total is not None and total.dtype != target.dtype:
                    target[heads] = total

    def _new_sum(self, target: Tensor) -> Tensor:
        """Return a tensor for sums of products: `target` itself if it is of type `self.dtype`."""
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
        ga: list[Tensor],
    ) -> None:
        softmax = buffers[0].softmax
        weights = group.scores(i, buffers[0])
        gradient, transposed = buffers[1](*weights.shape)
        group.draw(i, weights, softmax)
        softmax.recompute(weights, sums, None if gv is None else gradient)
        if gv is not None:
            _add_product(gv, transposed, gy, beta, 1)
        if gq is None and gk is None and not ga:
            return
        torch.bmm(gy, group.visible(i, group.value).mT, out=gradient)
        softmax.backward(weights, gradient)
        for target in ga:
            axes = tuple(slice(0, None if stride else 1) for stride in target.stride())
            total = target[axes]
            total += gradient.sum_to_size(total.shape)
        if gq is not None:
            _add_product(gq, gradient, group.visible(i, group.key), 0, self.scale)
        if gk is not None:
            _add_product(gk, transposed, group.query[i], beta, self.scale)


class Buffer:
    """Memory for one tile. A call returns a view of the given shape and its transpose."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.memory = torch.empty(0, dtype=dtype, device="cpu")
        self.views: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self.softmax = TileSoftmax(dtype)

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
        self.query = h.query[heads].to(dtype).split(rows, 1)
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
        if self.attn_mask is not None:
            attn_mask = self.attn_mask[i]
            if attn_mask.dtype is torch.bool:
                scores.masked_fill_(attn_mask.logical_not(), -math.inf)
            else:
                scores.add_(attn_mask)
        return scores

    def draw(self, i: int, weights: Tensor, softmax: TileSoftmax) -> None:
        """Draw the keep bits of the weights of tile i."""
        first = i * self.rows
        start = self.start + first * self.strides[1]
        visible = first + 1 if self.attention.is_causal else weights.shape[2]
        softmax.draw(self.attention.mask, start, self.strides, tuple(weights.shape), visible)


def _add_product(total: Tensor, a: Tensor, b: Tensor, beta: int, scale: float) -> None:
    """Set the first rows of total to beta * total + scale * a @ b. If beta is 0, clear the rest."""
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
    """Process all tasks, in parallel on PyTorch's threads if there are enough tasks."""
    iterator = iter(tasks)

    def run() -> None:
        no_autocast = torch._C._ExcludeDispatchKeyGuard(AUTOCAST)
        with torch._C.DisableTorchFunction(), torch.inference_mode(), no_autocast:
            try:
                work(iterator)
            except BaseException:
                list(iterator)  # leaves no tasks to the other threads
                raise

    threads = torch.get_num_threads()
    if parallel and 1 < threads <= len(tasks) and can_call_on_threads():
        call_on_threads(run)
    else:
        run()

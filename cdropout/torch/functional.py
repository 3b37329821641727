"""Dropout as functions of tensors: those of torch.nn.functional, and some that it lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cdropout.functional import as_copies
from cdropout.torch._tensors import is_ordinary
from cdropout.torch.autograd import (
    in_eager_mode,
    masked,
    then_or_restore,
    way_for,
)
from cdropout.torch.fx import PUBLIC, is_symbolic, symbolic_call

if TYPE_CHECKING:
    from cdropout._core.mask import Mask
    from cdropout.torch.autograd import Source


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Zero each element of `input` with probability `p`; scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    input : Tensor
        Of any shape and strides. Strided CPU tensors of float16, bfloat16, float32 and float64 are
        computed here; all others, subclasses too, go to `torch.nn.functional.dropout`.
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    training : bool, default True
        When false, `input` is returned as it is, and nothing is drawn.
    inplace : bool, default False
        Write the result to `input`.
    generator : None, torch.Generator or cdropout.Generator
        Where the mask comes from; by default PyTorch's generator for the CPU, from which each call
        draws one seed, whatever the shape. Under vmap a cdropout.Generator gives one mask for the
        whole batch. A checkpoint must restore a generator that is given here: use
        `checkpoint_context`.
    mask : cdropout.Mask, optional
        A mask of the shape of `input` to apply instead of a new one, as of
        `cdropout.Generator.next_mask`. It excludes generator; p has to be left out or equal to the
        mask's, and 0.5 counts as left out. Under vmap it is the mask of each sample. A checkpoint
        needs nothing else.

    Returns
    -------
    Tensor
        In the memory order of `input`. With p = 0 or without training, `input` itself.

    Raises
    ------
    ValueError
        If p is not in [0, 1], the mask has another shape, or an argument excludes another one.
    RuntimeError
        If p is NaN, if `input` cannot be written to in place, or if generator is given during a
        backward pass, outside of `checkpoint_context`.
    TypeError
        If `training` is no bool, or generator or mask is of another type.
    NotImplementedError
        If generator or mask is given, but `input` is a tensor that is left to PyTorch, or the call
        is recorded in a graph that cannot hold the argument.

    Notes
    -----
    It differs from PyTorch's function in this: dropped elements are +0.0 even where `input` is NaN
    or infinite, also at p = 1 and in gradients; nothing per element is kept for backward, which
    draws the mask again; and an in-place call refuses every tensor whose elements overlap in
    memory. In compiled code it refuses only those that PyTorch's own in-place operators refuse.

    After an error, `input` and the generator are as they were. If a signal's handler raises in the
    middle of a call, the generator is set back too, unless something else was drawn from it
    meanwhile; with `inplace`, a part of `input` may have been written.

    `torch.compile` and `torch.export`, `make_fx` and `aot_function` record an operator that draws a
    new mask in each run. With `generator`, `torch.compile` breaks the graph, and raises an error if
    it must not (``fullgraph=True``); the others record a torch.Generator, but no
    cdropout.Generator. With `mask`, `torch.compile` breaks the graph too, and the others record an
    operator with the numbers of the mask. `torch.fx` records a call of this function, unless it has
    a generator or a mask; of `torch.jit`, `trace` records and `script` compiles PyTorch's function
    instead.
    """
    return masked(F.dropout, input, p, training, inplace, generator, mask)


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """`dropout` of whole channels of (N, C, L) or (C, L); other shapes are PyTorch's RuntimeError.

    Parameters, results and errors are otherwise those of `dropout`.
    """
    if type(input) is not Tensor and is_symbolic(input):
        return symbolic_call(dropout1d, input, p, training, inplace, generator=generator, mask=mask)
    shared = (input.dim() - 1,)
    if input.dim() not in (2, 3):
        return F.dropout1d(input, p, training, inplace)
    return masked(F.dropout1d, input, p, training, inplace, generator, mask, shared)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """`dropout` of whole channels of (N, C, H, W).

    Other numbers of dimensions count as (N, C, ...), with PyTorch's warnings. Parameters, results
    and errors are otherwise those of `dropout`.
    """
    if type(input) is not Tensor and is_symbolic(input):
        return symbolic_call(dropout2d, input, p, training, inplace, generator=generator, mask=mask)
    if input.dim() != 4:
        return _unusual(F.dropout2d, input, p, training, inplace, generator, mask)
    return masked(F.dropout2d, input, p, training, inplace, generator, mask, (2, 3))


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """`dropout` of whole channels of (N, C, D, H, W) or (C, D, H, W).

    Other numbers of dimensions count as (C, ...), with PyTorch's warning. Parameters, results and
    errors are otherwise those of `dropout`.
    """
    if type(input) is not Tensor and is_symbolic(input):
        return symbolic_call(dropout3d, input, p, training, inplace, generator=generator, mask=mask)
    ndim = input.dim()
    if ndim not in (4, 5):
        return _unusual(F.dropout3d, input, p, training, inplace, generator, mask)
    shared = tuple(range(ndim - 3, ndim))
    return masked(F.dropout3d, input, p, training, inplace, generator, mask, shared)


def _unusual(
    peer: Callable[..., Tensor],
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    generator: Source,
    mask: Mask | None,
) -> Tensor:
    """Leave a shape that PyTorch warns of, and will refuse one day, to it."""
    for name, value in ("generator", generator), ("mask", mask):
        if value is not None:
            raise NotImplementedError(
                f"{name}= is not taken for the {input.dim()}D input that {peer.__name__} deprecates"
            )
    return peer(input, p, training, inplace)


def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Dropout for self-normalizing networks: mean 0 and variance 1 of the input are kept.

    Parameters, results and errors are those of `dropout`, but `training` is False by default, as in
    `torch.nn.functional.alpha_dropout`.

    Notes
    -----
    Klambauer et al., "Self-normalizing neural networks", NIPS 2017. With the same mask, the result
    equals that of `cdropout.alpha_dropout` to the bit. p = 1 gives zeros.
    """
    return masked(F.alpha_dropout, input, p, training, inplace, generator, mask, (), "alpha")


def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """`alpha_dropout` of whole channels of (N, C, ...); RuntimeError for fewer dimensions."""
    if type(input) is not Tensor and is_symbolic(input):
        return symbolic_call(
            feature_alpha_dropout, input, p, training, inplace, generator=generator, mask=mask
        )
    peer = F.feature_alpha_dropout
    if input.dim() < 2:
        return peer(input, p, training, inplace)
    shared = tuple(range(2, input.dim()))
    return masked(peer, input, p, training, inplace, generator, mask, shared, "alpha")


def drop_path(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    scale_by_keep: bool = True,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """`dropout` of whole samples of (N, ...): stochastic depth.

    Parameters
    ----------
    input, p, training, inplace, generator, mask
        As in `dropout`; p is the probability that a sample is dropped.
    scale_by_keep : bool, default True
        Scale the samples that are kept by ``1 / (1 - p)``; without it they stay as they are. It has
        to be True with mask, which has a scale of its own.

    Notes
    -----
    Huang et al., "Deep networks with stochastic depth", ECCV 2016; the names are timm's.
    """

    if type(input) is not Tensor and is_symbolic(input):
        options = {"scale_by_keep": scale_by_keep}
        return symbolic_call(
            drop_path, input, p, training, inplace, generator=generator, mask=mask, **options
        )

    def peer(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        rows = torch.ones(x.shape[:1] + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
        factors = F.dropout(rows, p, training)
        factors = factors if scale_by_keep or p == 1 else factors * (1 - p)
        return x.mul_(factors) if inplace else x * factors

    if mask is not None and not scale_by_keep:
        raise ValueError("mask= determines the scale: it excludes scale_by_keep=False")
    shared = tuple(range(1, input.dim()))
    form = "scale" if scale_by_keep else "keep"
    return masked(peer, input, p, training, inplace, generator, mask, shared, form)


def mc_dropout(
    input: Tensor, p: float = 0.5, n: int = 1, *, generator: Source = None, mask: Mask | None = None
) -> Tensor:
    """Return `n` differently masked copies of `input`, stacked along a new first axis.

    Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016. p, generator, mask (of
    the shape of the result) and errors are those of `dropout`.
    """
    as_copies(n)
    if type(input) is not Tensor and is_symbolic(input):
        return symbolic_call(mc_dropout, input, p, n, generator=generator, mask=mask)
    copies = input.expand(n, *input.shape)
    y = dropout(copies, p, generator=generator, mask=mask)
    return y.clone() if y is copies else y


def bias_dropout_add(
    input: Tensor,
    bias: Tensor,
    residual: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Return ``residual + dropout(input + bias, p)``; nothing per element is kept for backward.

    Parameters
    ----------
    input : Tensor
    bias, residual : Tensor
        They broadcast with input as in PyTorch's sums.
    p, training, generator, mask
        As in `dropout`, as are the errors.
    """
    if is_symbolic(input, bias, residual):
        return symbolic_call(
            bias_dropout_add, input, bias, residual, p, training, generator=generator, mask=mask
        )
    total = input + bias
    ordinary = way_for(total) is in_eager_mode
    if (
        ordinary
        and is_ordinary(residual)
        and residual.dtype == total.dtype
        and residual.shape == total.shape
        and residual.stride() == total.stride()
    ):  # nothing is left to fail after the draw: no memory is allocated
        return dropout(total, p, training, True, generator=generator, mask=mask).add_(residual)
    if mask is not None:
        return residual + dropout(total, p, training, ordinary, generator=generator, mask=mask)
    return then_or_restore(
        generator,
        lambda: dropout(total, p, training, ordinary, generator=generator),
        lambda y: residual + y,
    )


# ---- in TorchScript -----------------------------------------------------------------------------

PUBLIC |= {
    F.dropout: dropout,
    F.dropout1d: dropout1d,
    F.dropout2d: dropout2d,
    F.dropout3d: dropout3d,
    F.alpha_dropout: alpha_dropout,
    F.feature_alpha_dropout: feature_alpha_dropout,
}


def _refuse(name: str) -> None:
    raise NotImplementedError(f"{name} cannot be scripted by torch.jit.script")


for _theirs, _ours in PUBLIC.items():  # PyTorch's function is compiled in place of ours
    _ours.__dict__["__prepare_scriptable__"] = partial(getattr, F, _theirs.__name__)
for _ours in (drop_path, mc_dropout, bias_dropout_add):
    _ours.__dict__["__prepare_scriptable__"] = partial(_refuse, _ours.__name__)

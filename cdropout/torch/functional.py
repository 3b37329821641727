"""Dropout functions for tensors: those of torch.nn.functional, and some that PyTorch lacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from cdropout.functional import as_copies
from cdropout.torch._tensors import runs_eagerly
from cdropout.torch.autograd import (
    apply_dropout,
    dropout_eagerly,
    implementation_for,
    restore_on_error,
)
from cdropout.torch.dropout_add import try_one_pass
from cdropout.torch.fx import REPLACEMENTS, has_proxy, record_call

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
    """Zero each element of `input` with probability `p`, and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    input : Tensor
        A tensor of any shape and strides. For strided CPU tensors of float16, bfloat16, float32 and
        float64, including Parameters and DTensors, cdropout computes the result. All other tensors,
        such as those of other subclasses, are passed to `torch.nn.functional.dropout`.
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    training : bool, default True
        If false, return `input` itself and draw nothing.
    inplace : bool, default False
        If true, write the result to `input`.
    generator : None, torch.Generator or cdropout.Generator
        The source of the mask; by default PyTorch's generator for the CPU. Each call draws one
        seed, for any shape, but none if p is 0 or 1 or `input` is empty. A cdropout.Generator
        supplies a call number instead. Under vmap, a mask from it applies to all samples.
        A checkpoint must restore an explicit generator: use `checkpoint_context`.
    mask : cdropout.Mask, optional
        A mask to apply instead of a new one, for example from `cdropout.Generator.next_mask`. Its
        shape must be that of `input`, or under vmap that of one sample. A mask cannot be combined
        with `generator`. `p` must be equal to ``mask.p`` or be left at its default, 0.5. A
        checkpoint of a function with a given mask does not need `checkpoint_context`.

    Returns
    -------
    Tensor
        The result, in the memory order of `input`. It is `input` itself if `inplace` is true, if
        `training` is false, or if p is 0 and no mask is given.

    Raises
    ------
    ValueError
        If p is not in [0, 1], the shape of `mask` does not fit `input`, or `mask` is combined with
        `generator` or with another p.
    RuntimeError
        If p is NaN, if `input` cannot be written to in place, or if `generator` is given during a
        backward pass outside of `checkpoint_context`.
    TypeError
        If `training` is not a bool, or `generator` or `mask` has a type other than those above.
    NotImplementedError
        If `generator` or `mask` is given, and either `input` is passed to PyTorch, or the call is
        recorded in a graph that cannot contain that argument.

    Notes
    -----
    The function differs from PyTorch's as follows. Dropped elements are +0.0 even if `input` is NaN
    or infinite; this also holds for p = 1 and for gradients. No mask is stored for the backward
    pass, which draws the mask again. An in-place call raises an error for every tensor whose
    elements overlap in memory; compiled code raises this error only where PyTorch's operators do.

    If a call raises an error outside of compiled code, `input` and the generator remain unchanged.
    If a signal handler raises an exception during a call, the generator is restored unless it was
    used in the meantime; with `inplace`, a part of `input` may have been written.

    `torch.compile`, `torch.export`, `make_fx` and `aot_function` record operators that draw a new
    mask in each run. With `generator` or `mask`, `torch.compile` breaks the graph; with
    ``fullgraph=True``, and in a strict export, the call raises an error. The other three tracers
    record a torch.Generator or the numbers of a mask, but raise an error for a cdropout.Generator.
    `torch.fx` records a call of this function, but raises an error for `generator` and `mask`.
    `torch.jit.trace` records PyTorch's function, and `torch.jit.script` compiles PyTorch's
    function.
    """
    return apply_dropout(F.dropout, input, p, training, inplace, generator, mask)


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Drop whole channels of an input of shape (N, C, L) or (C, L).

    Inputs with other numbers of dimensions raise RuntimeError. See `dropout` for parameters,
    results and errors.
    """
    if type(input) is not Tensor and has_proxy(input):
        return record_call(dropout1d, input, p, training, inplace, generator=generator, mask=mask)
    if input.dim() not in (2, 3):
        return _call_torch(F.dropout1d, input, p, training, inplace, generator, mask)
    broadcast_axes = (input.dim() - 1,)
    return apply_dropout(F.dropout1d, input, p, training, inplace, generator, mask, broadcast_axes)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Drop whole channels of an input of shape (N, C, H, W).

    Inputs with other numbers of dimensions are treated as (N, C, ...), with PyTorch's warnings, but
    inputs with fewer than two dimensions raise RuntimeError in training mode. See `dropout` for
    parameters, results and errors.
    """
    if type(input) is not Tensor and has_proxy(input):
        return record_call(dropout2d, input, p, training, inplace, generator=generator, mask=mask)
    if input.dim() != 4:
        return _call_torch(F.dropout2d, input, p, training, inplace, generator, mask)
    return apply_dropout(F.dropout2d, input, p, training, inplace, generator, mask, (2, 3))


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Drop whole channels of an input of shape (N, C, D, H, W) or (C, D, H, W).

    Inputs with other numbers of dimensions are treated as (C, ...), with PyTorch's warning, but
    inputs without dimensions raise RuntimeError in training mode. See `dropout` for parameters,
    results and errors.
    """
    if type(input) is not Tensor and has_proxy(input):
        return record_call(dropout3d, input, p, training, inplace, generator=generator, mask=mask)
    ndim = input.dim()
    if ndim not in (4, 5):
        return _call_torch(F.dropout3d, input, p, training, inplace, generator, mask)
    broadcast_axes = tuple(range(ndim - 3, ndim))
    return apply_dropout(F.dropout3d, input, p, training, inplace, generator, mask, broadcast_axes)


def _call_torch(
    fallback: Callable[..., Tensor],
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    generator: Source,
    mask: Mask | None,
) -> Tensor:
    """Return the result of PyTorch's function for an input that has an unusual number of axes.

    In training mode, raise NotImplementedError for a generator or a mask, which PyTorch's functions
    do not take.
    """
    for name, value in ("generator", generator), ("mask", mask):
        if training and value is not None:
            raise NotImplementedError(
                f"{name}= is not supported for {input.dim()}D input, which is passed to "
                f"torch.nn.functional.{fallback.__name__}"
            )
    return fallback(input, p, training, inplace)


def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Apply dropout that preserves mean 0 and variance 1, for self-normalizing networks.

    See `dropout` for parameters, results and errors. The default of `training` is False, as in
    `torch.nn.functional.alpha_dropout`.

    Notes
    -----
    Klambauer et al., "Self-normalizing neural networks", NIPS 2017. With the same mask, the result
    is identical to that of `cdropout.alpha_dropout`. If p is 1, all elements become +0.0.
    """
    return apply_dropout(F.alpha_dropout, input, p, training, inplace, generator, mask, (), "alpha")


def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Apply `alpha_dropout` to whole channels of an input of shape (N, C, ...).

    Inputs with fewer than two dimensions raise RuntimeError in training mode. The default of
    `training` is False. See `dropout` for parameters, results and errors.
    """
    if type(input) is not Tensor and has_proxy(input):
        return record_call(
            feature_alpha_dropout, input, p, training, inplace, generator=generator, mask=mask
        )
    fallback = F.feature_alpha_dropout
    if input.dim() < 2:
        return _call_torch(fallback, input, p, training, inplace, generator, mask)
    broadcast_axes = tuple(range(2, input.dim()))
    return apply_dropout(
        fallback, input, p, training, inplace, generator, mask, broadcast_axes, "alpha"
    )


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
    """Apply stochastic depth: drop whole samples of an input of shape (N, ...).

    See `dropout` for results and errors.

    Parameters
    ----------
    input, p, training, inplace, generator, mask
        As in `dropout`; p is the probability that a sample is dropped.
    scale_by_keep : bool, default True
        If true, scale the samples that are kept by ``1 / (1 - p)``. It has to be true if `mask` is
        given, since a mask includes a scale.

    Notes
    -----
    Huang et al., "Deep networks with stochastic depth", ECCV 2016. The parameter `scale_by_keep`
    has the same name in timm.
    """
    if type(input) is not Tensor and has_proxy(input):
        options = {"scale_by_keep": scale_by_keep}
        return record_call(
            drop_path, input, p, training, inplace, generator=generator, mask=mask, **options
        )

    def fallback(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        ones = torch.ones(x.shape[:1] + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
        scales = F.dropout(ones, p, training)
        scales = scales if scale_by_keep or p == 1 else scales * (1 - p)
        return x.mul_(scales) if inplace else x * scales

    if mask is not None and not scale_by_keep:
        raise ValueError("mask= cannot be combined with scale_by_keep=False")
    broadcast_axes = tuple(range(1, input.dim()))
    form = "scale" if scale_by_keep else "keep"
    return apply_dropout(
        fallback, input, p, training, inplace, generator, mask, broadcast_axes, form
    )


def mc_dropout(
    input: Tensor, p: float = 0.5, n: int = 1, *, generator: Source = None, mask: Mask | None = None
) -> Tensor:
    """Return `n` copies of `input` with different masks, stacked along a new first axis.

    See `dropout` for parameters and errors; `mask` has the shape of the result.

    Notes
    -----
    Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.
    """
    n = as_copies(n)
    if type(input) is not Tensor and has_proxy(input):
        return record_call(mc_dropout, input, p, n, generator=generator, mask=mask)
    copies = input.expand(n, *input.shape)
    y = dropout(copies, p, generator=generator, mask=mask)
    return y.clone() if y is copies else y


def bias_dropout_add(
    input: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: Source = None,
    mask: Mask | None = None,
) -> Tensor:
    """Return ``residual + dropout(input + bias, p)``; no mask is stored for the backward pass.

    Parameters
    ----------
    input : Tensor
    bias : Tensor or None
        A tensor that is broadcast together with `input`. If None, nothing is added to `input`.
    residual : Tensor
        A tensor that is broadcast together with ``input + bias``.
    p, training, generator, mask
        As in `dropout`. See `dropout` for errors too.

    Notes
    -----
    The forward pass and the backward pass each read and write memory once if all tensors are
    contiguous CPU tensors of one supported type, `residual` has the shape of `input`, and the shape
    of `bias` is that of the last dimensions of `input`. Otherwise, the two additions and the
    dropout are executed one after the other. This also applies if `training` is false or p is 0,
    under transforms of torch.func, in forward-mode differentiation, and for a mask whose strides
    are not those of C order, such as many windows. The result is the same, except that the gradient
    of `bias` may be rounded differently: in one pass, it is summed in float64, independently of the
    number of threads.
    """
    if has_proxy(input, bias, residual):
        return record_call(
            bias_dropout_add, input, bias, residual, p, training, generator=generator, mask=mask
        )
    y = try_one_pass(input, bias, residual, p, training, generator, mask)
    if y is not None:
        return y
    total = input if bias is None else input + bias
    inplace = bias is not None and implementation_for(total) is dropout_eagerly
    if (
        inplace
        and runs_eagerly(residual)
        and residual.dtype == total.dtype
        and residual.shape == total.shape
        and residual.stride() == total.stride()
    ):  # work in place, since an allocation after the draw might fail
        return dropout(total, p, training, True, generator=generator, mask=mask).add_(residual)
    if mask is not None:
        return residual + dropout(total, p, training, inplace, generator=generator, mask=mask)
    return restore_on_error(
        generator,
        lambda: dropout(total, p, training, inplace, generator=generator),
        lambda y: residual + y,
    )


# ---- TorchScript --------------------------------------------------------------------------------

REPLACEMENTS |= {
    F.dropout: dropout,
    F.dropout1d: dropout1d,
    F.dropout2d: dropout2d,
    F.dropout3d: dropout3d,
    F.alpha_dropout: alpha_dropout,
    F.feature_alpha_dropout: feature_alpha_dropout,
}


def _refuse_to_script(name: str) -> None:
    raise NotImplementedError(f"{name} cannot be scripted by torch.jit.script")


for _original, _replacement in REPLACEMENTS.items():  # torch.jit.script compiles the original
    _replacement.__dict__["__prepare_scriptable__"] = partial(getattr, F, _original.__name__)
for _function in (drop_path, mc_dropout, bias_dropout_add):
    _function.__dict__["__prepare_scriptable__"] = partial(_refuse_to_script, _function.__name__)

"""Dropout as functions of arrays: an array in, an array of the same kind out."""

import operator
import warnings

import numpy as np

from cdropout._core.arguments import check_flag, check_probability
from cdropout._core.bias_dropout_add import bias_dropout_add, bias_dropout_add_backward
from cdropout._core.dropout import dropout, dropout_backward, dropout_features
from cdropout._core.generator import as_rng, generator_for
from cdropout._core.mask import alpha_terms, check_mask
from cdropout._core.numpy_arrays import as_any_array, destination

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "bias_dropout_add_backward",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_backward",
    "feature_alpha_dropout",
    "mc_dropout",
]


def _check_channels(ndim, leading):
    """RuntimeError unless x has the axes of its channels, which are the leading ones."""
    if ndim < leading:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")


def _deprecated_dimensions(name, ndim, spatial):
    """PyTorch's warning for a number of dimensions that it will refuse one day."""
    warnings.warn(
        f"{name}: Received a {ndim}-D input to {name}, which is deprecated "
        "and will result in an error in a future release. To retain the behavior "
        f"and silence this warning, please use dropout instead. Note that {name} "
        f"exists to provide channel-wise dropout on inputs with {spatial} spatial dimensions, "
        "a channel dimension, and an optional batch dimension "
        f"(i.e. {spatial + 1}D or {spatial + 2}D inputs).",
        stacklevel=3,
    )


def dropout1d(
    x, p=0.5, training=True, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Zero whole channels of `x` with probability `p`, and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : array of shape (N, C, L) or (C, L)
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        A mask to apply instead of a new one, which excludes `rng`: of x's shape and with one draw
        per channel. `p` has to be left out or equal to the mask's; 0.5 counts as left out.

    Raises
    ------
    RuntimeError
        If x has another number of dimensions (PyTorch's rule and words).
    TypeError, ValueError
        As `dropout`.
    """
    p, x = check_probability(p), as_any_array(x)
    ndim = x.ndim
    if ndim not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {ndim}D input. "
            "Note that dropout1d exists to provide channel-wise dropout on inputs with 1 "
            "spatial dimension, a channel dimension, and an optional batch dimension "
            "(i.e. 2D or 3D inputs)."
        )
    leading = 2 if ndim == 3 else 1
    return dropout_features(x, leading, p, training, inplace, rng, mask, return_mask, out)


def dropout2d(
    x, p=0.5, training=True, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Zero whole channels of `x` with probability `p`, and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        Three dimensions count as (N, C, L), with PyTorch's warning; other numbers are taken with a
        warning too.
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        A mask to apply instead of a new one, which excludes `rng`: of x's shape and with one draw
        per channel. `p` has to be left out or equal to the mask's; 0.5 counts as left out.

    Raises
    ------
    RuntimeError
        If x has fewer than two dimensions.
    TypeError, ValueError
        As `dropout`.
    """
    p, x = check_probability(p), as_any_array(x)
    ndim = x.ndim
    if ndim not in (3, 4):
        _deprecated_dimensions("dropout2d", ndim, 2)
    if ndim == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise "
            "1D dropout behavior is desired - input is interpreted as shape (N, C, L), where C "
            "is the channel dim. This behavior will change in a future release to interpret the "
            "input as one without a batch dimension, i.e. shape (C, H, W). To maintain the 1D "
            "channel-wise dropout behavior, please switch to using dropout1d instead.",
            stacklevel=2,
        )
    _check_channels(ndim, 2)
    return dropout_features(x, 2, p, training, inplace, rng, mask, return_mask, out)


def dropout3d(
    x, p=0.5, training=True, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Zero whole channels of `x` with probability `p`, and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : array of shape (N, C, D, H, W) or (C, D, H, W)
        Other numbers of dimensions are taken as (C, ...), with PyTorch's warning.
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        A mask to apply instead of a new one, which excludes `rng`: of x's shape and with one draw
        per channel. `p` has to be left out or equal to the mask's; 0.5 counts as left out.

    Raises
    ------
    RuntimeError
        If x has no dimension.
    TypeError, ValueError
        As `dropout`.
    """
    p, x = check_probability(p), as_any_array(x)
    ndim = x.ndim
    if ndim not in (4, 5):
        _deprecated_dimensions("dropout3d", ndim, 3)
    leading = 2 if ndim == 5 else 1
    _check_channels(ndim, leading)
    return dropout_features(x, leading, p, training, inplace, rng, mask, return_mask, out)


def drop_path(
    x,
    p=0.5,
    training=True,
    inplace=False,
    *,
    scale_by_keep=True,
    rng=None,
    mask=None,
    return_mask=False,
    out=None,
):
    """Zero whole samples of `x` with probability `p` (stochastic depth).

    Parameters
    ----------
    x : array of shape (N, ...)
        One draw is made for each of the N samples.
    scale_by_keep : bool, default True
        Scale the samples that are kept by ``1 / (1 - p)``; without it they stay as they are.
    mask : Mask, optional
        A mask to apply instead of a new one, which excludes `rng`: of x's shape and with one draw
        per sample. It has a scale of its own, so `scale_by_keep` has to be True, and `p` has to be
        left out or equal to the mask's; 0.5 counts as left out.
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a sample is dropped.

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    Notes
    -----
    Huang et al., "Deep networks with stochastic depth", ECCV 2016; the names are timm's.
    """
    check_flag(scale_by_keep, "scale_by_keep")
    x = as_any_array(x)
    if mask is not None and not scale_by_keep:
        raise ValueError("mask= has a scale of its own: it excludes scale_by_keep=False")
    scale = None if scale_by_keep else 1.0
    return dropout_features(x, 1, p, training, inplace, rng, mask, return_mask, out, scale)


def _alpha_dropout(x, leading, p, training, inplace, rng, mask, return_mask, out):
    """Replace dropped elements by SATURATION; scale and shift all to keep mean and variance."""
    check_flag(training, "training")
    check_flag(inplace, "inplace")
    check_flag(return_mask, "return_mask")
    options = {"rng": rng, "mask": mask, "return_mask": return_mask, "out": out}
    if training and mask is not None:
        check_mask(mask, x.shape, tuple(range(leading, x.ndim)), p)
        p = mask.p
    if not training or p == 1:
        return dropout_features(x, leading, p, training, inplace, **options)
    if p == 0:
        return dropout_features(x, leading, p, True, inplace, scale=1.0, **options)
    a, b, c = alpha_terms(p)
    rng = as_rng(rng)  # before the arrays are read: its code may change them
    options |= {"rng": rng, "scale": a, "shift": (b, c)}
    source = as_any_array(x)
    if source.dtype.itemsize > 2:
        return dropout_features(x, leading, p, True, inplace, **options)
    target = destination(x, inplace, out)
    y = source.astype(np.float32)  # the half types are computed in float32 and rounded once
    if y.size and mask is None:
        options["rng"] = generator_for(rng, [source, target])
    options |= {"return_mask": True, "out": None}
    _, mask = dropout_features(y, leading, p, True, True, **options)
    with np.errstate(all="ignore"):  # next to p = 1, a and b are too large for float16
        np.copyto(target, y, casting="same_kind")
    result = x if inplace else target
    return (result, mask) if return_mask else result


def alpha_dropout(
    x, p=0.5, training=False, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Dropout for self-normalizing networks: mean 0 and variance 1 of the input are kept.

    A dropped element becomes SELU's saturation value instead of 0, and then every element is
    scaled and shifted:
    ``a * x + b`` where kept, ``a * SATURATION + b`` where dropped.

    Parameters
    ----------
    training : bool, default False
        PyTorch's default for this function: without it, `x` is returned as it is.
    x, p, inplace, rng, return_mask, out
        As in `dropout`. The mask that is returned has the scale a: it gives the backward too, as
        ``dropout_backward(gy, mask)``.
    mask : Mask, optional
        A mask to apply instead of a new one, which excludes `rng`: of x's shape. Its scale is
        replaced by a. `p` has to be left out or equal to the mask's; 0.5 counts as left out.

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    Notes
    -----
    Klambauer et al., "Self-normalizing neural networks", NIPS 2017. p = 1 gives zeros, as in
    PyTorch.
    """
    p, x = check_probability(p), as_any_array(x)
    return _alpha_dropout(x, x.ndim, p, training, inplace, rng, mask, return_mask, out)


def feature_alpha_dropout(
    x, p=0.5, training=False, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """`alpha_dropout` of whole channels of `x`, an array of shape (N, C, ...).

    Parameters
    ----------
    x, p, training, inplace, rng, return_mask, out
        As in `alpha_dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        As in `alpha_dropout`, and with one draw per channel.

    Raises
    ------
    RuntimeError
        If x has fewer than two dimensions.
    TypeError, ValueError
        As `dropout`.
    """
    p, x = check_probability(p), as_any_array(x)
    _check_channels(x.ndim, 2)
    return _alpha_dropout(x, 2, p, training, inplace, rng, mask, return_mask, out)


def as_copies(n):
    """Return the number of copies as an int; TypeError or ValueError if n is none."""
    if isinstance(n, bool) or not hasattr(n, "__index__") or getattr(n, "ndim", 0):
        raise TypeError(f"n has to be an int, but got {type(n).__name__}")
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"n has to be at least 0, but got {n}")
    return n


def mc_dropout(x, p=0.5, n=1, *, rng=None, mask=None, return_mask=False, out=None):
    """Return `n` differently masked copies of `x`, for Monte-Carlo dropout.

    Parameters
    ----------
    x : array
    n : int
        The number of copies, at least 0.
    p, rng, return_mask
        As in `dropout`. All copies come from one mask of shape ``(n, *x.shape)``, and so from
        one call number.
    mask : Mask, optional
        A mask of that shape to apply instead of a new one, which excludes `rng`. `p` has to be left
        out or equal to the mask's; 0.5 counts as left out.
    out : ndarray of shape ``(n, *x.shape)``, optional
        Takes the result; it must not overlap x.

    Returns
    -------
    ndarray of shape ``(n, *x.shape)``
        Its memory is its own: also with p = 0 the copies are independent of x and of each other.

    Raises
    ------
    TypeError, ValueError
        As `dropout`; ValueError if n is negative.

    Notes
    -----
    Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.
    """
    p, n = check_probability(p), as_copies(n)
    array = as_any_array(x)
    copies = np.broadcast_to(array, (n, *array.shape))
    out = np.empty(copies.shape, array.dtype) if out is None else out
    if mask is not None:
        check_mask(mask, copies.shape, (), p)
    return dropout(copies, p, rng=rng, mask=mask, return_mask=return_mask, out=out)

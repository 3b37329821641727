"""Functions that apply dropout to arrays."""

from __future__ import annotations

import operator
import warnings
from typing import TYPE_CHECKING, overload

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


if TYPE_CHECKING:
    from typing import Any, Literal, Never, Protocol, SupportsIndex

    from numpy.typing import NDArray
    from typing_extensions import TypeVar

    from cdropout._core.mask import Mask
    from cdropout.typing import RNG, Array, Exporter, Probability, Scalar, Shape

    _Output = TypeVar("_Output", bound=NDArray[Any], default=NDArray[Any])

    # the type of scale_by_keep: bool for drop_path, and Never for functions without this argument
    _ScaleByKeep = TypeVar("_ScaleByKeep", contravariant=True)

    class _Variant(Protocol[_ScaleByKeep]):
        """A function with scale_by_keep and the arguments of `dropout` except broadcast_dims."""

        @overload
        def __call__(
            self,
            x: Array[Shape, Scalar],
            p: Probability = 0.5,
            training: bool = ...,
            inplace: bool = False,
            *,
            scale_by_keep: _ScaleByKeep = ...,
            rng: RNG = None,
            mask: Mask | None = None,
            return_mask: Literal[False] = False,
            out: Array[Shape, Scalar] | None = None,
        ) -> Array[Shape, Scalar]: ...

        @overload
        def __call__(
            self,
            x: Array[Shape, Scalar],
            p: Probability = 0.5,
            training: bool = ...,
            inplace: bool = False,
            *,
            scale_by_keep: _ScaleByKeep = ...,
            rng: RNG = None,
            mask: Mask | None = None,
            return_mask: Literal[True],
            out: Array[Shape, Scalar] | None = None,
        ) -> tuple[Array[Shape, Scalar], Mask]: ...

        @overload
        def __call__(
            self,
            x: Exporter,
            p: Probability = 0.5,
            training: bool = ...,
            inplace: bool = False,
            *,
            scale_by_keep: _ScaleByKeep = ...,
            rng: RNG = None,
            mask: Mask | None = None,
            return_mask: Literal[False] = False,
            out: _Output | None = None,
        ) -> _Output: ...

        @overload
        def __call__(
            self,
            x: Exporter,
            p: Probability = 0.5,
            training: bool = ...,
            inplace: bool = False,
            *,
            scale_by_keep: _ScaleByKeep = ...,
            rng: RNG = None,
            mask: Mask | None = None,
            return_mask: Literal[True],
            out: _Output | None = None,
        ) -> tuple[_Output, Mask]: ...

        @overload
        def __call__(
            self,
            x: Exporter,
            p: Probability = 0.5,
            training: bool = ...,
            inplace: bool = False,
            *,
            scale_by_keep: _ScaleByKeep = ...,
            rng: RNG = None,
            mask: Mask | None = None,
            return_mask: bool,
            out: _Output | None = None,
        ) -> _Output | tuple[_Output, Mask]: ...


def _variant(function: Any) -> _Variant[Never]:
    """Return the function unchanged; type checkers see the type `_Variant[Never]`."""
    return function  # type: ignore[no-any-return]


def _drop_path(function: Any) -> _Variant[bool]:
    """Return the function unchanged; type checkers see the type `_Variant[bool]`."""
    return function  # type: ignore[no-any-return]


def _check_channels(ndim, leading):
    """Raise RuntimeError if ndim is less than `leading`, the number of batch and channel axes."""
    if ndim < leading:
        raise RuntimeError("Feature dropout requires at least 2 dimensions in the input")


def _deprecated_dimensions(name, ndim, spatial):
    """Warn, as PyTorch does, that inputs with ndim dimensions are deprecated."""
    warnings.warn(
        f"{name}: Received a {ndim}-D input to {name}, which is deprecated "
        "and will result in an error in a future release. To retain the behavior "
        f"and silence this warning, please use dropout instead. Note that {name} "
        f"exists to provide channel-wise dropout on inputs with {spatial} spatial dimensions, "
        "a channel dimension, and an optional batch dimension "
        f"(i.e. {spatial + 1}D or {spatial + 2}D inputs).",
        stacklevel=3,
    )


@_variant
def dropout1d(
    x, p=0.5, training=True, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Zero whole channels of `x` with probability `p`, and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : array of shape (N, C, L) or (C, L)
        The input, with C channels.
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        A mask to apply instead of a new one. It cannot be combined with `rng`. It must have the
        shape of x and one draw per channel. `p` must be equal to ``mask.p`` or be left at its
        default, 0.5.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True

    Raises
    ------
    RuntimeError
        If x does not have 2 or 3 dimensions. The error message is the same as in PyTorch.
    TypeError, ValueError
        For the same reasons as in `dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.dropout1d(np.ones((2, 3, 100)), p=0.5, rng=3)
    >>> sorted(set(y.reshape(6, 100).sum(axis=1).tolist()))  # each channel is dropped or doubled
    [0.0, 200.0]
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


@_variant
def dropout2d(
    x, p=0.5, training=True, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Zero whole channels of `x` with probability `p`, and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : array of shape (N, C, H, W)
        The input. If x does not have 4 dimensions, the function warns, as PyTorch does. A shape
        with 3 dimensions is interpreted as (N, C, L).
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        A mask to apply instead of a new one. It cannot be combined with `rng`. It must have the
        shape of x and one draw per channel. `p` must be equal to ``mask.p`` or be left at its
        default, 0.5.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True

    Raises
    ------
    RuntimeError
        If x has fewer than two dimensions.
    TypeError, ValueError
        For the same reasons as in `dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.dropout2d(np.ones((2, 3, 10, 10)), p=0.5, rng=3)
    >>> sorted(set(y.reshape(6, 100).sum(axis=1).tolist()))  # each channel is dropped or doubled
    [0.0, 200.0]
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


@_variant
def dropout3d(
    x, p=0.5, training=True, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Zero whole channels of `x` with probability `p`, and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : array of shape (N, C, D, H, W) or (C, D, H, W)
        The input. If x has another number of dimensions, its shape is interpreted as (C, ...), and
        the function warns, as PyTorch does.
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        A mask to apply instead of a new one. It cannot be combined with `rng`. It must have the
        shape of x and one draw per channel. `p` must be equal to ``mask.p`` or be left at its
        default, 0.5.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True

    Raises
    ------
    RuntimeError
        If x has 0 dimensions.
    TypeError, ValueError
        For the same reasons as in `dropout`.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.dropout3d(np.ones((2, 3, 4, 5, 5)), p=0.5, rng=3)
    >>> sorted(set(y.reshape(6, 100).sum(axis=1).tolist()))  # each channel is dropped or doubled
    [0.0, 200.0]
    """
    p, x = check_probability(p), as_any_array(x)
    ndim = x.ndim
    if ndim not in (4, 5):
        _deprecated_dimensions("dropout3d", ndim, 3)
    leading = 2 if ndim == 5 else 1
    _check_channels(ndim, leading)
    return dropout_features(x, leading, p, training, inplace, rng, mask, return_mask, out)


@_drop_path
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
        The input, with N samples.
    scale_by_keep : bool, default True
        Scale kept samples by ``1 / (1 - p)``. If False, they are not scaled.
    mask : Mask, optional
        A mask to apply instead of a new one. It cannot be combined with `rng` or
        ``scale_by_keep=False``. It must have the shape of x and one draw per sample. `p` must be
        equal to ``mask.p`` or be left at its default, 0.5.
    p, training, inplace, rng, return_mask, out
        As in `dropout`; p is the probability that a sample is dropped.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `dropout`.

    Notes
    -----
    The method is described in Huang et al., "Deep networks with stochastic depth", ECCV 2016. The
    argument scale_by_keep has the same meaning as in timm.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y = cdropout.drop_path(np.ones((8, 2, 3)), p=0.5, rng=7)
    >>> sorted(set(y.sum(axis=(1, 2)).tolist()))  # each sample is dropped or doubled
    [0.0, 12.0]
    """
    check_flag(scale_by_keep, "scale_by_keep")
    x = as_any_array(x)
    if mask is not None and not scale_by_keep:
        raise ValueError("mask= cannot be combined with scale_by_keep=False")
    scale = None if scale_by_keep else 1.0
    return dropout_features(x, 1, p, training, inplace, rng, mask, return_mask, out, scale)


def _alpha_dropout(x, leading, p, training, inplace, rng, mask, return_mask, out):
    """Return the result of alpha dropout with one draw per index of the first `leading` axes."""
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
    rng = as_rng(rng)  # called before arrays are read, because methods of rng may change arrays
    options |= {"rng": rng, "scale": a, "shift": (b, c)}
    source = as_any_array(x)
    if source.dtype.itemsize > 2:
        return dropout_features(x, leading, p, True, inplace, **options)
    target = destination(x, inplace, out)
    y = source.astype(np.float32)  # for 16-bit types, compute in float32 and round once
    if y.size and mask is None:
        options["rng"] = generator_for(rng, [source, target])
    options |= {"return_mask": True, "out": None}
    _, mask = dropout_features(y, leading, p, True, True, **options)
    with np.errstate(all="ignore"):  # near p = 1, a and b may be too large for float16
        np.copyto(target, y, casting="same_kind")
    result = x if inplace else target
    return (result, mask) if return_mask else result


@_variant
def alpha_dropout(
    x, p=0.5, training=False, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Apply alpha dropout, which preserves mean 0 and variance 1, for self-normalizing networks.

    Dropped elements are replaced by the limit s of SELU at minus infinity. Then all elements are
    scaled and shifted: kept elements become ``a * x + b``, and dropped elements become
    ``a * s + b``, where a and b depend only on p.

    Parameters
    ----------
    training : bool, default False
        If False, return `x` unchanged. The default is the same as in PyTorch.
    x, p, inplace, rng, return_mask, out
        As in `dropout`. The returned mask has the scale a, so that `dropout_backward` with this
        mask returns the gradient.
    mask : Mask, optional
        A mask to apply instead of a new one. It cannot be combined with `rng`. It must have the
        shape of x. Its scale is not used: kept elements are multiplied by a. `p` must be equal to
        ``mask.p`` or be left at its default, 0.5.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `dropout`.

    Notes
    -----
    The method is described in Klambauer et al., "Self-normalizing neural networks", NIPS 2017,
    section "New Dropout Technique". If p is 1, all elements of the result are 0, as in PyTorch.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> x = np.random.default_rng(0).standard_normal(100_000)
    >>> y = cdropout.alpha_dropout(x, p=0.1, training=True, rng=7)
    >>> bool(abs(y.mean()) < 0.02 and abs(y.std() - 1) < 0.02)
    True
    """
    p, x = check_probability(p), as_any_array(x)
    return _alpha_dropout(x, x.ndim, p, training, inplace, rng, mask, return_mask, out)


@_variant
def feature_alpha_dropout(
    x, p=0.5, training=False, inplace=False, *, rng=None, mask=None, return_mask=False, out=None
):
    """Apply `alpha_dropout` to whole channels of `x`.

    Parameters
    ----------
    x : array of shape (N, C, ...)
        The input.
    p, training, inplace, rng, return_mask, out
        As in `alpha_dropout`; p is the probability that a channel is dropped.
    mask : Mask, optional
        As in `alpha_dropout`, with one draw per channel.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True

    Raises
    ------
    RuntimeError
        If x has fewer than two dimensions.
    TypeError, ValueError
        For the same reasons as in `dropout`.

    See Also
    --------
    alpha_dropout

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> x = np.zeros((2, 3, 100))
    >>> y = cdropout.feature_alpha_dropout(x, p=0.5, training=True, rng=3)
    >>> len(np.unique(y))  # one value for kept and one for dropped channels
    2
    """
    p, x = check_probability(p), as_any_array(x)
    _check_channels(x.ndim, 2)
    return _alpha_dropout(x, 2, p, training, inplace, rng, mask, return_mask, out)


def as_copies(n: SupportsIndex) -> int:
    """Return n as a Python int. Raise TypeError if n is not an int, ValueError if n is negative."""
    # This is Python code, because torch.compile cannot trace the compiled function `as_index`.
    if isinstance(n, (bool, np.bool_)) or not hasattr(n, "__index__") or getattr(n, "ndim", 0) > 0:
        raise TypeError(f"n has to be an int, but got {type(n).__name__}")
    n = operator.index(n)
    if n < 0:
        raise ValueError(f"n has to be at least 0, but got {n}")
    return n


@overload
def mc_dropout(
    x: NDArray[Scalar],
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[False] = False,
    out: NDArray[Scalar] | None = None,
) -> NDArray[Scalar]: ...
@overload
def mc_dropout(
    x: NDArray[Scalar],
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: NDArray[Scalar] | None = None,
) -> tuple[NDArray[Scalar], Mask]: ...
@overload
def mc_dropout(
    x: Exporter,
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[False] = False,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]: ...
@overload
def mc_dropout(
    x: Exporter,
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: Literal[True],
    out: NDArray[Any] | None = None,
) -> tuple[NDArray[Any], Mask]: ...
@overload
def mc_dropout(
    x: Exporter,
    p: Probability = 0.5,
    n: SupportsIndex = 1,
    *,
    rng: RNG = None,
    mask: Mask | None = None,
    return_mask: bool,
    out: NDArray[Any] | None = None,
) -> NDArray[Any] | tuple[NDArray[Any], Mask]: ...
def mc_dropout(x, p=0.5, n=1, *, rng=None, mask=None, return_mask=False, out=None):
    """Return `n` copies of `x` with different masks, for Monte Carlo dropout.

    Parameters
    ----------
    x : array
        The input.
    n : int, default 1
        The number of copies, at least 0.
    p, rng, return_mask
        As in `dropout`. The mask has the shape ``(n, *x.shape)``, with different draws per copy.
    mask : Mask, optional
        A mask of shape ``(n, *x.shape)`` to apply instead of a new one. It cannot be combined
        with `rng`. `p` must be equal to ``mask.p`` or be left at its default, 0.5.
    out : ndarray of shape ``(n, *x.shape)``, optional
        The array for the result. It must have the type of x and must not overlap x.

    Returns
    -------
    ndarray of shape ``(n, *x.shape)``, or (ndarray, Mask) if return_mask is True
        The copies, which never share memory with x or with each other.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `dropout`; ValueError also if n is negative.

    Notes
    -----
    The method is described in Gal and Ghahramani, "Dropout as a Bayesian approximation", ICML 2016.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> cdropout.mc_dropout(np.ones((2, 3)), p=0.1, n=5).shape
    (5, 2, 3)
    """
    p, n = check_probability(p), as_copies(n)
    array = as_any_array(x)
    copies = np.broadcast_to(array, (n, *array.shape))
    out = np.empty(copies.shape, array.dtype) if out is None else out
    if mask is not None:
        check_mask(mask, copies.shape, (), p)
    return dropout(copies, p, rng=rng, mask=mask, return_mask=return_mask, out=out)

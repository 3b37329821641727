"""Dropout for Dask arrays. The task of a chunk draws only the part of the mask for this chunk."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

try:
    import dask
    import dask.array as da
    from dask.array.core import normalize_chunks
    from dask.array.utils import meta_from_array
    from dask.base import tokenize
    from dask.layers import ArraySliceDep
except ImportError as error:
    raise ImportError("cdropout.dask needs Dask: run `pip install 'cdropout[dask]'`") from error

from cdropout._core.arguments import check_flag, check_probability
from cdropout._core.generator import next_mask
from cdropout._core.mask import Mask, broadcast_strides, check_mask, check_not_given
from cdropout.environment import check_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import SupportsIndex

    from numpy.typing import NDArray

    from cdropout.typing import RNG, Axes, Probability

check_version(dask)

__all__ = ["dropout", "dropout_backward", "mask_to_dask"]


@overload
def dropout(
    x: da.Array,
    p: Probability = 0.5,
    training: bool = True,
    *,
    seed: SupportsIndex | None = None,
    call: SupportsIndex = 0,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: Mask | None = None,
    return_mask: Literal[False] = False,
) -> da.Array: ...
@overload
def dropout(
    x: da.Array,
    p: Probability = 0.5,
    training: bool = True,
    *,
    seed: SupportsIndex | None = None,
    call: SupportsIndex = 0,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: Mask | None = None,
    return_mask: Literal[True],
) -> tuple[da.Array, Mask]: ...
@overload
def dropout(
    x: da.Array,
    p: Probability = 0.5,
    training: bool = True,
    *,
    seed: SupportsIndex | None = None,
    call: SupportsIndex = 0,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: Mask | None = None,
    return_mask: bool = False,
) -> da.Array | tuple[da.Array, Mask]: ...
def dropout(
    x: da.Array,
    p: Probability = 0.5,
    training: bool = True,
    *,
    seed: SupportsIndex | None = None,
    call: SupportsIndex = 0,
    rng: RNG = None,
    broadcast_dims: Axes = (),
    mask: Mask | None = None,
    return_mask: bool = False,
) -> da.Array | tuple[da.Array, Mask]:
    """Zero each element of `x` with probability `p` and scale the others by ``1 / (1 - p)``.

    The mask is drawn when the result is computed. The result is bit-identical to that of
    `cdropout.dropout` with the same mask, for all chunk sizes, schedulers and numbers of workers.

    Parameters
    ----------
    x : dask.array.Array
        An array whose chunks are supported by `cdropout.dropout`. The sizes of the chunks have to
        be known if a mask is applied or returned.
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    training : bool, default True
        If false, return `x` itself.
    seed, call : int, optional
        The seed and the call number of the mask. Without `broadcast_dims`, the mask is
        ``Mask(x.shape, p, seed, call)``.
    rng : None, Generator, int, numpy.random.Generator or numpy.random.SeedSequence
        The source of the mask if no seed is given, as in `cdropout.dropout`. The source is used
        when this function is called, not when the result is computed.
    broadcast_dims : int or tuple of int
        Axes along which all elements share one draw, even if they are in different chunks.
    mask : Mask, optional
        A mask of the shape of `x` to apply instead of a new one. It cannot be combined with
        `seed`, `call`, `rng` or `broadcast_dims`. `p` must be equal to ``mask.p`` or be left at
        its default, 0.5.
    return_mask : bool, default False
        If true, return ``(y, mask)`` with the `Mask` for `dropout_backward`.

    Returns
    -------
    dask.array.Array, or (dask.array.Array, Mask) if return_mask is True
        An array of the shape, type and chunks of `x`. It is `x` itself if p is 0 and the scale of
        the mask is 1, or if `training` is false.

    Raises
    ------
    TypeError
        If the type of an argument, or of the chunks of `x`, is not supported.
    ValueError
        If p is not in [0, 1], seed, call, rng or broadcast_dims is out of range, `x` has chunks of
        unknown size but a mask is applied or returned, `mask` does not fit x and p, two of the
        arguments exclude each other, or a `call` other than 0 is given without `seed`.

    Notes
    -----
    The task of a chunk needs memory for the chunk and its result. If this memory is not available,
    a MemoryError is raised when the result is computed.
    """
    check_flag(training, "training")
    check_flag(return_mask, "return_mask")
    p = check_probability(p)
    _check_type("x", x)
    needs_shape = return_mask or (training and (p != 0 or mask is not None))
    shape = _known_shape("x", x) if needs_shape else (0,) * x.ndim
    if mask is not None:
        if training:
            check_not_given("seed", seed)
            check_not_given("rng", rng)
            check_not_given("broadcast_dims", broadcast_dims)
            check_not_given("call", None if call == 0 else call)
            check_mask(mask, shape, (), p)
        else:  # the mask, and the arguments that cannot be combined with it, have no effect
            mask, seed, call, rng, broadcast_dims = None, None, 0, None, ()
    if seed is not None and rng is not None:
        raise ValueError(f"seed={seed!r} determines the mask: it excludes rng")
    if seed is None and call != 0:
        raise ValueError(f"call={call!r} needs seed, since both determine the mask")
    p = p if training else 0
    if seed is not None:
        mask = Mask(shape, p, seed, call, strides=broadcast_strides(shape, broadcast_dims))
    elif mask is None:
        mask = next_mask(rng, shape, p, broadcast_dims)
    y = _apply(x, mask)
    return (y, mask) if return_mask else y


def dropout_backward(gy: da.Array, mask: Mask) -> da.Array:
    """Return the gradient of dropout: `gy` scaled where `mask` keeps elements, otherwise +0.0.

    Parameters
    ----------
    gy : dask.array.Array
        The gradient with respect to the output. The chunks of `gy` and of the output may differ.
    mask : Mask
        The mask that ``dropout(..., return_mask=True)`` returned.

    Returns
    -------
    dask.array.Array
        An array of the shape, type and chunks of `gy`.

    Raises
    ------
    TypeError
        If gy is not a Dask array of a supported type, or mask is not a `Mask`.
    ValueError
        If mask and gy have different shapes, or gy has chunks of unknown size.
    """
    _check_type("gy", gy)
    if not isinstance(mask, Mask):
        raise TypeError(f"mask has to be a Mask, but got {type(mask).__name__}")
    shape = _known_shape("gy", gy)
    if mask.shape != shape:
        raise ValueError(f"the mask has the shape {mask.shape}, but gy has {shape}")
    return _apply(gy, mask)


def mask_to_dask(mask: Mask, chunks: Any = "auto") -> da.Array:
    """Return a lazy array of bools that are True for kept elements; see `Mask.to_dask`.

    Parameters
    ----------
    mask : Mask
    chunks : int, tuple, dict or str, default "auto"
        As in `dask.array.from_array`.

    Returns
    -------
    dask.array.Array
    """
    chunks = normalize_chunks(chunks, mask.shape, dtype=np.bool_)
    meta = np.empty((0,) * mask.ndim, np.bool_)
    return _blockwise(mask_chunk, mask, chunks, meta)


def _check_type(name: str, x: Any) -> None:
    """Raise a TypeError if x is not a Dask array, or if the type of its chunks is not supported."""
    if not isinstance(x, da.Array):
        hint = ""
        if hasattr(type(x), "to_dask_array"):
            hint = f": pass {name}.to_dask_array(lengths=True)"  # a Dask DataFrame or Series
        elif isinstance(getattr(x, "data", None), da.Array):
            hint = f": pass {name}.data"  # an xarray DataArray
        raise TypeError(f"{name} has to be a Dask array, but got {type(x).__name__}{hint}")
    meta = meta_from_array(x)
    Mask(meta.shape, 0.5).apply(meta)


def _known_shape(name: str, x: da.Array) -> tuple[int, ...]:
    """Return the shape of x; raise an error if x has chunks of unknown size."""
    if any(math.isnan(length) for length in x.shape):
        raise ValueError(
            f"{name} has chunks of unknown size (its shape is {x.shape}): call "
            f"{name}.compute_chunk_sizes() first, since the position of a chunk determines its "
            "part of the mask"
        )
    return x.shape


def _apply(x: da.Array, mask: Mask) -> da.Array:
    """Return x with the mask applied, or x itself if the mask changes no element."""
    if mask.p == 0 and mask.scale == 1:
        return x
    # Without this name, Dask would also tokenize the chunk sizes, which takes time. x.name
    # determines these sizes.
    name = f"dropout_chunk-{tokenize(x.name, mask)}"
    return _blockwise(dropout_chunk, mask, x.chunks, meta_from_array(x), x, name)


def _blockwise(
    function: Callable[..., NDArray[Any]],
    mask: Mask,
    chunks: Any,
    meta: Any,
    x: da.Array | None = None,
    name: str | None = None,
) -> da.Array:
    """Return the array whose chunks are ``function(window, chunk of x, mask=mask)``.

    If x is None, the function is called without a chunk. The graph is one layer. In contrast to
    `da.map_blocks` with ``block_info``, nothing is stored per chunk: the window, a tuple of slices,
    is computed when the layer is turned into tasks.
    """
    axes = tuple(range(mask.ndim))
    arrays = [ArraySliceDep(chunks), axes] + ([] if x is None else [x, axes])
    options = {"name": name, "dtype": meta.dtype, "meta": meta, "align_arrays": False}
    return da.blockwise(function, axes, *arrays, mask=mask, **options)


def dropout_chunk(window: Any, chunk: Any, mask: Mask) -> NDArray[Any]:
    """Return the result for one chunk of x. Dask's task names contain the name of this function."""
    return mask[window].apply(chunk)


def mask_chunk(window: Any, mask: Mask) -> NDArray[np.bool_]:
    """Return one chunk of a mask as an array of bools."""
    return np.asarray(mask[window])

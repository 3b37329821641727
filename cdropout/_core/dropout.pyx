"""Dropout of NumPy arrays with a new or a given mask. The module is compiled to make calls on small arrays fast."""
cimport numpy as cnp

import numpy as np

from cdropout cimport cdropout_mask
from cdropout._core.numpy_arrays cimport apply_bits, apply_bools, apply_mask, as_array, destination, is_plain_array, shape_of
from cdropout._core.dispatch cimport kernels
from cdropout._core.arguments cimport as_flag, as_probability
from cdropout._core.generator cimport Generator, as_generator, as_rng, generator_for
from cdropout._core.mask cimport (
    Mask, as_axes, axes_to_strides, check_mask, check_not_given, check_shape, new_mask, scale_of, uses_call_number,
    with_scale,
)

cnp.import_array()


def dropout(
    x, p=0.5, training=True, inplace=False, *,
    rng=None, broadcast_dims=(), mask=None, return_mask=False, out=None,
):
    """Zero each element of `x` with probability `p` and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : ndarray of float16, bfloat16, float32 or float64
        The input, of any shape and strides. NumPy scalars are supported too, and objects with DLPack or the buffer
        protocol, which are read without a copy. Subclasses of ndarray other than memmap, matrix and recarray are not
        supported, because the meaning of their elements, such as units, would be lost.
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    training : bool, default True
        If False, return `x` unchanged.
    inplace : bool, default False
        Write the result to `x`.
    rng : None, Generator, int, numpy.random.Generator or numpy.random.SeedSequence
        The source of the mask. If None, the default generator is used (see `manual_seed`). An int is a seed: all calls
        with the same int use the same mask, which has the call number 0. If rng is a NumPy generator, a seed is drawn
        from rng. A SeedSequence always gives the same seed, like an int.
    broadcast_dims : int or tuple of int, default ()
        The axes along which all elements share one draw.
    mask : Mask or ndarray, optional
        A mask to apply instead of a new one. It cannot be combined with `rng` or `broadcast_dims`. With a `Mask`, `p` must
        be equal to ``mask.p`` or be left at its default, 0.5. An array must contain packed bits (uint8), bools, or 0 and
        ``1 / (1 - p)`` in the type of x. For packed bits and bools, the scale is computed from `p`.
    return_mask : bool, default False
        Return ``(y, mask)``. `dropout_backward` needs the mask.
    out : ndarray, optional
        The array for the result: x itself, or an array of the same shape and type that does not overlap x.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True
        The result, which is `out` if `out` is given. Otherwise, it is `x` itself if inplace is True, training is False,
        or p is 0 and no mask is given. In all other cases, it is a new array in the memory order of `x`. If x is not an
        ndarray, the function returns, in place of `x` itself, an array that shares the memory of x or, for a NumPy scalar, a
        read-only array.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If p is not in [0, 1], out or mask does not fit x, or two arguments cannot be combined.

    See Also
    --------
    dropout_backward, Mask, Generator

    Notes
    -----
    The function computes inverted dropout, which needs no scaling in evaluation. The method is described in Srivastava et
    al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014). A dropped element becomes
    +0.0, even if the element is NaN or infinite.

    If an error is raised, no argument and no generator changes. If a signal handler raises an exception, as after
    Ctrl-C, the result may be partly written, but no call number is used.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> x = np.ones((2, 3), np.float32)
    >>> y, mask = cdropout.dropout(x, p=0.5, rng=7, return_mask=True)
    >>> bool((y == mask.apply(x)).all())
    True
    >>> cdropout.dropout(x, training=False) is x
    True
    """
    if mask is None or not as_flag(training, "training"):
        return apply_new_mask(
            x, p, training, inplace, rng=rng, broadcast_dims=broadcast_dims, return_mask=return_mask, out=out,
            scale=None, shift=None,
        )
    check_not_given("rng", rng)
    check_not_given("broadcast_dims", broadcast_dims)
    return apply_given_mask(x, p, inplace, mask, return_mask, out, None)


def dropout_backward(gy, mask, inplace=False, *, p=None, out=None):
    """Return the gradient with respect to the input of dropout: ``gy * scale`` for kept elements, otherwise +0.0.

    Parameters
    ----------
    gy : ndarray
        The gradient with respect to the output. The same types are supported as for x in `dropout`.
    mask : Mask or ndarray
        The mask that ``dropout(..., return_mask=True)`` returned, or an array as in `dropout`.
    inplace : bool, default False
        Write the result to `gy`.
    p : float, optional
        The probability that an element was dropped. Masks of packed bits and of bools require `p`.
    out : ndarray, optional
        The array for the result, as in `dropout`.

    Returns
    -------
    ndarray

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `dropout`; ValueError also if the mask has another shape than gy, or if `p` is required
        but None.

    See Also
    --------
    dropout

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> y, mask = cdropout.dropout(np.ones(4), p=0.5, rng=7, return_mask=True)
    >>> gx = cdropout.dropout_backward(np.ones(4), mask)
    >>> bool((gx == y).all())
    True
    """
    return apply_any_mask(gy, mask, p, inplace, out)


def dropout_features(
    x, int leading, p, training, inplace, rng, mask, return_mask, out, scale=None, tuple shift=None,
):
    """Return the result of dropout in which all elements along axis `leading` and all later axes share one draw.

    The other arguments are those of `dropout`, except for `scale` and `shift`, which `apply_new_mask` describes.
    """
    cdef tuple axes = tuple(range(leading, cnp.PyArray_NDIM(as_array(x))))
    if mask is None or not as_flag(training, "training"):
        return apply_new_mask(
            x, p, training, inplace, rng=rng, broadcast_dims=axes, return_mask=return_mask, out=out,
            scale=scale, shift=shift,
        )
    p = as_probability(p)
    check_not_given("rng", rng)
    check_mask(mask, shape_of(as_array(x)), axes, p)
    given = mask if scale is None else with_scale(mask, scale)
    return apply_given_mask(x, p, inplace, given, return_mask, out, shift)


cdef bint is_empty(broadcast_dims):
    """Return whether broadcast_dims is an empty tuple, which is its default."""
    return type(broadcast_dims) is tuple and len(<tuple>broadcast_dims) == 0


cdef apply_new_mask(x, p, training, inplace, rng, broadcast_dims, return_mask, out, scale, tuple shift):
    """Apply the next mask of rng to x. Return the result, or (result, mask) if return_mask is true.

    `scale` replaces 1 / (1 - p) unless `scale` is None. `shift`, for float32 and float64 only, is None or a pair of numbers:
    the first number is added to kept elements after they are scaled, and the second number replaces dropped elements.
    """
    cdef cdropout_mask id
    cdef bint is_training = as_flag(training, "training")
    cdef bint writes_x = as_flag(inplace, "inplace")
    cdef bint returns_mask = as_flag(return_mask, "return_mask")
    cdef double probability = as_probability(p)
    cdef cnp.ndarray array, target
    cdef tuple strides = None
    cdef bint broadcasts = not is_empty(broadcast_dims)
    # Methods of p, rng and broadcast_dims may change arrays, so these arguments are converted before x is read.
    if rng is not None:
        rng = as_rng(rng)
    if broadcasts:
        broadcast_dims = as_axes(broadcast_dims)
    array = as_array(x)
    if broadcasts:
        strides = axes_to_strides(shape_of(array), broadcast_dims)
    if not is_training:
        probability = 0
    kernels.mask_init(&id, 0, 0, probability)
    if scale is not None and 0 < probability < 1:
        id.scale = scale
    target = array
    if probability or out is not None:
        target = destination(array, writes_x, out)
        if uses_call_number(probability, cnp.PyArray_SIZE(array) == 0):
            draw_and_apply(array, target, &id, rng, strides, shift)
        elif probability:
            apply_mask(array, target, &id, 0, strides)
        else:
            np.copyto(target, array)
    result = x if target is array and isinstance(x, cnp.ndarray) else target
    return (result, new_mask(id, shape_of(array), probability, strides)) if returns_mask else result


cdef draw_and_apply(cnp.ndarray x, cnp.ndarray y, cdropout_mask* id, rng, tuple strides, tuple shift):
    """Apply the next mask of rng to x and write the result to y.

    The caller allocates y before this call, so that no call number is used if the allocation fails.
    """
    own = rng is None or isinstance(rng, Generator)
    cdef Generator generator = as_generator(rng) if own else generator_for(rng, [x, y])
    generator.next_id(id)
    try:
        apply_mask(x, y, id, 0, strides, shift)
    except BaseException:             # a signal handler raised an exception or forked
        generator.undo_next_id(id)
        raise


cdef apply_given_mask(x, p, inplace, mask, return_mask, out, tuple shift):
    """Apply a given mask to x. Return the result, or (result, mask) if return_mask is true."""
    cdef bint returns_mask = as_flag(return_mask, "return_mask")
    cdef double probability = as_probability(p)  # converted only once: __float__ may return another number later
    p = None if isinstance(mask, Mask) and probability == 0.5 else probability
    y = apply_any_mask(x, mask, p, inplace, out, shift)
    return (y, mask) if returns_mask else y


cdef apply_any_mask(x, mask, p, inplace, out, tuple shift=None):
    """Apply a Mask, packed bits (uint8), bools, or an array of 0 and 1 / (1 - p) to x, and return the result."""
    cdef bint writes_x = as_flag(inplace, "inplace")
    cdef cnp.ndarray array
    cdef cnp.ndarray given
    if p is not None:
        p = as_probability(p)         # p is converted before x is read, because __float__ may change arrays
    array = as_array(x)
    same = x if isinstance(x, cnp.ndarray) else array
    if isinstance(mask, Mask):
        check_shape((<Mask>mask).shape, array)
        if p is not None and p != (<Mask>mask).p:
            raise ValueError(f"the mask has p={(<Mask>mask).p}, but p={p} was given")
        target = destination(array, writes_x, out)
        apply_mask(array, target, &(<Mask>mask).id, (<Mask>mask).start_, (<Mask>mask).strides_, shift)
        return same if writes_x else target
    if not is_plain_array(mask):
        raise TypeError(f"mask has to be a Mask or a NumPy array, but got {type(mask).__name__}")
    given = mask
    check_given(array, given, p)
    target = destination(array, writes_x, out)
    if np.may_share_memory(target, given):
        given = given.copy()
    scaled = given.dtype == array.dtype
    scale = None if scaled else scale_of(p)
    if scaled:
        apply_scale(array, target, given)
    elif given.dtype == np.bool_:
        apply_bools(array, target, given, scale)
    else:
        apply_bits(array, target, np.ascontiguousarray(given), scale)
    return same if writes_x else target


cdef apply_scale(cnp.ndarray x, cnp.ndarray y, cnp.ndarray scale):
    """Write ``x * scale`` to y, or +0.0 where `scale` is 0."""
    dropped = scale == 0
    with np.errstate(all="ignore"):   # no warnings, because the kernels do not warn either
        np.multiply(x, scale, out=y)
    np.copyto(y, 0, where=dropped)


cdef check_given(cnp.ndarray x, cnp.ndarray mask, p):
    """Raise TypeError or ValueError unless the array `mask` can be applied to x."""
    shape = shape_of(x)
    if mask.dtype == np.uint8:
        shape = ((cnp.PyArray_SIZE(x) + 7) // 8,)
        if shape_of(mask) != shape:
            raise ValueError(f"packed bits for x of shape {shape_of(x)} have the shape {shape}, but got {shape_of(mask)}")
    elif mask.dtype == np.bool_ or mask.dtype == x.dtype:
        check_shape(shape_of(mask), x)
    else:
        raise TypeError(
            f"mask has to be a Mask, or an array of bool, uint8 (packed bits) or {x.dtype}, but got {mask.dtype}"
        )
    if mask.dtype != x.dtype and p is None:
        raise ValueError(f"a mask of {'bools' if mask.dtype == np.bool_ else 'packed bits'} requires p; pass p=")

"""The calls that apply a new mask, or a given one, to an array; compiled, since small calls are mostly overhead."""
cimport numpy as cnp

import numpy as np

from cdropout cimport cdropout_mask
from cdropout._core.numpy_arrays cimport apply_bits, apply_bools, apply_mask, as_array, destination, is_plain_array, shape_of
from cdropout._core.dispatch cimport kernels
from cdropout._core.arguments cimport as_flag, as_probability
from cdropout._core.generator cimport Generator, as_generator, as_rng, generator_for
from cdropout._core.mask cimport (
    Mask, as_axes, axes_to_strides, check_mask, check_not_given, check_shape, new_mask, scale_of, uses_call_number, with_scale,
)

cnp.import_array()


def dropout(
    x, p=0.5, training=True, inplace=False, *,
    rng=None, broadcast_dims=(), mask=None, return_mask=False, out=None,
):
    """Zero each element of `x` with probability `p` and scale the others by ``1 / (1 - p)``.

    Parameters
    ----------
    x : ndarray of float16, bfloat16, float32 or float64, of any shape and strides
        Or any object with DLPack or the buffer protocol over such elements, which is read without a copy, or a NumPy
        scalar. Of the subclasses of ndarray only those that add no meaning to the elements are taken: memmap, matrix
        and recarray.
    p : float, default 0.5
        The probability that an element is dropped, in [0, 1].
    training : bool, default True
        If False, `x` is returned as it is, and nothing is drawn.
    inplace : bool, default False
        Write the result to `x`.
    rng : None, Generator, int, numpy.random.Generator or numpy.random.SeedSequence
        Where the mask comes from: the default generator (see `manual_seed`), another one, or an int, which names
        the same mask in every call (that seed, call 0). From a NumPy generator one seed is drawn, and a SeedSequence
        gives one, the same each time.
    broadcast_dims : int or tuple of int
        Axes along which one draw is shared: elements that differ only there are kept or dropped together.
    mask : Mask or ndarray, optional
        A mask to apply instead of a new one, which excludes `rng` and `broadcast_dims`: a `Mask`, with `p` left out or
        equal to the mask's (0.5, the default, counts as left out); packed bits (uint8) or bools, with their `p`; or an
        array of 0 and ``1 / (1 - p)``, of x's type.
    return_mask : bool, default False
        Return ``(y, mask)``: the mask is what `dropout_backward` needs.
    out : ndarray, optional
        Takes the result: an array of x's shape and type, x itself or one that does not overlap it.

    Returns
    -------
    ndarray
        In the memory order of `x`. With p = 0 or without training, and in place, `x` itself. If x is not an array, it
        is then an array over the memory of x (for a NumPy scalar, a read-only array of its value with 0 dimensions).

    Raises
    ------
    TypeError
        If an argument is of a type that is not taken; the message names it.
    ValueError
        If p is not in [0, 1], out or mask does not fit x, or an argument excludes another one. After any error nothing has
        changed. (After a signal handler has raised, as that of Ctrl-C does, out is written in part, and no call number used
        up.)

    Notes
    -----
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014), in the
    inverted form, which needs no scaling in evaluation. A dropped element is +0.0, even where x is NaN or infinite.
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
    """Return the gradient of the dropout that drew `mask`: ``gy / (1 - p)`` where kept, else +0.0.

    Parameters
    ----------
    gy : ndarray
        The gradient of the output; what `dropout` takes as x.
    mask : Mask or ndarray
        What ``dropout(..., return_mask=True)`` returned; or packed bits (uint8) or bools, which need `p`; or an array
        of 0 and ``1 / (1 - p)``, of gy's type.
    inplace : bool, default False
        Write the result to `gy`.
    p : float, optional
        The probability that an element was dropped, for masks that do not say it.
    out : ndarray, optional
        Takes the result, as in `dropout`.

    Raises
    ------
    TypeError, ValueError
        As `dropout`; ValueError if the mask has another shape, or needs p.
    """
    return apply_any_mask(gy, mask, p, inplace, out)


def dropout_features(
    x, int leading, p, training, inplace, rng, mask, return_mask, out, scale=None, tuple shift=None,
):
    """`dropout` with one draw along all axes of x but the leading ones. For scale and shift see `apply_new_mask`."""
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
    return type(broadcast_dims) is tuple and len(<tuple>broadcast_dims) == 0


cdef apply_new_mask(x, p, training, inplace, rng, broadcast_dims, return_mask, out, scale, tuple shift):
    """Apply the next mask of rng, which is drawn after the memory of the result is there.

    `scale` replaces 1 / (1 - p). The numbers of `shift`, for float32 and float64 only, are added to kept elements and
    take the place of dropped ones.
    """
    cdef cdropout_mask id
    cdef bint trains = as_flag(training, "training")
    cdef bint writes_x = as_flag(inplace, "inplace")
    cdef bint returns_mask = as_flag(return_mask, "return_mask")
    cdef double probability = as_probability(p)
    cdef cnp.ndarray array, target
    cdef tuple strides = None
    cdef bint shares = not is_empty(broadcast_dims)
    # The code of p, rng and broadcast_dims may change arrays, so it runs before they are read.
    if rng is not None:
        rng = as_rng(rng)
    if shares:
        broadcast_dims = as_axes(broadcast_dims)
    array = as_array(x)
    if shares:
        strides = axes_to_strides(shape_of(array), broadcast_dims)
    if not trains:
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
    """Fill in the seed and the call number of the next mask of rng, and apply it."""
    own = rng is None or isinstance(rng, Generator)
    cdef Generator generator = as_generator(rng) if own else generator_for(rng, [x, y])
    generator.next_id(id)
    try:
        apply_mask(x, y, id, 0, strides, shift)
    except BaseException:             # a signal handler has raised
        generator.undo_next_id(id)
        raise


cdef apply_given_mask(x, p, inplace, mask, return_mask, out, tuple shift):
    """Apply the mask that a call was given."""
    cdef bint returns_mask = as_flag(return_mask, "return_mask")
    cdef double probability = as_probability(p)  # once: a number's own code might answer otherwise the second time
    p = None if isinstance(mask, Mask) and probability == 0.5 else probability
    y = apply_any_mask(x, mask, p, inplace, out, shift)
    return (y, mask) if returns_mask else y


cdef apply_any_mask(x, mask, p, inplace, out, tuple shift=None):
    """x masked and scaled by a Mask, packed bits (uint8), bools, or an array of 0 and 1/(1 - p)."""
    cdef bint writes_x = as_flag(inplace, "inplace")
    cdef cnp.ndarray array
    cdef cnp.ndarray given
    if p is not None:
        p = as_probability(p)         # first: a number's own code may change arrays
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
    """y = x * scale, an array, where that is not 0, else +0.0."""
    dropped = scale == 0
    with np.errstate(all="ignore"):   # a dropped infinity times 0, before it becomes 0; overflow, as in the kernels
        np.multiply(x, scale, out=y)
    np.copyto(y, 0, where=dropped)


cdef check_given(cnp.ndarray x, cnp.ndarray mask, p):
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
        raise ValueError(f"a mask of {'bools' if mask.dtype == np.bool_ else 'packed bits'} does not say p; pass p=")

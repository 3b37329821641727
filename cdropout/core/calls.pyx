"""The calls that apply a new mask, or a given one, to an array; compiled, since small calls are mostly overhead."""
cimport numpy as cnp

import numpy as np

from cdropout cimport cdropout_mask
from cdropout.core.arrays cimport apply_bits, apply_bools, apply_mask, as_array, destination, is_taken, shape_of
from cdropout.core.dispatch cimport kernels
from cdropout.core.generators cimport Generator, as_flag, as_generator, as_probability, as_rng, ask
from cdropout.core.masks cimport Mask, as_axes, check_shape, new_mask, scale_of, strides_along

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
        A mask to apply instead of a new one: a `Mask`, which knows its own p and does not look at this one; packed bits
        (uint8) or bools, scaled as `p` says; or an array of 0 and ``1 / (1 - p)``, of x's type.
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
        If p is not in [0, 1], or out or mask does not fit x. After any error nothing has changed. (After a signal handler
        has raised, as that of Ctrl-C does, out is written in part, and no call number used up.)

    Notes
    -----
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014), in the
    inverted form, which needs no scaling in evaluation. A dropped element is +0.0, even where x is NaN or infinite.
    """
    if mask is None or not as_flag(training, "training"):
        return dropout_axes(x, broadcast_dims, p, training, inplace, rng, return_mask, out)
    returns_mask = as_flag(return_mask, "return_mask")
    p = as_probability(p)             # once: a number's own code might answer otherwise the second time
    as_rng(rng)
    if not empty(broadcast_dims):
        raise ValueError("mask= says which elements are kept: it excludes broadcast_dims")
    y = apply_given(x, mask, None if isinstance(mask, Mask) else p, inplace, out)
    return (y, mask) if returns_mask else y


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
    return apply_given(gy, mask, p, inplace, out)


cdef bint empty(broadcast_dims):
    return type(broadcast_dims) is tuple and len(<tuple>broadcast_dims) == 0


cpdef dropout_axes(
    x, broadcast_dims, p, training, inplace, rng, return_mask, out, factor=None, tuple shift=None,
):
    """Apply a new mask, whose call number is used up only if it is drawn.

    `factor` replaces 1 / (1 - p). The numbers of `shift`, for float32 and float64 only, are added to kept elements and
    take the place of dropped ones.
    """
    cdef cdropout_mask name
    cdef bint trains = as_flag(training, "training")
    cdef bint writes_x = as_flag(inplace, "inplace")
    cdef bint returns_mask = as_flag(return_mask, "return_mask")
    cdef double probability = as_probability(p)
    cdef cnp.ndarray array, target
    cdef tuple strides = None
    cdef bint shares = not empty(broadcast_dims)
    # The code of p, rng and broadcast_dims may change arrays, so it runs before they are read.
    if rng is not None:
        rng = as_rng(rng)
    if shares:
        broadcast_dims = as_axes(broadcast_dims)
    array = as_array(x)
    if shares:
        strides = strides_along(shape_of(array), broadcast_dims)
    if not trains:
        probability = 0
    kernels.mask_init(&name, 0, 0, probability)
    if factor is not None and 0 < probability < 1:
        name.scale = factor
    target = array
    if probability or out is not None:
        target = destination(array, writes_x, out)
        if probability:
            draw_mask(array, target, &name, rng, strides, shift)
        else:
            np.copyto(target, array)
    result = x if target is array and isinstance(x, cnp.ndarray) else target
    return (result, new_mask(name, shape_of(array), probability, strides)) if returns_mask else result


cdef draw_mask(cnp.ndarray x, cnp.ndarray y, cdropout_mask* name, rng, tuple strides, tuple shift):
    """Name the next mask, if p or x leaves one to draw, and apply it."""
    cdef Generator generator = None
    if name.scale and cnp.PyArray_SIZE(x):    # p < 1
        own = rng is None or isinstance(rng, Generator)
        generator = as_generator(rng) if own else ask(rng, [x, y])
        generator.name_next(name)
    try:
        apply_mask(x, y, name, 0, strides, shift)
    except BaseException:             # a signal handler has raised
        if generator is not None:
            generator.take_back(name)
        raise


cdef apply_given(x, mask, p, inplace, out):
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
        apply_mask(array, target, &(<Mask>mask).name, (<Mask>mask).first, (<Mask>mask).steps)
        return same if writes_x else target
    if not is_taken(mask):
        raise TypeError(f"mask has to be a Mask or a NumPy array, but got {type(mask).__name__}")
    given = mask
    check_given(array, given, p)
    target = destination(array, writes_x, out)
    if np.may_share_memory(target, given):
        given = given.copy()
    factors = given.dtype == array.dtype
    scale = None if factors else scale_of(p)
    if factors:
        apply_factors(array, target, given)
    elif given.dtype == np.bool_:
        apply_bools(array, target, given, scale)
    else:
        apply_bits(array, target, np.ascontiguousarray(given), scale)
    return same if writes_x else target


cdef apply_factors(cnp.ndarray x, cnp.ndarray y, cnp.ndarray factors):
    """y = x * factors where they are not 0, else +0.0."""
    dropped = factors == 0
    with np.errstate(all="ignore"):   # a dropped infinity times 0, before it becomes 0; overflow, as in the kernels
        np.multiply(x, factors, out=y)
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

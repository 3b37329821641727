"""bias_dropout_add and its backward: three operations on one reading of their arrays."""
cimport numpy as cnp
from libc.stdint cimport SIZE_MAX, uint64_t

import numpy as np

from cdropout cimport cdropout_dtype, cdropout_mask
from cdropout._core.numpy_arrays cimport as_array, destination, partly_overlap, shape_of
from cdropout._core.dispatch cimport kernels
from cdropout._core.arguments cimport as_flag, as_index, as_probability
from cdropout._core.dtypes cimport by_array
from cdropout._core.engine cimport CHUNK
from cdropout._core.generator cimport Generator, as_rng, generator_for
from cdropout._core.mask cimport Mask, check_mask, check_not_given, check_shape, unseeded_mask, uses_call_number
from cdropout._core.executor cimport pool, run_serially, threads_for

cnp.import_array()


cdef cnp.ndarray as_kernel_input(cnp.ndarray array):
    """In C order, as float32 or float64: what the kernels compute in."""
    return np.asarray(array, order="C", dtype=np.float64 if cnp.PyArray_TYPE(array) == cnp.NPY_DOUBLE else np.float32)


cdef Py_ssize_t repeat_length(tuple shape, tuple bias):
    """How many elements of x share none of bias: bias repeats after them. 0 if it does not repeat so."""
    bias = strip_leading_ones(bias)
    if bias == shape[len(shape) - len(bias):] and bias:
        return np.prod(bias, dtype=np.intp)
    return 0


cdef tuple strip_leading_ones(tuple shape):
    """Without leading axes of length 1."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def bias_dropout_add(x, bias, residual, p=0.5, training=True, *, rng=None, mask=None, return_mask=False, out=None):
    """Return ``residual + dropout(x + bias, p)``, in one pass.

    Parameters
    ----------
    x : ndarray
        What `dropout` takes.
    bias : ndarray
        Of x's type, and of a shape that broadcasts to x's; that of the last axes is fastest.
    residual : ndarray
        Of x's shape and type.
    p, training, rng, return_mask, out
        As in `dropout`; out may be x or residual.
    mask : Mask, optional
        As in `dropout`; it has to be a `Mask`.

    Returns
    -------
    ndarray, or (ndarray, Mask)

    Raises
    ------
    TypeError, ValueError
        As `dropout`; ValueError if bias does not broadcast to x, or residual has another shape or type.

    Notes
    -----
    The operations are those of x's type, each rounded; float16 and bfloat16 are computed in float32 and rounded once.
    """
    cdef bint trains = as_flag(training, "training")
    cdef bint returns_mask = as_flag(return_mask, "return_mask")
    cdef double probability = as_probability(p)
    cdef cnp.ndarray array, bias_array, residual_array
    cdef tuple shape
    cdef Mask drawn
    cdef Generator generator = None
    rng = as_rng(rng)                 # like p before the arrays, which its own code may change
    array = as_array(x)
    bias_array = as_array(bias, "bias")
    residual_array = as_array(residual, "residual")
    shape = shape_of(array)
    check_operands(array, bias_array, residual_array)
    target = destination(array, False, out)
    if out is not None and (np.may_share_memory(out, bias_array) or partly_overlap(out, residual_array)):
        raise ValueError(
            "out overlaps bias, or partly overlaps residual; it has to be residual itself or must not overlap either"
        )
    if not trains:
        probability = 0
    if trains and mask is not None:
        check_not_given("rng", rng)
        check_mask(mask, shape, (), probability)
        drawn = mask
    else:
        mask = None
        drawn = unseeded_mask(shape, probability, (), None)
    sources = as_kernel_input(array), as_kernel_input(as_repeating(bias_array, shape)), as_kernel_input(residual_array)
    direct = target.flags.c_contiguous and target.dtype == sources[0].dtype
    result = target if direct else np.empty(shape, sources[0].dtype)
    if mask is None and uses_call_number(drawn.p, array.size == 0):
        generator = generator_for(rng, [array, bias_array, residual_array, target])
        generator.next_id(&drawn.id)
    try:
        run_forward(sources[0], sources[1], sources[2], result, drawn)
    except BaseException:             # a signal handler has raised
        if generator is not None:
            generator.undo_next_id(&drawn.id)
        raise
    if not direct:
        round_to(target, result)
    return (target, drawn) if returns_mask else target


cdef round_to(cnp.ndarray y, cnp.ndarray values):
    """Fill y with values of a wider type; too large ones become infinite, as in the kernels, without a warning."""
    with np.errstate(all="ignore"):
        np.copyto(y, values, casting="same_kind")


cdef cnp.ndarray round_like(cnp.ndarray values, cnp.ndarray like):
    """values in the type of `like`."""
    if values.dtype == like.dtype:
        return values
    y = np.empty(shape_of(values), like.dtype)
    round_to(y, values)
    return y


cdef check_operands(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray residual):
    if bias.dtype != x.dtype:
        raise TypeError(f"bias has to be of the type of x, {x.dtype}, but got {bias.dtype}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual has to be of the type of x, {x.dtype}, but got {residual.dtype}")
    if shape_of(residual) != shape_of(x):
        raise ValueError(f"residual has to have the shape of x, {shape_of(x)}, but got {shape_of(residual)}")
    check_broadcast(shape_of(bias), shape_of(x))


cdef check_broadcast(tuple bias, tuple shape):
    lengths = zip(reversed(bias), reversed(shape))
    if len(bias) > len(shape) or not all([a in (1, b) for a, b in lengths]):
        raise ValueError(f"bias has to broadcast to the shape of x, {shape}, but got {bias}")


cdef cnp.ndarray as_repeating(cnp.ndarray bias, tuple shape):
    """bias in a form that repeats along x: itself if it has the last axes of x, else at x's full shape."""
    return bias if repeat_length(shape, shape_of(bias)) else np.broadcast_to(bias, shape)


cdef struct Tiles:                    # of rows x columns: a tile is some whole rows or, where they are long, part of one
    size_t rows, columns, size        # size: bytes an element
    cdropout_dtype dtype
    const char* x                     # or its gradient
    const char* bias                  # of `columns` elements, or NULL, as
    const char* residual
    char* y                           # or x's gradient
    double* sums                      # the gradient of bias
    const cdropout_mask* mask
    uint64_t start


cdef size_t rows_per_tile(const Tiles* tiles) noexcept nogil:
    return max(<size_t>CHUNK // tiles.columns, <size_t>1)


cdef size_t tiles_per_row(const Tiles* tiles) noexcept nogil:
    return (tiles.columns - 1) // CHUNK + 1


cdef size_t count_tiles(const Tiles* tiles) noexcept nogil:
    return ((tiles.rows - 1) // rows_per_tile(tiles) + 1) * tiles_per_row(tiles) if tiles.rows and tiles.columns else 0


cdef void run_tile(const void* call, size_t number) noexcept nogil:
    cdef const Tiles* tiles = <const Tiles*>call
    cdef size_t row = number // tiles_per_row(tiles) * rows_per_tile(tiles)
    cdef size_t column = number % tiles_per_row(tiles) * CHUNK
    cdef size_t rows = min(tiles.rows - row, rows_per_tile(tiles))
    cdef size_t columns = min(tiles.columns - column, <size_t>CHUNK)
    cdef size_t first = row * tiles.columns + column
    cdef size_t at = first * tiles.size
    if tiles.sums == NULL:
        kernels.bias_dropout_add(
            tiles.dtype, tiles.x + at, tiles.bias + column * tiles.size, tiles.residual + at, tiles.y + at, rows, columns,
            tiles.mask, tiles.start + first,
        )
    else:
        kernels.bias_dropout_add_backward(
            tiles.dtype, tiles.x + at, tiles.y + at, tiles.sums + column, rows, columns, tiles.mask, tiles.start + first,
        )


cdef run_forward(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray residual, cnp.ndarray y, Mask mask):
    """y = residual + (x + bias) masked and scaled; all in C order but bias, which repeats along x."""
    cdef size_t n = cnp.PyArray_SIZE(x)
    cdef size_t columns = cnp.PyArray_SIZE(bias)
    cdef Tiles tiles = Tiles(
        n // columns if columns else 0, columns, cnp.PyArray_ITEMSIZE(x), by_array(x).code, <const char*>cnp.PyArray_DATA(x),
        <const char*>cnp.PyArray_DATA(bias), <const char*>cnp.PyArray_DATA(residual), <char*>cnp.PyArray_DATA(y), NULL,
        &mask.id, mask.start_,
    )
    if mask.strides_ is not None:
        run_strided(x, bias, residual, y, mask)
        return
    with nogil:
        pool.run(run_tile, &tiles, count_tiles(&tiles), threads_for(pool, n, SIZE_MAX), True)


cdef run_strided(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray residual, cnp.ndarray y, Mask mask):
    """Do the same with a mask in another order than C order."""
    with np.errstate(all="ignore"):
        total = np.add(x, bias)
        mask.apply(total, total)
        np.add(residual, total, out=y)


def bias_dropout_add_backward(gy, mask, bias_shape=None):
    """Return the gradients of `bias_dropout_add` with respect to x, bias and residual.

    Parameters
    ----------
    gy : ndarray
        The gradient of the output.
    mask : Mask
        What ``bias_dropout_add(..., return_mask=True)`` returned.
    bias_shape : tuple of int, optional
        The shape of bias; by default that of gy's last axis. Its gradient is summed over the other elements, in double
        and in an order that never changes.

    Returns
    -------
    (gx, gbias, gresidual) : of gy's type; gresidual is gy itself, or for an exporter an array over its memory

    Raises
    ------
    TypeError, ValueError
        As `dropout_backward`; ValueError if bias_shape does not broadcast to gy's shape.
    """
    cdef cnp.ndarray array
    cdef tuple shape
    cdef Mask given
    if not isinstance(mask, Mask):
        raise TypeError(f"mask has to be a Mask, but got {type(mask).__name__}")
    given = mask
    bias_shape = as_lengths(bias_shape)
    array = as_array(gy)
    shape = shape_of(array)
    gresidual = gy if isinstance(gy, cnp.ndarray) else array
    check_shape(given.shape, array)
    if bias_shape is None:
        bias_shape = shape[-1:]
    check_broadcast(bias_shape, shape)
    columns = repeat_length(shape, bias_shape)
    if given.strides_ is not None or not columns:
        gx = given.apply(as_kernel_input(array))
        axes = tuple([i for i in range(len(shape)) if broadcast_at(i, shape, bias_shape)])
        with np.errstate(all="ignore"):
            sums = np.asarray(gx.astype(np.float64).sum(axis=axes)).reshape(bias_shape)
        return round_like(gx, array), round_like(sums, array), gresidual
    source = as_kernel_input(array)
    gx = np.empty_like(source)
    sums = np.zeros(columns)
    run_backward(source, gx, sums, given)
    return round_like(gx, array), round_like(sums.reshape(bias_shape), array), gresidual


cdef as_lengths(bias_shape):
    """Return bias_shape as a tuple of Python ints, or None."""
    if bias_shape is None:
        return None
    if not isinstance(bias_shape, (tuple, list)):
        raise TypeError(f"bias_shape has to be a tuple of int, but got {type(bias_shape).__name__}")
    return tuple([as_index(length, "each length in bias_shape") for length in bias_shape])


cdef bint broadcast_at(i, tuple shape, tuple bias):
    """Whether bias is the same along axis i of shape, so that its gradient is a sum."""
    at = i - (len(shape) - len(bias))
    return at < 0 or (bias[at] == 1 and shape[i] != 1)


cdef run_backward(cnp.ndarray gy, cnp.ndarray gx, cnp.ndarray sums, Mask mask):
    cdef size_t columns = cnp.PyArray_SIZE(sums)
    cdef Tiles tiles = Tiles(
        cnp.PyArray_SIZE(gy) // columns if columns else 0, columns, cnp.PyArray_ITEMSIZE(gy), by_array(gy).code,
        <const char*>cnp.PyArray_DATA(gy), NULL, NULL, <char*>cnp.PyArray_DATA(gx), <double*>cnp.PyArray_DATA(sums),
        &mask.id, mask.start_,
    )
    with nogil:                       # serially, so that the order of the sums never changes
        run_serially(run_tile, &tiles, count_tiles(&tiles), 1, True)

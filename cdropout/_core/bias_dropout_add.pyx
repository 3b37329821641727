"""The function bias_dropout_add, which combines three operations, and its backward pass, bias_dropout_add_backward."""
cimport numpy as cnp
from libc.stdint cimport SIZE_MAX

import numpy as np

from cdropout._core.numpy_arrays cimport as_array, destination, partly_overlap, shape_of
from cdropout._core.dispatch cimport kernels
from cdropout._core.arguments cimport as_flag, as_index, as_probability
from cdropout._core.dtypes cimport by_array
from cdropout._core.engine cimport CHUNK
from cdropout._core.generator cimport Generator, as_rng, generator_for
from cdropout._core.mask cimport Mask, check_mask, check_not_given, check_shape, unseeded_mask, uses_call_number
from cdropout._core.executor cimport Executor, pool, threads_for

cnp.import_array()


cdef cnp.ndarray as_kernel_input(cnp.ndarray array):
    """Return the array in C order, as float64 if that is the type of the array, otherwise as float32."""
    return np.asarray(array, order="C", dtype=np.float64 if cnp.PyArray_TYPE(array) == cnp.NPY_DOUBLE else np.float32)


cdef Py_ssize_t repeat_length(tuple shape, tuple bias):
    """Return the number of elements of bias if bias repeats along x without gaps, otherwise 0.

    The shape of such a bias, without leading ones, equals the last dimensions of x.
    """
    bias = strip_leading_ones(bias)
    if bias == shape[len(shape) - len(bias):] and bias:
        return np.prod(bias, dtype=np.intp)
    return 0


cdef tuple strip_leading_ones(tuple shape):
    """Return the shape without leading axes of length 1."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape


def bias_dropout_add(x, bias, residual, p=0.5, training=True, *, rng=None, mask=None, return_mask=False, out=None):
    """Return ``residual + dropout(x + bias, p)``.

    Parameters
    ----------
    x : ndarray
        The input. The same types as in `dropout` are supported.
    bias : ndarray
        An array of the same type as x, whose shape broadcasts to ``x.shape``. The function is fastest if ``bias.shape``
        equals the last dimensions of ``x.shape``.
    residual : ndarray
        An array of the same shape and type as x.
    p, training, rng, return_mask
        As in `dropout`.
    mask : Mask, optional
        As in `dropout`, except that arrays are not supported.
    out : ndarray, optional
        As in `dropout`. `out` may also be `residual`.

    Returns
    -------
    ndarray, or (ndarray, Mask) if return_mask is True

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `dropout`; also if bias or residual has another type than x, bias does not broadcast to
        the shape of x, or residual has another shape than x.

    See Also
    --------
    bias_dropout_add_backward

    Notes
    -----
    For float32 and float64, the result of each operation is rounded. For float16 and bfloat16, all operations are
    computed in float32, and only the final result is rounded to the type of x.

    One pass over memory is enough for float32 and float64 if the arrays and the mask are in C order, and ``bias.shape``
    equals the last dimensions of ``x.shape``.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> x, bias, residual = np.ones((2, 3)), np.ones(3), np.ones((2, 3))
    >>> cdropout.bias_dropout_add(x, bias, residual, p=0)
    array([[3., 3., 3.],
           [3., 3., 3.]])
    """
    cdef bint is_training = as_flag(training, "training")
    cdef bint returns_mask = as_flag(return_mask, "return_mask")
    cdef double probability = as_probability(p)
    cdef cnp.ndarray array, bias_array, residual_array
    cdef tuple shape
    cdef Mask drawn
    cdef Generator generator = None
    rng = as_rng(rng)                 # as_rng is called before the arrays are read, because methods of rng may change arrays
    array = as_array(x)
    bias_array = as_array(bias, "bias")
    residual_array = as_array(residual, "residual")
    shape = shape_of(array)
    check_operands(array, bias_array, residual_array)
    target = destination(array, False, out)
    if out is not None and (np.may_share_memory(out, bias_array) or partly_overlap(out, residual_array)):
        raise ValueError(
            "out overlaps bias or partly overlaps residual; it has to be residual itself or memory that overlaps neither"
        )
    if not is_training:
        probability = 0
    if is_training and mask is not None:
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
    except BaseException:             # for example, a signal handler raised an exception
        if generator is not None:
            generator.undo_next_id(&drawn.id)
        raise
    if not direct:
        round_to(target, result)
    return (target, drawn) if returns_mask else target


cdef round_to(cnp.ndarray y, cnp.ndarray values):
    """Write the values to y, rounded to the type of y. Values that are too large become infinite, without a warning."""
    with np.errstate(all="ignore"):
        np.copyto(y, values, casting="same_kind")


cdef cnp.ndarray round_like(cnp.ndarray values, cnp.ndarray like):
    """Return values rounded to the type of `like`."""
    if values.dtype == like.dtype:
        return values
    y = np.empty(shape_of(values), like.dtype)
    round_to(y, values)
    return y


cdef check_operands(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray residual):
    """Raise TypeError or ValueError unless bias and residual have types and shapes that fit x."""
    if bias.dtype != x.dtype:
        raise TypeError(f"bias has to be of the type of x, {x.dtype}, but got {bias.dtype}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual has to be of the type of x, {x.dtype}, but got {residual.dtype}")
    if shape_of(residual) != shape_of(x):
        raise ValueError(f"residual has to have the shape of x, {shape_of(x)}, but got {shape_of(residual)}")
    check_broadcast(shape_of(bias), shape_of(x))


cdef check_broadcast(tuple bias, tuple shape):
    """Raise ValueError unless the shape of bias broadcasts to the shape of x."""
    lengths = zip(reversed(bias), reversed(shape))
    if len(bias) > len(shape) or not all([a in (1, b) for a, b in lengths]):
        raise ValueError(f"bias has to broadcast to the shape of x, {shape}, but got {bias}")


cdef cnp.ndarray as_repeating(cnp.ndarray bias, tuple shape):
    """Return bias if bias repeats along x without gaps, otherwise a view of bias in the full shape of x."""
    return bias if repeat_length(shape, shape_of(bias)) else np.broadcast_to(bias, shape)


# ---- tiles of a matrix --------------------------------------------------------------------------


cdef size_t columns_per_tile(const Matrix* matrix) noexcept nogil:
    return min(matrix.columns, <size_t>CHUNK)


cdef size_t tiles_per_row(const Matrix* matrix) noexcept nogil:
    return (matrix.columns - 1) // columns_per_tile(matrix) + 1


cdef size_t count_sums(const Matrix* matrix) noexcept nogil:
    """Return the number of tiles per column. Each of them has its own sums in the backward pass."""
    return (matrix.rows - 1) // matrix.rows_per_tile + 1 if matrix.rows and matrix.columns else 1


cdef void choose_tiles(Matrix* matrix, bint backward) noexcept nogil:
    """Set `rows_per_tile`, which never depends on the number of threads.

    In the backward pass, a column has at most MAX_SUMS tiles, which limits the memory for the sums of the tiles.
    """
    cdef size_t most
    if matrix.rows == 0 or matrix.columns == 0:
        return
    matrix.rows_per_tile = max(<size_t>CHUNK // matrix.columns, <size_t>1)
    if backward:
        most = max(MAX_SUMS // tiles_per_row(matrix), <size_t>1)
        matrix.rows_per_tile = max(matrix.rows_per_tile, (matrix.rows - 1) // most + 1)


cdef void run_rows(const Matrix* matrix, size_t tile, size_t row, size_t rows, size_t column, size_t columns) noexcept nogil:
    """Process `columns` elements of each of `rows` rows of a tile. If there are two or more rows, they must be complete."""
    cdef size_t first = row * matrix.columns + column
    cdef size_t offset = first * matrix.itemsize
    cdef const char* bias = NULL
    if matrix.sums != NULL:
        kernels.bias_dropout_add_backward(
            matrix.dtype, matrix.x + offset, matrix.y + offset, matrix.sums + tile * matrix.columns + column, rows, columns,
            matrix.mask, matrix.start + first,
        )
        return
    if matrix.bias != NULL:
        bias = matrix.bias + column * matrix.itemsize
    kernels.bias_dropout_add(
        matrix.dtype, matrix.x + offset, bias, matrix.residual + offset, matrix.y + offset, rows, columns, matrix.mask,
        matrix.start + first,
    )


cdef void run_tile(const void* context, size_t number) noexcept nogil:
    """Execute work chunk `number`, which processes one tile."""
    cdef const Matrix* matrix = <const Matrix*>context
    cdef size_t tile = number // tiles_per_row(matrix)
    cdef size_t row = tile * matrix.rows_per_tile
    cdef size_t column = number % tiles_per_row(matrix) * columns_per_tile(matrix)
    cdef size_t rows = min(matrix.rows - row, matrix.rows_per_tile)
    cdef size_t columns = min(matrix.columns - column, columns_per_tile(matrix))
    cdef size_t i
    if columns == matrix.columns:
        run_rows(matrix, tile, row, rows, 0, columns)
        return
    for i in range(rows):
        run_rows(matrix, tile, row + i, 1, column, columns)


cdef int run_matrix(const Matrix* matrix, const Executor* executor, size_t max_threads, bint checks_signals) except -1 nogil:
    """Process a matrix after `choose_tiles`. In the backward pass, the first `columns` sums are then the sums over all rows.

    The sums are added in a fixed order, so that the result does not depend on the number of threads.
    """
    cdef size_t tile, column
    if matrix.rows == 0 or matrix.columns == 0:
        return 0
    executor.run(
        run_tile, matrix, count_sums(matrix) * tiles_per_row(matrix),
        threads_for(executor, matrix.rows * matrix.columns, max_threads), checks_signals,
    )
    if matrix.sums != NULL:
        for tile in range(1, count_sums(matrix)):
            for column in range(matrix.columns):
                matrix.sums[column] += matrix.sums[tile * matrix.columns + column]
    return 0


# ---- arrays -------------------------------------------------------------------------------------


cdef run_forward(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray residual, cnp.ndarray y, Mask mask):
    """Write the result of `bias_dropout_add` to y. All arrays must be in C order; bias must repeat along x without gaps."""
    cdef size_t n = cnp.PyArray_SIZE(x)
    cdef size_t columns = cnp.PyArray_SIZE(bias)
    cdef Matrix matrix = Matrix(
        n // columns if columns else 0, columns, 0, cnp.PyArray_ITEMSIZE(x), by_array(x).code,
        <const char*>cnp.PyArray_DATA(x), <const char*>cnp.PyArray_DATA(bias), <const char*>cnp.PyArray_DATA(residual),
        <char*>cnp.PyArray_DATA(y), NULL, &mask.id, mask.start_,
    )
    if mask.strides_ is not None:
        run_strided(x, bias, residual, y, mask)
        return
    choose_tiles(&matrix, False)
    with nogil:
        run_matrix(&matrix, pool, SIZE_MAX, True)


cdef run_strided(cnp.ndarray x, cnp.ndarray bias, cnp.ndarray residual, cnp.ndarray y, Mask mask):
    """Write the same result as `run_forward` to y, for a mask that does not have the strides of C order."""
    with np.errstate(all="ignore"):
        total = np.add(x, bias)
        mask.apply(total, total)
        np.add(residual, total, out=y)


def bias_dropout_add_backward(gy, mask, bias_shape=None):
    """Return the gradients of `bias_dropout_add` with respect to x, bias and residual.

    Parameters
    ----------
    gy : ndarray
        The gradient with respect to the output.
    mask : Mask
        The mask that ``bias_dropout_add(..., return_mask=True)`` returned.
    bias_shape : tuple of int, optional
        The shape of bias; by default, ``gy.shape[-1:]``.

    Returns
    -------
    gx, gbias, gresidual : ndarray
        The gradients, in the type of gy. gresidual is gy itself or, if gy is not an ndarray, an array that shares the
        memory of gy or, for a NumPy scalar, a read-only array.

    Raises
    ------
    TypeError, ValueError
        For the same reasons as in `dropout_backward`; also if bias_shape does not broadcast to the shape of gy.

    See Also
    --------
    bias_dropout_add

    Notes
    -----
    The sums for gbias are computed in double precision and in a fixed order, so that gbias does not depend on the number
    of threads.

    Examples
    --------
    >>> import numpy as np
    >>> import cdropout
    >>> mask = cdropout.Mask((2, 3), p=0)
    >>> gx, gbias, gresidual = cdropout.bias_dropout_add_backward(np.ones((2, 3)), mask)
    >>> gbias
    array([2., 2., 2.])
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
        axes = tuple([i for i in range(len(shape)) if is_broadcast(i, shape, bias_shape)])
        with np.errstate(all="ignore"):
            sums = np.asarray(gx.astype(np.float64).sum(axis=axes)).reshape(bias_shape)
        return round_like(gx, array), round_like(sums, array), gresidual
    source = as_kernel_input(array)
    gx = np.empty_like(source)
    sums = run_backward(source, gx, columns, given)
    return round_like(gx, array), round_like(sums.reshape(bias_shape), array), gresidual


cdef as_lengths(bias_shape):
    """Return bias_shape as a tuple of Python ints, or None if bias_shape is None."""
    if bias_shape is None:
        return None
    if not isinstance(bias_shape, (tuple, list)):
        raise TypeError(f"bias_shape has to be a tuple of int, but got {type(bias_shape).__name__}")
    return tuple([as_index(length, "each length in bias_shape") for length in bias_shape])


cdef bint is_broadcast(i, tuple shape, tuple bias):
    """Return whether bias is broadcast along axis i of x. The gradient with respect to bias is a sum over all such axes."""
    offset = i - (len(shape) - len(bias))
    return offset < 0 or (bias[offset] == 1 and shape[i] != 1)


cdef run_backward(cnp.ndarray gy, cnp.ndarray gx, size_t columns, Mask mask):
    """Write the gradient with respect to x to gx. Return the sums of gx over the rows, which have `columns` elements."""
    cdef cnp.ndarray sums
    cdef Matrix matrix = Matrix(
        cnp.PyArray_SIZE(gy) // columns, columns, 0, cnp.PyArray_ITEMSIZE(gy), by_array(gy).code,
        <const char*>cnp.PyArray_DATA(gy), NULL, NULL, <char*>cnp.PyArray_DATA(gx), NULL, &mask.id, mask.start_,
    )
    choose_tiles(&matrix, True)
    sums = np.zeros((count_sums(&matrix), columns))
    matrix.sums = <double*>cnp.PyArray_DATA(sums)
    with nogil:
        run_matrix(&matrix, pool, SIZE_MAX, True)
    return sums[0]

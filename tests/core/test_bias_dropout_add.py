"""Tests that compare bias_dropout_add and its backward function with separate operations."""

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import assert_same_bits, every_dtype, normal
from ..helpers.requirements import slow

QUICK_DTYPES = [np.float32, np.float64, np.float16, *slow(ml_dtypes.bfloat16)]
SEED = 2**64 - 5
N, T, C = 5, 9, 70
BIASES = [(C,), (T, C), (1, C), (), (1,), (T, 1), (N, 1, C), (N, T, C), (N, 1, 1), (1, T, C),
          (1, 1, 1)]  # fmt: skip
# Shapes of x and bias. The rows are shorter than, as long as or longer than a group of the stream.
ROWS = [((3000,), (3000,)), ((40, 511), (511,)), ((40, 512), (512,)), ((33, 513), (513,)),
        ((9001, 1), (1,)), ((2, 8192), (8192,)), ((2, 65_539), (65_539,)),
        ((700, 13), (700, 1)), ((1, 6), (6,)), ((1, 1), (1, 1)), ((), ()),
        ((4,), (1,))]  # fmt: skip
EMPTY = [((0,), (0,)), ((3, 0), (0,)), ((0, 4), (4,)), ((0, 4), (0, 1)), ((3, 0), (3, 1)),
         ((2, 0, 3), (1, 3)), ((0,), ())]  # fmt: skip
CASES = [*(((N, T, C), bias) for bias in BIASES), *ROWS, *EMPTY]
every_case = pytest.mark.parametrize("shape, bias_shape", CASES, ids=str)


def operands(shape, bias_shape, dtype):
    """Return x, bias and residual."""
    return normal(shape, dtype, 1), normal(bias_shape, dtype, 2), normal(shape, dtype, 3)


def assert_same(actual, expected):
    assert_same_bits(actual, expected, equal_nan=True)


def round_to(dtype, y):
    """Round y, an array of the computation dtype of `dtype`, to `dtype`."""
    if np.dtype(dtype).name in reference.HALVES:
        bits = reference.round_to_half(y.view(np.uint32), np.dtype(dtype).name)
        return bits.view(dtype).reshape(y.shape)
    return y


def separate_operations(x, bias, residual, keep, p):
    """Return residual + dropout(x + bias), computed in the computation dtype and then rounded."""
    real = reference.computation_dtype(x.dtype)
    x, bias, residual, dtype = x.astype(real), bias.astype(real), residual.astype(real), x.dtype
    with np.errstate(all="ignore"):
        y = reference.apply(np.asarray(x + bias), keep, p)
        return round_to(dtype, np.asarray(residual + y))


def reference_keep(shape, p=0.3):
    return reference.broadcast_keep(shape, p, SEED, 0)


# ---- forward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", QUICK_DTYPES)
@every_case
def test_forward_equals_separate_operations(shape, bias_shape, dtype):
    x, bias, residual = operands(shape, bias_shape, dtype)
    before = [array.copy() for array in (x, bias, residual)]
    generator = cd.Generator(SEED)
    y, mask = cd.bias_dropout_add(x, bias, residual, 0.3, rng=generator, return_mask=True)
    expected = separate_operations(x, bias, residual, reference_keep(shape), 0.3)
    assert_same(y, expected)
    assert generator.calls == (1 if x.size else 0)
    assert mask == cd.Mask(shape, 0.3, SEED if x.size else 0, 0)
    for array, copy in zip((x, bias, residual), before, strict=True):
        assert_same(array, copy)
    for out in (np.ones_like(x), residual, x):
        source, added = (array if array is out else array.copy() for array in (x, residual))
        assert cd.bias_dropout_add(source, bias, added, 0.3, rng=SEED, out=out) is out
        assert_same(out, expected)
        out[...] = before[0] if out is x else before[2]


@every_dtype
@pytest.mark.parametrize("p", [0, 5e-324, 0.1, 0.5, 0.75, 1 - 2.0**-53, 1])
@pytest.mark.parametrize("bias_shape", [(C,), (T, 1)], ids=str)
def test_nan_and_infinity_are_dropped_for_every_p(bias_shape, p, dtype):
    x, bias, residual = operands((N, T, C), bias_shape, dtype)
    x.reshape(-1)[::3] = [np.nan, np.inf, -np.inf] * (x.size // 9)
    bias.reshape(-1)[::7] = np.nan
    generator = cd.Generator(SEED)
    y, mask = cd.bias_dropout_add(x, bias, residual, p, rng=generator, return_mask=True)
    keep = reference_keep(x.shape, p)
    assert_same(y, separate_operations(x, bias, residual, keep, p))
    np.testing.assert_array_equal(y[~keep], residual[~keep])
    np.testing.assert_array_equal(np.asarray(mask), keep)
    assert generator.calls == (0 < p < 1)
    y = cd.bias_dropout_add(x, bias, residual, p, False, rng=generator)
    assert_same(y, separate_operations(x, bias, residual, np.ones(x.shape, bool), 0))
    assert generator.calls == (0 < p < 1)


@every_dtype
@pytest.mark.parametrize("p", [0.5, 1])
def test_a_dropped_element_adds_positive_zero(p, dtype):
    zeros = np.full(100, -0.0, dtype)
    y = cd.bias_dropout_add(zeros, zeros, zeros, p, rng=SEED)
    keep = reference_keep(y.shape, p)
    np.testing.assert_array_equal(np.signbit(y.astype(float)), keep)


@every_dtype
def test_overflow_gives_infinity_without_a_warning(dtype):
    x = np.full(100, ml_dtypes.finfo(dtype).max, dtype)
    y, mask = cd.bias_dropout_add(x, x, x, 0.5, rng=SEED, return_mask=True)
    np.testing.assert_array_equal(y, np.where(np.asarray(mask), dtype(np.inf), x))
    gx, gbias, _ = cd.bias_dropout_add_backward(x, mask)
    np.testing.assert_array_equal(gx, np.where(np.asarray(mask), np.inf, 0))
    np.testing.assert_array_equal(gbias, gx)


def test_an_overflow_in_the_gradient_of_bias_gives_infinity_without_a_warning():
    gy = np.full((4, 3), 3e38, np.float32)
    gbias = cd.bias_dropout_add_backward(gy, cd.Mask((4, 3), 0))[1]
    np.testing.assert_array_equal(gbias, np.full(3, np.inf, np.float32))


def test_an_undefined_gradient_of_bias_is_nan_without_a_warning():
    gy = np.array([[np.inf], [-np.inf]], np.float32)
    assert np.isnan(cd.bias_dropout_add_backward(gy, cd.Mask((2, 1), 0), (1,))[1])
    assert np.isnan(cd.bias_dropout_add_backward(gy, cd.Mask((2, 1), 0), ())[1])


def strided(array):
    """Return a copy with negative strides and with gaps between the elements."""
    view = np.zeros((*array.shape, 2), array.dtype)[..., 1]
    view = view[(..., *[slice(None, None, -1)] * array.ndim)]
    view[...] = array
    return view


@every_dtype
@pytest.mark.parametrize("bias_shape", [(C,), (T, C), (T, 1), (N, T, C)], ids=str)
def test_bias_dropout_add_gives_the_same_result_for_every_layout(bias_shape, dtype):
    operand = operands((N, T, C), bias_shape, dtype)
    expected = separate_operations(*operand, reference_keep((N, T, C)), 0.3)
    layouts = [np.asfortranarray, strided, lambda array: array]
    for i in range(3):
        x, bias, residual = (layouts[(i + j) % 3](array) for j, array in enumerate(operand))
        assert_same(cd.bias_dropout_add(x, bias, residual, 0.3, rng=SEED), expected)
        for out in (layouts[i](np.ones_like(x)), layouts[i - 1](x.copy())):
            source = out if (out == x).all() else x
            assert cd.bias_dropout_add(source, bias, residual, 0.3, rng=SEED, out=out) is out
            assert_same(out, expected)
    x, bias, residual = operand
    for array in operand:
        array.flags.writeable = False
    assert_same(
        cd.bias_dropout_add(x, np.broadcast_to(bias, x.shape), residual, 0.3, rng=SEED), expected
    )


def test_bias_dropout_add_accepts_memoryviews():
    x, bias, residual = operands((N, C), (C,), np.float32)
    expected = cd.bias_dropout_add(x, bias, residual, 0.3, rng=SEED)
    y = cd.bias_dropout_add(memoryview(x), memoryview(bias), memoryview(residual), 0.3, rng=SEED)
    assert_same(y, expected)


# ---- errors -----------------------------------------------------------------------------------

X = normal((4, 6), np.float32, 1)
ROW = X[0].copy()
SWAPPED = X.dtype.newbyteorder().str  # ">f4" on little-endian machines
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False
MEMORY = np.zeros((3, 4, 6), np.float32)
OVERLAPPING = MEMORY.reshape(-1)[6:30].reshape(4, 6)

ERRORS = [
    ({"x": [1.0]}, TypeError, "x has to be a NumPy array, .* but got list"),
    ({"x": X.astype(int)}, TypeError, "x has to be an array of .* but got int64"),
    ({"x": X.astype(SWAPPED)}, TypeError, "x has .* this machine's byte order, but got " + SWAPPED),
    ({"x": np.ma.array(X)}, TypeError, "x is a masked array"),
    ({"bias": ROW.astype(float)}, TypeError, "bias .* type of x, float32, but got float64"),
    ({"bias": ROW.astype(SWAPPED)}, TypeError, "bias .* byte order, but got " + SWAPPED),
    ({"bias": None}, TypeError, "bias has to be a NumPy array, .* but got NoneType"),
    ({"bias": np.ma.array(ROW)}, TypeError, "bias is a masked array"),
    ({"residual": np.ma.array(X)}, TypeError, "residual is a masked array"),
    ({"residual": X.astype(int)}, TypeError, "residual has to be an array of .* but got int64"),
    ({"residual": X.astype(float)}, TypeError, "residual .* of x, float32, but got float64"),
    ({"residual": 5}, TypeError, "residual has to be a NumPy array, .* but got int"),
    ({"residual": ROW}, ValueError, r"residual .* shape of x, \(4, 6\), but got \(6,\)"),
    ({"residual": X[None]}, ValueError, r"residual .* \(4, 6\), but got \(1, 4, 6\)"),
    ({"bias": ROW[:5]}, ValueError, r"bias .* shape of x, \(4, 6\), but got \(5,\)"),
    ({"bias": X.T.copy()}, ValueError, r"bias .* of x, \(4, 6\), but got \(6, 4\)"),
    ({"bias": X[:, 0]}, ValueError, r"bias .* of x, \(4, 6\), but got \(4,\)"),
    ({"bias": ROW[:0]}, ValueError, r"bias .* of x, \(4, 6\), but got \(0,\)"),
    ({"bias": X[None]}, ValueError, r"bias .* of x, \(4, 6\), but got \(1, 4, 6\)"),
    ({"p": 1.01}, ValueError, "between 0 and 1, but got 1.01"),
    ({"p": float("nan")}, ValueError, "between 0 and 1, but got nan"),
    ({"p": None}, TypeError, "p has to be a number between 0 and 1, but got NoneType"),
    ({"rng": 0.5}, TypeError, "rng has to be .* but got float"),
    ({"rng": 2**64}, ValueError, r"seed has to be in \[-2\*\*63, 2\*\*64\), but got"),
    ({"rng": "a", "training": False}, TypeError, "rng has to be .* but got str"),
    ({"out": [0.0]}, TypeError, "out has to be a NumPy array, but got list"),
    ({"out": X[:2].copy()}, ValueError, r"out .* shape of x, \(4, 6\), but got \(2, 6\)"),
    ({"out": X.astype(float)}, ValueError, "out .* byte order of x, .f4, but got .f8"),
    ({"out": READ_ONLY}, ValueError, "out is read-only"),
    ({"x": MEMORY[0], "out": OVERLAPPING}, ValueError, "out partly overlaps x"),
    (
        {"residual": MEMORY[0], "out": OVERLAPPING},
        ValueError,
        "^out overlaps bias or partly "
        "overlaps residual; it has to be residual itself or memory that overlaps neither$",
    ),
    ({"bias": MEMORY[0, 0], "out": MEMORY[0]}, ValueError, "out overlaps bias"),
    ({"bias": MEMORY[0], "out": MEMORY[0]}, ValueError, "out overlaps bias"),
]


@pytest.mark.parametrize("wrong, error, pattern", ERRORS, ids=lambda value: str(value)[:40])
def test_forward_raises_for_wrong_arguments(wrong, error, pattern):
    generator, before = cd.Generator(1), X.tobytes()
    arguments = {"x": X, "bias": ROW, "residual": X, "p": 0.5, "rng": generator, **wrong}
    out = arguments.get("out")
    out_before = bytes(out) if isinstance(out, np.ndarray) else out
    with pytest.raises(error, match=pattern):
        cd.bias_dropout_add(**arguments)
    assert generator.calls == 0 and X.tobytes() == before and not MEMORY.any()
    assert out is None or out_before == (bytes(out) if isinstance(out, np.ndarray) else [0.0])


MASK = cd.Mask((4, 6), 0.5, 1)


@pytest.mark.parametrize(
    "args, error, pattern",
    [
        ((X, np.ones(X.shape, bool)), TypeError, "mask has to be a Mask, but got ndarray"),
        ((X, None), TypeError, "mask has to be a Mask, but got NoneType"),
        ((X[:3], MASK), ValueError, r"the mask has the shape \(4, 6\), but x has \(3, 6\)"),
        ((X.astype(int), MASK), TypeError, "but got int64"),
        (([1.0], MASK), TypeError, "but got list"),
        ((X, MASK, (4,)), ValueError, r"bias .* of x, \(4, 6\), but got \(4,\)"),
        ((X, MASK, (1, 4, 6)), ValueError, r"bias .* of x, \(4, 6\), but got \(1, 4, 6\)"),
        ((X, MASK, (-1,)), ValueError, r"bias .* of x, \(4, 6\), but got \(-1,\)"),
        ((X, MASK, 6), TypeError, "^bias_shape has to be a tuple of int, but got int$"),
    ],
)
def test_backward_raises_for_wrong_arguments(args, error, pattern):
    with pytest.raises(error, match=pattern):
        cd.bias_dropout_add_backward(*args)


# ---- backward ---------------------------------------------------------------------------------


def sum_to_shape(gradient, bias_shape):
    """Return the sum of a gradient, in float64, over the axes along which bias is broadcast."""
    gradient = gradient.astype(np.float64)
    lead = gradient.ndim - len(bias_shape)
    total = gradient.sum(axis=tuple(range(lead)))
    axes = tuple(i for i, length in enumerate(bias_shape) if length == 1)
    return total.sum(axis=axes, keepdims=True).reshape(bias_shape)


@pytest.mark.parametrize("dtype", QUICK_DTYPES)
@every_case
@pytest.mark.parametrize("p", [0.3, 1, *slow(0)])
def test_backward_equals_the_reference(shape, bias_shape, p, dtype):
    gy, mask = normal(shape, dtype, 4), cd.Mask(shape, p, SEED)
    before = gy.copy()
    gx, gbias, gresidual = cd.bias_dropout_add_backward(gy, mask, bias_shape)
    assert gresidual is gy
    assert_same(gy, before)
    assert_same(gx, reference.apply(gy, reference_keep(shape, p), p))
    assert (gbias.dtype, gbias.shape) == (gy.dtype, bias_shape)
    exact = sum_to_shape(reference.apply(gy, reference_keep(shape, p), p), bias_shape)
    magnitude = sum_to_shape(abs(gx.astype(np.float64)), bias_shape)
    # gbias is summed in double, in any order, and then rounded. For half types, the terms of the
    # sum may be rounded too.
    eps = float(ml_dtypes.finfo(dtype).eps)
    sum_error = gy.size * 2.0**-53 + (eps if gy.itemsize == 2 else 0)
    assert (abs(gbias.astype(np.float64) - exact) <= eps * abs(exact) + sum_error * magnitude).all()
    repeated = cd.bias_dropout_add_backward(gy, mask, bias_shape)
    assert_same(repeated[0], gx)
    assert_same(repeated[1], gbias)
    for layout in (strided, lambda array: array.copy(order="F")):
        strided_gx, strided_gbias, _ = cd.bias_dropout_add_backward(layout(gy), mask, bias_shape)
        assert_same(strided_gx, gx)
        difference = strided_gbias.astype(np.float64) - gbias.astype(np.float64)
        assert (abs(difference) <= eps * abs(exact) + sum_error * magnitude).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_bias_is_summed_in_double(dtype):
    rows, p = 20000, 0.5
    gy = normal((rows, 3), dtype, 5) + dtype(1000)
    gx, gbias, _ = cd.bias_dropout_add_backward(gy, cd.Mask(gy.shape, p, SEED))
    exact = sum_to_shape(reference.apply(gy, reference_keep(gy.shape, p), p), (3,))
    np.testing.assert_allclose(gbias, exact, rtol=1.01 * np.finfo(dtype).eps + rows * 2.0**-53)


@every_dtype
def test_bias_shape_in_backward_defaults_to_the_last_axis(dtype):
    gy, mask = normal((N, T, C), dtype, 4), cd.Mask((N, T, C), 0.3, SEED)
    row = cd.bias_dropout_add_backward(gy, mask)[1]
    assert row.shape == (C,)
    assert_same(cd.bias_dropout_add_backward(gy, mask, [C])[1], row)
    assert_same(cd.bias_dropout_add_backward(gy, mask, (1, 1, C))[1].reshape(C), row)


def test_the_gradient_of_a_zero_dimensional_bias_is_an_array():
    for shape in ((), (3, 4)):
        gy = np.ones(shape, np.float32)
        assert isinstance(cd.bias_dropout_add_backward(gy, cd.Mask(shape, 0.3), ())[1], np.ndarray)


def test_backward_accepts_windows_and_masks_with_broadcast_axes():
    whole, gy = cd.Mask((50, 40), 0.3, SEED), normal((20, 40), np.float64, 4)
    broadcast = cd.drop_path(gy, 0.3, rng=SEED, return_mask=True)[1]
    for mask in (whole[17:37], whole[40:20:-1], whole[20:40, ::-1], broadcast):
        gx, gbias, _ = cd.bias_dropout_add_backward(gy, mask)
        assert_same(gx, mask.apply(gy))
        np.testing.assert_allclose(gbias, gx.sum(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias_shape", [(C,), (T, 1), (T, C)], ids=str)
def test_gradients_equal_finite_differences(bias_shape):
    """For one mask, compare directional derivatives of sum(w * y**2) with central differences."""
    operand = operands((T, C), bias_shape, np.float64)
    weight = normal((T, C), np.float64, 6)

    def loss(arrays):
        return (weight * cd.bias_dropout_add(*arrays, 0.3, rng=SEED) ** 2).sum()

    y, mask = cd.bias_dropout_add(*operand, 0.3, rng=SEED, return_mask=True)
    gradients = cd.bias_dropout_add_backward(2 * weight * y, mask, bias_shape)
    for i, gradient in enumerate(gradients):
        direction = normal(operand[i].shape, np.float64, 7 + i)
        plus, minus = list(operand), list(operand)
        plus[i], minus[i] = operand[i] + direction, operand[i] - direction
        # The loss is a quadratic function, for which the central difference is exact for any step.
        slope = (loss(plus) - loss(minus)) / 2
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-9, abs=1e-9)

"""bias_dropout_add and its backward, against the same three operations one by one."""

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.requirements import slow

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
every_type = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
SEED = 2**64 - 5
N, T, C = 5, 9, 70
BIASES = [(C,), (T, C), (1, C), (), (1,), (T, 1), (N, 1, C), (N, T, C), (N, 1, 1), (1, T, C),
          (1, 1, 1)]  # fmt: skip
# The shapes of x and of bias: a row that is shorter, longer and as long as the stream's groups;
# one that is cut into pieces
LONG = [((3000,), (3000,)), ((40, 511), (511,)), ((40, 512), (512,)), ((33, 513), (513,)),
        ((9001, 1), (1,)), ((2, 8192), (8192,)), ((2, 65_539), (65_539,)),
        ((700, 13), (700, 1)), ((1, 6), (6,)), ((1, 1), (1, 1)), ((), ()),
        ((4,), (1,))]  # fmt: skip
EMPTY = [((0,), (0,)), ((3, 0), (0,)), ((0, 4), (4,)), ((0, 4), (0, 1)), ((3, 0), (3, 1)),
         ((2, 0, 3), (1, 3)), ((0,), ())]  # fmt: skip
CASES = [*(((N, T, C), bias) for bias in BIASES), *LONG, *EMPTY]
every_case = pytest.mark.parametrize("shape, bias_shape", CASES, ids=str)


def numbers(seed, shape, dtype):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def operands(shape, bias_shape, dtype):
    return numbers(1, shape, dtype), numbers(2, bias_shape, dtype), numbers(3, shape, dtype)


def same(y, want):
    """Both are of one type and shape, with the same bits; any NaN is like any other."""
    assert (y.dtype, y.shape) == (want.dtype, want.shape)
    a, b = [array.copy(order="C").reshape(-1) for array in (y, want)]
    with np.errstate(invalid="ignore"):  # a signalling NaN
        a[a != a], b[b != b] = np.nan, np.nan
    assert a.tobytes() == b.tobytes()


def rounded(y, dtype):
    """Return float32 or float64 numbers as dtype, rounded once."""
    if np.dtype(dtype).name in reference.HALVES:
        bits = reference.round_to_half(y.view(np.uint32), np.dtype(dtype).name)
        return bits.view(dtype).reshape(y.shape)
    return y


def one_by_one(x, bias, residual, keep, p):
    """Return residual + dropout(x + bias), each operation in the type that x is computed in."""
    real = reference.computation_dtype(x.dtype)
    x, bias, residual, dtype = x.astype(real), bias.astype(real), residual.astype(real), x.dtype
    with np.errstate(all="ignore"):
        dropped = reference.apply(np.asarray(x + bias), keep, p)
        return rounded(np.asarray(residual + dropped), dtype)


def kept(shape, p=0.3):
    return reference.broadcast_keep(shape, p, SEED, 0)


# ---- forward ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*DTYPES[:3], *slow(DTYPES[3])], ids=lambda dtype: dtype.__name__)
@every_case
def test_forward(shape, bias_shape, dtype):
    x, bias, residual = operands(shape, bias_shape, dtype)
    before = [array.copy() for array in (x, bias, residual)]
    generator = cd.Generator(SEED)
    y, mask = cd.bias_dropout_add(x, bias, residual, 0.3, rng=generator, return_mask=True)
    want = one_by_one(x, bias, residual, kept(shape), 0.3)
    same(y, want)
    assert generator.calls == (1 if x.size else 0)
    assert mask == cd.Mask(shape, 0.3, SEED if x.size else 0, 0)
    for array, copy in zip((x, bias, residual), before, strict=True):
        same(array, copy)
    for out in (np.ones_like(x), residual, x):
        source, added = (array if array is out else array.copy() for array in (x, residual))
        assert cd.bias_dropout_add(source, bias, added, 0.3, rng=SEED, out=out) is out
        same(out, want)
        out[...] = before[0] if out is x else before[2]


@every_type
@pytest.mark.parametrize("p", [0, 5e-324, 0.1, 0.5, 0.75, 1 - 2.0**-53, 1])
@pytest.mark.parametrize("bias_shape", [(C,), (T, 1)], ids=str)
def test_every_p_and_what_must_not_leak(bias_shape, p, dtype):
    x, bias, residual = operands((N, T, C), bias_shape, dtype)
    x.reshape(-1)[::3] = [np.nan, np.inf, -np.inf] * (x.size // 9)
    bias.reshape(-1)[::7] = np.nan
    generator = cd.Generator(SEED)
    y, mask = cd.bias_dropout_add(x, bias, residual, p, rng=generator, return_mask=True)
    keep = kept(x.shape, p)
    same(y, one_by_one(x, bias, residual, keep, p))
    np.testing.assert_array_equal(y[~keep], residual[~keep])
    np.testing.assert_array_equal(np.asarray(mask), keep)
    assert generator.calls == (0 < p < 1)
    y = cd.bias_dropout_add(x, bias, residual, p, False, rng=generator)
    same(y, one_by_one(x, bias, residual, np.ones(x.shape, bool), 0))
    assert generator.calls == (0 < p < 1)


@every_type
@pytest.mark.parametrize("p", [0.5, 1])
def test_a_dropped_element_adds_plus_zero(p, dtype):
    zeros = np.full(100, -0.0, dtype)
    y = cd.bias_dropout_add(zeros, zeros, zeros, p, rng=SEED)
    keep = kept(y.shape, p)
    np.testing.assert_array_equal(np.signbit(y.astype(float)), keep)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_overflow_is_infinity_and_no_warning(dtype):
    x = np.full(100, np.finfo(dtype).max, dtype)
    y, mask = cd.bias_dropout_add(x, x, x, 0.5, rng=SEED, return_mask=True)
    np.testing.assert_array_equal(y, np.where(np.asarray(mask), np.inf, x))
    gx, gbias, _ = cd.bias_dropout_add_backward(x, mask)
    np.testing.assert_array_equal(gx, np.where(np.asarray(mask), np.inf, 0))
    np.testing.assert_array_equal(gbias, gx)


def test_a_gradient_of_bias_that_overflows_is_infinity_and_no_warning():
    gy = np.full((4, 3), 3e38, np.float32)
    gbias = cd.bias_dropout_add_backward(gy, cd.Mask((4, 3), 0))[1]
    np.testing.assert_array_equal(gbias, np.full(3, np.inf, np.float32))


def test_a_gradient_of_bias_that_is_undefined_is_nan_and_no_warning():
    gy = np.array([[np.inf], [-np.inf]], np.float32)
    assert np.isnan(cd.bias_dropout_add_backward(gy, cd.Mask((2, 1), 0), (1,))[1])
    assert np.isnan(cd.bias_dropout_add_backward(gy, cd.Mask((2, 1), 0), ())[1])


def strided(array):
    """The same numbers at negative, wide strides."""
    wide = np.zeros((*array.shape, 2), array.dtype)[..., 1]
    wide = wide[(..., *[slice(None, None, -1)] * array.ndim)]
    wide[...] = array
    return wide


@every_type
@pytest.mark.parametrize("bias_shape", [(C,), (T, C), (T, 1), (N, T, C)], ids=str)
def test_any_memory(bias_shape, dtype):
    operand = operands((N, T, C), bias_shape, dtype)
    want = one_by_one(*operand, kept((N, T, C)), 0.3)
    layouts = [np.asfortranarray, strided, lambda array: array]
    for i in range(3):
        x, bias, residual = (layouts[(i + j) % 3](array) for j, array in enumerate(operand))
        same(cd.bias_dropout_add(x, bias, residual, 0.3, rng=SEED), want)
        for out in (layouts[i](np.ones_like(x)), layouts[i - 1](x.copy())):
            source = out if (out == x).all() else x
            assert cd.bias_dropout_add(source, bias, residual, 0.3, rng=SEED, out=out) is out
            same(out, want)
    x, bias, residual = operand
    for array in operand:
        array.flags.writeable = False
    same(cd.bias_dropout_add(x, np.broadcast_to(bias, x.shape), residual, 0.3, rng=SEED), want)


def test_numpy_exporters_are_read():
    x, bias, residual = operands((N, C), (C,), np.float32)
    want = cd.bias_dropout_add(x, bias, residual, 0.3, rng=SEED)
    y = cd.bias_dropout_add(memoryview(x), memoryview(bias), memoryview(residual), 0.3, rng=SEED)
    same(y, want)


# ---- errors -----------------------------------------------------------------------------------

X = numbers(1, (4, 6), np.float32)
ROW = X[0].copy()
SWAPPED = X.dtype.newbyteorder().str  # ">f4", on a big-endian machine "<f4"
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False
TWICE = np.zeros((3, 4, 6), np.float32)  # room for operands that overlap
HALF_OVER = TWICE.reshape(-1)[6:30].reshape(4, 6)

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
    ({"x": TWICE[0], "out": HALF_OVER}, ValueError, "out partly overlaps x"),
    ({"residual": TWICE[0], "out": HALF_OVER}, ValueError, "partly overlaps residual"),
    ({"bias": TWICE[0, 0], "out": TWICE[0]}, ValueError, "out overlaps bias"),
    ({"bias": TWICE[0], "out": TWICE[0]}, ValueError, "out overlaps bias"),
]


@pytest.mark.parametrize("given, error, words", ERRORS, ids=lambda value: str(value)[:40])
def test_errors(given, error, words):
    generator, before = cd.Generator(1), X.tobytes()
    given = {"x": X, "bias": ROW, "residual": X, "p": 0.5, "rng": generator, **given}
    out = given.get("out")
    held = bytes(out) if isinstance(out, np.ndarray) else out
    with pytest.raises(error, match=words):
        cd.bias_dropout_add(**given)
    assert generator.calls == 0 and X.tobytes() == before and not TWICE.any()
    assert out is None or held == (bytes(out) if isinstance(out, np.ndarray) else [0.0])


MASK = cd.Mask((4, 6), 0.5, 1)


@pytest.mark.parametrize(
    "args, error, words",
    [
        ((X, np.ones(X.shape, bool)), TypeError, "mask has to be a Mask, but got ndarray"),
        ((X, None), TypeError, "mask has to be a Mask, but got NoneType"),
        ((X[:3], MASK), ValueError, r"the mask has the shape \(4, 6\), but x has \(3, 6\)"),
        ((X.astype(int), MASK), TypeError, "but got int64"),
        (([1.0], MASK), TypeError, "but got list"),
        ((X, MASK, (4,)), ValueError, r"bias .* of x, \(4, 6\), but got \(4,\)"),
        ((X, MASK, (1, 4, 6)), ValueError, r"bias .* of x, \(4, 6\), but got \(1, 4, 6\)"),
        ((X, MASK, (-1,)), ValueError, r"bias .* of x, \(4, 6\), but got \(-1,\)"),
        ((X, MASK, 6), TypeError, "int"),
    ],
)
def test_errors_of_backward(args, error, words):
    with pytest.raises(error, match=words):
        cd.bias_dropout_add_backward(*args)


# ---- backward ---------------------------------------------------------------------------------


def summed(gradient, bias_shape):
    """Return the gradient of a bias of this shape, in double: the sum where it is repeated."""
    gradient = gradient.astype(np.float64)
    lead = gradient.ndim - len(bias_shape)
    total = gradient.sum(axis=tuple(range(lead)))
    axes = tuple(i for i, length in enumerate(bias_shape) if length == 1)
    return total.sum(axis=axes, keepdims=True).reshape(bias_shape)


@pytest.mark.parametrize("dtype", [*DTYPES[:3], *slow(DTYPES[3])], ids=lambda dtype: dtype.__name__)
@every_case
@pytest.mark.parametrize("p", [0.3, 1, *slow(0)])
def test_backward(shape, bias_shape, p, dtype):
    gy, mask = numbers(4, shape, dtype), cd.Mask(shape, p, SEED)
    before = gy.copy()
    gx, gbias, gresidual = cd.bias_dropout_add_backward(gy, mask, bias_shape)
    assert gresidual is gy
    same(gy, before)
    same(gx, reference.apply(gy, kept(shape, p), p))
    assert (gbias.dtype, gbias.shape) == (gy.dtype, bias_shape)
    exact = summed(reference.apply(gy, kept(shape, p), p), bias_shape)
    size = summed(abs(gx.astype(np.float64)), bias_shape)
    # rounded once; summed in double in any order; of half types, before or after their rounding
    eps = float(ml_dtypes.finfo(dtype).eps)
    order = gy.size * 2.0**-53 + (eps if gy.itemsize == 2 else 0)
    assert (abs(gbias.astype(np.float64) - exact) <= eps * abs(exact) + order * size).all()
    again = cd.bias_dropout_add_backward(gy, mask, bias_shape)
    same(again[0], gx)
    same(again[1], gbias)
    for layout in (strided, lambda array: array.copy(order="F")):
        moved = cd.bias_dropout_add_backward(layout(gy), mask, bias_shape)
        same(moved[0], gx)
        near = order * size + eps * abs(exact)  # of sums in another order
        assert (abs(moved[1].astype(np.float64) - gbias.astype(np.float64)) <= near).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_bias_is_summed_in_double(dtype):
    rows, p = 20000, 0.5
    gy = numbers(5, (rows, 3), dtype) + dtype(1000)
    gx, gbias, _ = cd.bias_dropout_add_backward(gy, cd.Mask(gy.shape, p, SEED))
    exact = summed(reference.apply(gy, kept(gy.shape, p), p), (3,))
    np.testing.assert_allclose(gbias, exact, rtol=1.01 * np.finfo(dtype).eps + rows * 2.0**-53)


@every_type
def test_the_gradient_of_bias_is_by_default_that_of_the_last_axis(dtype):
    gy, mask = numbers(4, (N, T, C), dtype), cd.Mask((N, T, C), 0.3, SEED)
    row = cd.bias_dropout_add_backward(gy, mask)[1]
    assert row.shape == (C,)
    same(cd.bias_dropout_add_backward(gy, mask, [C])[1], row)
    same(cd.bias_dropout_add_backward(gy, mask, (1, 1, C))[1].reshape(C), row)


def test_the_gradient_of_a_bias_of_no_dimensions_is_an_array():
    for shape in ((), (3, 4)):
        gy = np.ones(shape, np.float32)
        assert isinstance(cd.bias_dropout_add_backward(gy, cd.Mask(shape, 0.3), ())[1], np.ndarray)


def test_windows_and_shared_draws_have_gradients_too():
    whole, gy = cd.Mask((50, 40), 0.3, SEED), numbers(4, (20, 40), np.float64)
    shared = cd.drop_path(gy, 0.3, rng=SEED, return_mask=True)[1]
    for mask in (whole[17:37], whole[40:20:-1], whole[20:40, ::-1], shared):
        gx, gbias, _ = cd.bias_dropout_add_backward(gy, mask)
        same(gx, mask.apply(gy))
        np.testing.assert_allclose(gbias, gx.sum(axis=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias_shape", [(C,), (T, 1), (T, C)], ids=str)
def test_finite_differences(bias_shape):
    """The gradient of sum(w * y**2) along a random direction, with the mask held fixed."""
    operand = operands((T, C), bias_shape, np.float64)
    weight = numbers(6, (T, C), np.float64)

    def loss(arrays):
        return (weight * cd.bias_dropout_add(*arrays, 0.3, rng=SEED) ** 2).sum()

    y, mask = cd.bias_dropout_add(*operand, 0.3, rng=SEED, return_mask=True)
    gradients = cd.bias_dropout_add_backward(2 * weight * y, mask, bias_shape)
    for i, gradient in enumerate(gradients):
        direction = numbers(7 + i, operand[i].shape, np.float64)
        ahead, behind = list(operand), list(operand)
        ahead[i], behind[i] = operand[i] + direction, operand[i] - direction
        # of a quadratic, the difference of two values is the slope itself
        slope = (loss(ahead) - loss(behind)) / 2
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-9, abs=1e-9)

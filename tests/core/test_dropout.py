"""Tests that dropout and dropout_backward equal the reference implementation."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import assert_same_bits, every_dtype, pack, with_special_values
from ..helpers.requirements import slow

MAX_NDIM = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (64,), (513,), (8193,), (5, 11), (3, 4, 5), (70, 129),
          (2, 3, 4, 5), (2, 1, 3, 4, 5), (1,) * MAX_NDIM, (1,) * 20 + (3,) * 5]  # fmt: skip
PROBABILITIES = [
    0.5,
    0.25,
    0.75,
    2.0**-12,
    0.1,
    1 / 3,
    0.9,
    5e-324,
    2.0**-64,
    2.0**-53,
    1 - 2.0**-53,
]
SIGMAS = 5.6  # a correct implementation fails with a probability of 2e-8
SEED = 0x9D2C5680EFC60001


def bits_of(array):
    """Return the elements, in C order, reinterpreted as unsigned integers."""
    return np.asarray(array).ravel(order="C").view(f"u{array.dtype.itemsize}")


def assert_equal(actual, expected):
    """Assert that two arrays have the same bits; all NaNs are considered equal."""
    assert type(actual) is np.ndarray
    assert_same_bits(actual, expected, equal_nan=True)


# ---- values -----------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout_equals_reference(shape, dtype):
    x = with_special_values(shape, dtype)
    before = bits_of(x).copy()
    for i, p in enumerate([*PROBABILITIES, 1.0]):
        assert_equal(cd.dropout(x, p, rng=SEED + i), reference.dropout(x, p, SEED + i, 0))
    np.testing.assert_array_equal(bits_of(x), before)


@every_dtype
@pytest.mark.parametrize("p", [0.1, *slow(0.5)])
def test_dropout_of_any_length_equals_reference(p, dtype):
    x = with_special_values((1100,), dtype)
    for n in [*range(140), *range(500, 530), 1023, 1024, 1025, 1100]:
        y, mask = cd.dropout(x[:n], p, rng=n, return_mask=True)
        assert_equal(y, reference.dropout(x[:n], p, n, 0))
        assert_equal(cd.dropout_backward(y, mask), reference.dropout_backward(y, p, n, 0))


@every_dtype
def test_dropout_accepts_numpy_numbers_as_p(dtype):
    x = with_special_values((100,), dtype)
    expected = reference.dropout(x, 0.25, SEED, 0)
    for p in (np.float64(0.25), np.float32(0.25), np.array(0.25), np.float16(0.25)):
        assert_equal(cd.dropout(x, p, rng=SEED), expected)
    assert not cd.dropout(x, np.int64(1), rng=SEED).view(f"u{x.itemsize}").any()
    assert_equal(cd.dropout(x, np.float32(0.1), rng=3), reference.dropout(x, np.float32(0.1), 3, 0))


def test_dropout_accepts_a_bfloat16_as_p():
    x = with_special_values((100,), np.float32)
    p = ml_dtypes.bfloat16(0.25)
    assert_equal(cd.dropout(x, p, rng=SEED), reference.dropout(x, 0.25, SEED, 0))


@every_dtype
def test_dropped_elements_are_positive_zeros(dtype):
    for value in (math.nan, math.inf, -math.inf, -1.0, -0.0):
        x = np.full((1000,), value, dtype)
        dropped = ~reference.keep(SEED, 0, 0.5, 0, 1000)
        y, mask = cd.dropout(x, 0.5, rng=SEED, return_mask=True)
        for result in (y, cd.dropout_backward(x, mask), cd.dropout(x, 0.5, mask=mask.bits())):
            assert not bits_of(result)[dropped].any()
            assert bits_of(result)[~dropped].all()


@every_dtype
def test_dropout_with_p_1_gives_positive_zeros(dtype):
    x = with_special_values((200, 200), dtype)
    keep_all = np.ones(x.shape, bool)
    results = [
        cd.dropout(x, 1, rng=SEED),
        cd.dropout(x.T, 1.0),
        cd.dropout(x, 1, broadcast_dims=0),
        cd.Mask(x.shape, 1).apply(x),
        cd.dropout(x, 1, mask=keep_all),
        cd.dropout(x, 1, mask=np.packbits(keep_all)),
    ]
    for y in results:
        assert y.shape == x.shape and not bits_of(y).any()


@every_dtype
def test_dropout_preserves_subnormals_and_ignores_overflow(dtype):
    largest = ml_dtypes.finfo(dtype).max
    tiny = np.array([3], f"u{np.dtype(dtype).itemsize}").view(dtype)[0]
    x = np.array([largest, -largest, tiny, -tiny] * 100, dtype)
    expected = reference.dropout(x, 0.5, SEED, 0)
    mask = cd.Mask(x.shape, 0.5, SEED)
    with np.errstate(all="raise"):
        assert_equal(mask.apply(x), expected)
        for form in (mask, mask.bits(), np.asarray(mask), mask.to_scale(dtype)):
            assert_equal(cd.dropout(x, 0.5, mask=form), expected)
            assert_equal(cd.dropout_backward(x, form, p=0.5), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 2.0**-10])
def test_rate_of_dropped_elements_is_p(p):
    n = 1_000_000
    dropped = np.count_nonzero(cd.dropout(np.ones(n, np.float32), p, rng=77) == 0)
    assert abs(dropped - n * p) < SIGMAS * math.sqrt(n * p * (1 - p))


# ---- calls without a draw ---------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("kwargs", [{"p": 0}, {"training": False}, {"p": 1, "training": False}])
def test_evaluation_returns_x_or_copies_x_to_out(kwargs, dtype):
    x = with_special_values((3, 50), dtype)
    assert cd.dropout(x, **kwargs) is x
    assert cd.dropout(x, **kwargs, inplace=True) is x
    y, mask = cd.dropout(x, **kwargs, return_mask=True)
    assert y is x and np.asarray(mask).all() and mask.p == 0
    assert_equal(cd.dropout_backward(x, mask), x)
    out = np.ones_like(x)
    assert cd.dropout(x, **kwargs, out=out) is out
    assert_equal(out, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_copy_to_out_preserves_the_bits_of_signalling_nans(dtype):
    x = (np.full(100, math.inf, dtype).view(f"u{np.dtype(dtype).itemsize}") | 1).view(dtype)
    out = np.zeros_like(x)
    cd.dropout(x, 0, out=out)
    np.testing.assert_array_equal(bits_of(out), bits_of(x))


@pytest.mark.parametrize("source", [cd.Generator, np.random.default_rng])
def test_calls_without_a_draw_do_not_change_rng(source):
    rng, unused, x = source(3), source(3), np.ones((4, 5), np.float32)
    for kwargs in [
        {"p": 0},
        {"p": 1},
        {"p": 0, "out": np.ones_like(x)},
        {"training": False},
        {"training": False, "out": np.ones_like(x)},
    ]:
        cd.dropout(x, rng=rng, **kwargs)
    for shape in [(0,), (3, 0)]:
        assert cd.dropout(np.ones(shape), 0.5, rng=rng).shape == shape
    assert repr(state(rng)) == repr(state(unused))
    cd.dropout(x, 5e-324, rng=rng)
    assert repr(state(rng)) != repr(state(unused))


def state(rng):
    return rng.state if isinstance(rng, cd.Generator) else rng.bit_generator.state


# ---- rng --------------------------------------------------------------------------------------


def test_generator_as_rng_gives_consecutive_masks():
    generator = cd.Generator(-5)
    x = with_special_values((600,), np.float32)
    for call in range(5):
        y, mask = cd.dropout(x, 0.3, rng=generator, return_mask=True)
        assert mask == cd.Mask(x.shape, 0.3, -5, call) and generator.calls == call + 1
        assert_equal(y, reference.dropout(x, 0.3, -5, call))


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, -1, -(2**63), np.int64(-3), np.uint8(9)])
def test_int_as_rng_gives_the_same_mask_in_each_call(seed):
    x = with_special_values((600,), np.float64)
    expected = reference.dropout(x, 0.3, seed, 0)
    for _ in range(2):
        assert_equal(cd.dropout(x, 0.3, rng=seed), expected)


def test_default_generator_is_used_without_rng():
    x = with_special_values((600,), np.float32)
    assert cd.manual_seed(11) is cd.default_generator
    for call in range(3):
        assert_equal(cd.dropout(x, 0.3), reference.dropout(x, 0.3, 11, call))
    cd.manual_seed(-11)
    _, mask = cd.dropout(x, 0.3, return_mask=True)
    assert mask == cd.Mask(x.shape, 0.3, -11, 0)


# ---- inplace and out --------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (37,), (9, 1000), (2, 3, 4)])
def test_dropout_with_inplace_or_out_equals_reference(shape, dtype):
    x = with_special_values(shape, dtype)
    expected = reference.dropout(x, 0.3, SEED, 0)
    out = np.ones_like(x)
    assert cd.dropout(x, 0.3, rng=SEED, out=out) is out
    assert_equal(out, expected)
    for kwargs in ({"inplace": True}, {"out": "itself"}):
        y = x.copy()
        kwargs = {key: y if value == "itself" else value for key, value in kwargs.items()}
        assert cd.dropout(y, 0.3, rng=SEED, **kwargs) is y
        assert_equal(y, expected)
    y = x.copy()
    assert cd.dropout(y, 0.3, rng=SEED, out=y[...]).base is y
    assert_equal(y, expected)


def test_dropout_of_a_scalar_returns_an_array():
    assert_equal(cd.dropout(np.float32(3), 0.5, rng=1), reference.dropout(np.float32(3), 0.5, 1, 0))


# ---- mask -------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (7,), (64,), (5, 211), (3, 4, 5), (40, 1000)], ids=str)
def test_dropout_with_a_mask_of_any_form_equals_reference(shape, dtype):
    x = with_special_values(shape, dtype)
    for p in (0.5, 0.3):
        mask = cd.Mask(shape, p, SEED, 5)
        expected = reference.dropout(x, p, SEED, 5)
        forms = [mask, mask.bits(), np.asarray(mask)]
        # In 16-bit types, to_scale rounds 1 / 0.7, so that the result differs from the reference.
        if p == 0.5 or dtype in (np.float32, np.float64):
            forms.append(mask.to_scale(dtype))
        for form, order in itertools.product(forms, "CF"):
            ordered = np.array(x, order=order)
            y, returned = cd.dropout(ordered, p, mask=form, return_mask=True)
            assert_equal(y, expected)
            assert returned is form
            assert_equal(cd.dropout_backward(ordered, form, p=p), expected)
            out = np.ones_like(x)
            assert cd.dropout_backward(ordered, form, p=p, out=out) is out
            assert_equal(out, expected)
            assert cd.dropout_backward(ordered, form, True, p=p) is ordered
            assert_equal(ordered, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_dropout_accepts_a_mask_that_overlaps_the_result(dtype):
    n = 1 << 19  # more than one work chunk
    x, mask = np.ones(n, np.float32), cd.Mask(n, 0.3, SEED)
    for inplace in (False, True):
        memory = np.zeros(n, np.float32)
        form = memory.view(dtype)[: n // 8 if dtype == np.uint8 else n]
        form[:] = mask.bits() if dtype == np.uint8 else np.asarray(mask)
        if inplace:
            expected = cd.dropout(memory.copy(), 0.3, mask=form.copy())
            cd.dropout(memory, 0.3, mask=form, inplace=True)
        else:
            expected = mask.apply(x)
            cd.dropout(x, 0.3, mask=form, out=memory)
        assert_equal(memory, expected)


def test_dropout_accepts_masks_with_any_strides():
    x = with_special_values((30, 40), np.float32)
    keep = reference.broadcast_keep(x.shape, 0.25, SEED, 0)
    expected = reference.apply(x, keep, 0.25)
    spread = np.zeros(2 * 150, np.uint8)
    spread[::2] = pack(keep)
    flipped = np.asarray(keep)[::-1].copy()
    scale = np.where(keep, np.float32(4 / 3), np.float32(0))
    for form in (spread[::2], flipped[::-1], np.asfortranarray(keep), np.asfortranarray(scale)):
        assert_equal(cd.dropout(x, 0.25, mask=form), expected)
    row = np.broadcast_to(keep[0], x.shape)
    assert_equal(cd.dropout(x, 0.25, mask=row), reference.apply(x, row, 0.25))


def test_nonzero_bytes_in_a_bool_mask_keep_elements():
    values = np.tile(np.array([0, 1, 2, 128, 255], np.uint8), 300)
    x = with_special_values(values.shape, np.float32)
    expected = reference.apply(x, values != 0, 0.3)
    assert_equal(cd.dropout(x, 0.3, mask=values.view(bool)), expected)


def test_scale_array_passed_as_mask_and_out_gives_the_result_or_raises():
    x = with_special_values((300,), np.float32)
    mask = cd.Mask(300, 0.5, SEED)
    form = mask.to_scale(np.float32)
    try:
        cd.dropout(x, 0.5, mask=form, out=form)
    except ValueError:
        assert_equal(form, mask.to_scale(np.float32))
    else:
        assert_equal(form, mask.apply(x))


# ---- broadcast_dims ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 1), (40, 3, 700), (3, 0, 2)], ids=str)
def test_dropout_with_broadcast_dims_equals_reference(shape):
    x = with_special_values(shape, np.float64)
    cases = [(), 0, -1, [1], (-2, 2), (0, 1, 2), *itertools.combinations(range(3), 2)]
    for dims in cases:
        y, mask = cd.dropout(x, 0.4, rng=SEED, broadcast_dims=dims, return_mask=True)
        axes = (dims,) if isinstance(dims, int) else tuple(dims)
        assert_equal(y, reference.dropout(x, 0.4, SEED, 0, axes))
        kept = reference.broadcast_keep(shape, 0.4, SEED, 0, axes)
        np.testing.assert_array_equal(np.asarray(mask), kept)
        assert_equal(cd.dropout_backward(x, mask), y)
        assert mask.shape == shape


def test_broadcast_dims_of_length_1_do_not_change_the_mask():
    x = with_special_values((1, 50, 1), np.float32)
    _, mask = cd.dropout(x, 0.4, rng=SEED, return_mask=True)
    _, broadcast = cd.dropout(x, 0.4, rng=SEED, broadcast_dims=(0, 2), return_mask=True)
    assert mask == broadcast and hash(mask) == hash(broadcast)

"""Tests of dropout and dropout_backward by the slow twin: values, arguments and call numbers."""

import array
import itertools
import math

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.requirements import slow

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
MOST = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32  # axes
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (64,), (513,), (8193,), (5, 11), (3, 4, 5), (70, 129),
          (2, 3, 4, 5), (2, 1, 3, 4, 5), (1,) * MOST, (1,) * 20 + (3,) * 5]  # fmt: skip
PROPER = [0.5, 0.25, 0.75, 2.0**-12, 0.1, 1 / 3, 0.9, 5e-324, 2.0**-64, 2.0**-53, 1 - 2.0**-53]
SIGMAS = 5.6  # two-sided normal tail 2e-8: the few rates tested together stay near 1e-6
SEED = 0x9D2C5680EFC60001


def numbers(shape, dtype, seed=1):
    """Return normal numbers, of which a fifth are NaN, infinite, zeros or subnormal."""
    rng = np.random.default_rng(seed)
    subnormal = np.array([1, 3], f"u{np.dtype(dtype).itemsize}").view(dtype)
    cases = np.array([math.nan, math.inf, -math.inf, 0.0, -0.0, *subnormal, -subnormal[1]], dtype)
    plain = rng.standard_normal(shape).astype(dtype) if shape else dtype(rng.standard_normal())
    return np.where(rng.random(shape) < 0.2, cases[rng.integers(0, len(cases), shape)], plain)


def words(values):
    """Return the bits of an array, in C order, as unsigned integers."""
    return np.asarray(values).ravel(order="C").view(f"u{values.dtype.itemsize}")


def expect_same(actual, expected):
    """Assert the same bits, except that any NaN equals any NaN."""
    assert type(actual) is np.ndarray
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    nan = np.isnan(expected).ravel()
    np.testing.assert_array_equal(np.isnan(actual).ravel(), nan)
    np.testing.assert_array_equal(words(actual)[~nan], words(expected)[~nan])


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_the_reference(shape, dtype):
    x = numbers(shape, dtype)
    before = words(x).copy()
    for i, p in enumerate([*PROPER, 1.0]):
        expect_same(cd.dropout(x, p, rng=SEED + i), reference.dropout(x, p, SEED + i, 0))
    np.testing.assert_array_equal(words(x), before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, *slow(0.5)])
def test_every_length_up_to_a_few_groups(p, dtype):
    x = numbers((1100,), dtype)
    for n in [*range(140), *range(500, 530), 1023, 1024, 1025, 1100]:
        y, mask = cd.dropout(x[:n], p, rng=n, return_mask=True)
        expect_same(y, reference.dropout(x[:n], p, n, 0))
        expect_same(cd.dropout_backward(y, mask), reference.dropout_backward(y, p, n, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_p_may_be_anything_with_a_float(dtype):
    x = numbers((100,), dtype)
    expected = reference.dropout(x, 0.25, SEED, 0)
    for p in (np.float64(0.25), np.float32(0.25), np.array(0.25), np.float16(0.25)):
        expect_same(cd.dropout(x, p, rng=SEED), expected)
    assert not cd.dropout(x, np.int64(1), rng=SEED).view(f"u{x.itemsize}").any()
    expect_same(cd.dropout(x, np.float32(0.1), rng=3), reference.dropout(x, np.float32(0.1), 3, 0))


def test_a_bfloat16_p_is_a_number():
    x = numbers((100,), np.float32)
    p = ml_dtypes.bfloat16(0.25)
    expect_same(cd.dropout(x, p, rng=SEED), reference.dropout(x, 0.25, SEED, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dropped_element_is_plus_zero_whatever_it_was(dtype):
    for value in (math.nan, math.inf, -math.inf, -1.0, -0.0):
        x = np.full((1000,), value, dtype)
        dropped = ~reference.keep(SEED, 0, 0.5, 0, 1000)
        y, mask = cd.dropout(x, 0.5, rng=SEED, return_mask=True)
        for result in (y, cd.dropout_backward(x, mask), cd.dropout(x, 0.5, mask=mask.bits())):
            assert not words(result)[dropped].any()
            assert words(result)[~dropped].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_p_of_one_gives_plus_zeros(dtype):
    x = numbers((200, 200), dtype)
    everything = np.ones(x.shape, bool)
    results = [
        cd.dropout(x, 1, rng=SEED),
        cd.dropout(x.T, 1.0),
        cd.dropout(x, 1, broadcast_dims=0),
        cd.Mask(x.shape, 1).apply(x),
        cd.dropout(x, 1, mask=everything),
        cd.dropout(x, 1, mask=np.packbits(everything)),
    ]
    for y in results:
        assert y.shape == x.shape and not words(y).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals_survive_and_overflow_is_no_error(dtype):
    largest = ml_dtypes.finfo(dtype).max
    tiny = np.array([3], f"u{np.dtype(dtype).itemsize}").view(dtype)[0]
    x = np.array([largest, -largest, tiny, -tiny] * 100, dtype)
    expected = reference.dropout(x, 0.5, SEED, 0)
    mask = cd.Mask(x.shape, 0.5, SEED)
    with np.errstate(all="raise"):
        expect_same(mask.apply(x), expected)
        for given in (mask, mask.bits(), np.asarray(mask), mask.to_scale(dtype)):
            expect_same(cd.dropout(x, 0.5, mask=given), expected)
            expect_same(cd.dropout_backward(x, given, p=0.5), expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 2.0**-10])
def test_the_rate_is_p(p):
    n = 1_000_000
    dropped = np.count_nonzero(cd.dropout(np.ones(n, np.float32), p, rng=77) == 0)
    assert abs(dropped - n * p) < SIGMAS * math.sqrt(n * p * (1 - p))


# ---- nothing is drawn -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kwargs", [{"p": 0}, {"training": False}, {"p": 1, "training": False}])
def test_without_dropping_x_itself_comes_back_and_out_gets_a_copy(kwargs, dtype):
    x = numbers((3, 50), dtype)
    assert cd.dropout(x, **kwargs) is x
    assert cd.dropout(x, **kwargs, inplace=True) is x
    y, mask = cd.dropout(x, **kwargs, return_mask=True)
    assert y is x and np.asarray(mask).all() and mask.p == 0
    expect_same(cd.dropout_backward(x, mask), x)
    out = np.ones_like(x)
    assert cd.dropout(x, **kwargs, out=out) is out
    expect_same(out, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_copy_keeps_the_bits_of_signalling_nans(dtype):
    x = (np.full(100, math.inf, dtype).view(f"u{np.dtype(dtype).itemsize}") | 1).view(dtype)
    out = np.zeros_like(x)
    cd.dropout(x, 0, out=out)
    np.testing.assert_array_equal(words(out), words(x))


@pytest.mark.parametrize("source", [cd.Generator, np.random.default_rng])
def test_only_a_drawn_mask_uses_up_a_call(source):
    rng, untouched, x = source(3), source(3), np.ones((4, 5), np.float32)
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
    assert repr(state(rng)) == repr(state(untouched))
    cd.dropout(x, 5e-324, rng=rng)
    assert repr(state(rng)) != repr(state(untouched))


def state(rng):
    return rng.state if isinstance(rng, cd.Generator) else rng.bit_generator.state


# ---- rng --------------------------------------------------------------------------------------


def test_a_generator_gives_one_mask_after_another():
    generator = cd.Generator(-5)
    x = numbers((600,), np.float32)
    for call in range(5):
        y, mask = cd.dropout(x, 0.3, rng=generator, return_mask=True)
        assert mask == cd.Mask(x.shape, 0.3, -5, call) and generator.calls == call + 1
        expect_same(y, reference.dropout(x, 0.3, -5, call))


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, -1, -(2**63), np.int64(-3), np.uint8(9)])
def test_an_int_names_the_same_mask_every_time(seed):
    x = numbers((600,), np.float64)
    expected = reference.dropout(x, 0.3, seed, 0)
    for _ in range(2):
        expect_same(cd.dropout(x, 0.3, rng=seed), expected)


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox])
def test_one_seed_is_drawn_from_a_numpy_generator(kind):
    rng, twin = np.random.Generator(kind(7)), np.random.Generator(kind(7))
    x = numbers((600,), np.float32)
    for _ in range(3):
        seed = int(twin.integers(0, 2**64 - 1, endpoint=True, dtype=np.uint64))
        expect_same(cd.dropout(x, 0.3, rng=rng), reference.dropout(x, 0.3, seed, 0))
        assert repr(rng.bit_generator.state) == repr(twin.bit_generator.state)


def test_one_seed_is_drawn_from_a_seed_sequence():
    x = numbers((600,), np.float32)
    seed = np.random.SeedSequence(7).generate_state(1, np.uint64)[0]
    y = cd.dropout(x, 0.3, rng=np.random.SeedSequence(7))
    expect_same(y, reference.dropout(x, 0.3, seed, 0))


def test_without_rng_the_default_generator_is_asked():
    x = numbers((600,), np.float32)
    assert cd.manual_seed(11) is cd.default_generator
    for call in range(3):
        expect_same(cd.dropout(x, 0.3), reference.dropout(x, 0.3, 11, call))
    cd.manual_seed(-11)
    _, mask = cd.dropout(x, 0.3, return_mask=True)
    assert mask == cd.Mask(x.shape, 0.3, -11, 0)


# ---- where the result goes --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (37,), (9, 1000), (2, 3, 4)])
def test_in_place_and_out(shape, dtype):
    x = numbers(shape, dtype)
    expected = reference.dropout(x, 0.3, SEED, 0)
    out = np.ones_like(x)
    assert cd.dropout(x, 0.3, rng=SEED, out=out) is out
    expect_same(out, expected)
    for kwargs in ({"inplace": True}, {"out": "itself"}):
        y = x.copy()
        kwargs = {key: y if value == "itself" else value for key, value in kwargs.items()}
        assert cd.dropout(y, 0.3, rng=SEED, **kwargs) is y
        expect_same(y, expected)
    y = x.copy()
    assert cd.dropout(y, 0.3, rng=SEED, out=y[...]).base is y
    expect_same(y, expected)


class OnlyDLPack:
    """An array of another library: it shows its memory through DLPack, and nothing else."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **kwargs):
        return self.values.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


@pytest.mark.parametrize("wrap", [memoryview, OnlyDLPack, lambda x: array.array("d", x)])
def test_other_arrays_are_read_and_written_through_their_memory(wrap):
    x = numbers((300,), np.float64)
    expected = reference.dropout(x, 0.3, SEED, 0)
    other = wrap(x.copy())
    expect_same(cd.dropout(other, 0.3, rng=SEED), expected)
    expect_same(cd.Mask(300, 0.3, SEED).apply(other), expected)
    if not isinstance(other, OnlyDLPack):  # which NumPy makes read-only
        cd.dropout(other, 0.3, rng=SEED, inplace=True)
        expect_same(np.asarray(other), expected)


def test_a_scalar_comes_back_as_an_array():
    expect_same(cd.dropout(np.float32(3), 0.5, rng=1), reference.dropout(np.float32(3), 0.5, 1, 0))


# ---- a mask that is given ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (64,), (5, 211), (3, 4, 5), (40, 1000)], ids=str)
def test_every_kind_of_mask_masks_forward_and_backward(shape, dtype):
    x = numbers(shape, dtype)
    for p in (0.5, 0.3):
        mask = cd.Mask(shape, p, SEED, 5)
        expected = reference.dropout(x, p, SEED, 5)
        kinds = [mask, mask.bits(), np.asarray(mask)]
        if p == 0.5 or dtype in (np.float32, np.float64):  # the half types round this scale
            kinds.append(mask.to_scale(dtype))
        for given, order in itertools.product(kinds, "CF"):
            ordered = np.array(x, order=order)
            y, back = cd.dropout(ordered, p, mask=given, return_mask=True)
            expect_same(y, expected)
            assert back is given
            expect_same(cd.dropout_backward(ordered, given, p=p), expected)
            out = np.ones_like(x)
            assert cd.dropout_backward(ordered, given, p=p, out=out) is out
            expect_same(out, expected)
            assert cd.dropout_backward(ordered, given, True, p=p) is ordered
            expect_same(ordered, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_])
def test_a_mask_may_lie_in_the_memory_of_the_result(dtype):
    n = 1 << 19  # more than one tile
    x, mask = np.ones(n, np.float32), cd.Mask(n, 0.3, SEED)
    for inplace in (False, True):
        memory = np.zeros(n, np.float32)
        given = memory.view(dtype)[: n // 8 if dtype == np.uint8 else n]
        given[:] = mask.bits() if dtype == np.uint8 else np.asarray(mask)
        if inplace:
            want = cd.dropout(memory.copy(), 0.3, mask=given.copy())
            cd.dropout(memory, 0.3, mask=given, inplace=True)
        else:
            want = mask.apply(x)
            cd.dropout(x, 0.3, mask=given, out=memory)
        expect_same(memory, want)


def test_masks_of_any_strides():
    x = numbers((30, 40), np.float32)
    keep = reference.broadcast_keep(x.shape, 0.25, SEED, 0)
    expected = reference.apply(x, keep, 0.25)
    spread = np.zeros(2 * 150, np.uint8)
    spread[::2] = np.packbits(keep, bitorder="little")
    flipped = np.asarray(keep)[::-1].copy()
    scale = np.where(keep, np.float32(4 / 3), np.float32(0))
    for given in (spread[::2], flipped[::-1], np.asfortranarray(keep), np.asfortranarray(scale)):
        expect_same(cd.dropout(x, 0.25, mask=given), expected)
    row = np.broadcast_to(keep[0], x.shape)
    expect_same(cd.dropout(x, 0.25, mask=row), reference.apply(x, row, 0.25))


def test_bools_count_as_numpy_counts_them():
    octets = np.tile(np.array([0, 1, 2, 128, 255], np.uint8), 300)
    x = numbers(octets.shape, np.float32)
    expected = reference.apply(x, octets != 0, 0.3)
    expect_same(cd.dropout(x, 0.3, mask=octets.view(bool)), expected)


def test_the_memory_of_a_scale_array_is_no_place_for_a_wrong_result():
    x = numbers((300,), np.float32)
    mask = cd.Mask(300, 0.5, SEED)
    given = mask.to_scale(np.float32)
    try:
        cd.dropout(x, 0.5, mask=given, out=given)
    except ValueError:
        expect_same(given, mask.to_scale(np.float32))
    else:
        expect_same(given, mask.apply(x))


# ---- shared draws -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 5, 1), (40, 3, 700), (3, 0, 2)], ids=str)
def test_broadcast_dims_are_the_reference(shape):
    x = numbers(shape, np.float64)
    every = [(), 0, -1, [1], (-2, 2), (0, 1, 2), *itertools.combinations(range(3), 2)]
    for dims in every:
        y, mask = cd.dropout(x, 0.4, rng=SEED, broadcast_dims=dims, return_mask=True)
        axes = (dims,) if isinstance(dims, int) else tuple(dims)
        expect_same(y, reference.dropout(x, 0.4, SEED, 0, axes))
        kept = reference.broadcast_keep(shape, 0.4, SEED, 0, axes)
        np.testing.assert_array_equal(np.asarray(mask), kept)
        expect_same(cd.dropout_backward(x, mask), y)
        assert mask.shape == shape


def test_sharing_along_axes_of_length_one_changes_nothing():
    x = numbers((1, 50, 1), np.float32)
    _, plain = cd.dropout(x, 0.4, rng=SEED, return_mask=True)
    _, shared = cd.dropout(x, 0.4, rng=SEED, broadcast_dims=(0, 2), return_mask=True)
    assert plain == shared and hash(plain) == hash(shared)

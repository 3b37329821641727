"""Tests that a mask follows the logical index, whatever the strides, order and alignment."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cdropout as cd

from .. import reference
from ..helpers.hypothesis_settings import given_examples
from ..helpers.requirements import slow

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
FILL = -7  # what is around a view that is written to
SEED = -12345


def numbers(shape, dtype=np.float64, seed=0):
    """Return normal numbers, with some NaN and infinities among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    x[rng.random(shape) < 0.05] = np.nan
    x[rng.random(shape) < 0.05] = np.inf
    return x.astype(dtype)


def expect_same(actual, expected):
    """Assert the same bits at the same indices, except that any NaN equals any NaN."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    actual, expected = (np.array(a, order="C").reshape(-1) for a in (actual, expected))
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    words = f"u{expected.itemsize}"
    np.testing.assert_array_equal(actual[~nan].view(words), expected[~nan].view(words))


def unaligned(x, offset):
    """Return x in memory that begins `offset` bytes past a multiple of 64."""
    room = np.zeros(x.nbytes + 128 + offset, np.uint8)
    first = -room.ctypes.data % 64 + offset
    view = room[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def inside(x, index, shape):
    """Return a view of x's shape that `index` picks from a larger array, filled with x."""
    room = np.full(shape, FILL, x.dtype)
    view = room[index]
    view[...] = x
    return view


# Each takes an array of shape (6, 8, 10) and returns one of the same elements in another layout.
LAYOUTS = {
    "C": lambda x: x.copy(),
    "Fortran": lambda x: np.array(x, order="F"),
    "middle axis outermost": lambda x: np.array(x.transpose(1, 0, 2), order="C").transpose(1, 0, 2),
    "steps": lambda x: inside(x, np.s_[::2, 1::3, ::2], (12, 24, 20)),
    "steps in the last axis": lambda x: inside(x, np.s_[..., ::3], (6, 8, 30)),
    "negative": lambda x: inside(x, np.s_[::-1, ::-1, ::-1], (6, 8, 10)),
    "negative in part": lambda x: inside(x, np.s_[:, ::-2, 10:0:-1], (6, 16, 12)),
    "sliced rows": lambda x: inside(x, np.s_[:, 2:10, 3:13], (6, 12, 20)),
    "sliced planes": lambda x: inside(x, np.s_[1:7], (9, 8, 10)),
    "unaligned by 1": lambda x: unaligned(x, 1),
    "unaligned by 3": lambda x: unaligned(x, 3),
    "unaligned, Fortran": lambda x: unaligned(np.array(x.T, order="C"), 5).T,
    "unaligned, reversed": lambda x: unaligned(x[:, ::-1].copy(), 7)[:, ::-1],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_from_every_layout(name, dtype):
    plain = numbers((6, 8, 10), dtype)
    x = LAYOUTS[name](plain)
    expect_same(x, plain)
    x.flags.writeable = False  # good enough for an input
    for p in (0.5, 0.3):
        y, mask = cd.dropout(x, p, rng=SEED, return_mask=True)
        expected = reference.dropout(plain, p, SEED, 0)
        expect_same(y, expected)
        assert y.strides == np.empty_like(x).strides
        for drawn in (mask, mask.bits(), np.asarray(mask)):
            y = cd.dropout_backward(x, drawn, p=p)
            expect_same(y, expected)
            assert y.strides == np.empty_like(x).strides
        expected = reference.dropout(plain, p, SEED, 0, (1,))
        expect_same(cd.dropout(x, p, rng=SEED, broadcast_dims=1), expected)


@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float64)])
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_into_every_layout(source, target, dtype):
    plain = numbers((6, 8, 10), dtype)
    x, out = LAYOUTS[source](plain), LAYOUTS[target](np.zeros_like(plain))
    expected = reference.dropout(plain, 0.3, SEED, 0)
    assert cd.dropout(x, 0.3, rng=SEED, out=out) is out
    expect_same(out, expected)
    expect_same(x, plain)
    out[...] = 0
    cd.dropout_backward(x, cd.Mask(x.shape, 0.3, SEED).bits(), p=0.3, out=out)
    expect_same(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYOUTS)
def test_in_place_writes_the_view_and_nothing_else(name, dtype):
    plain = numbers((6, 8, 10), dtype)
    for p in (0.3, 1.0):
        x = LAYOUTS[name](plain)
        room = x
        while isinstance(room.base, np.ndarray):
            room = room.base
        before = room.copy()
        assert cd.dropout(x, p, inplace=True, rng=SEED) is x
        expect_same(x, reference.dropout(plain, p, SEED, 0))
        x[...] = plain
        assert room.tobytes() == before.tobytes()


def test_out_may_be_x_with_another_stride_where_it_does_not_matter():
    x = numbers((1, 6, 20))[..., ::2]
    expected = reference.dropout(x, 0.3, SEED, 0)
    out = np.lib.stride_tricks.as_strided(x, x.shape, (8, *x.strides[1:]))
    cd.dropout(x, 0.3, rng=SEED, out=out)
    expect_same(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", [*itertools.permutations(range(4))])
def test_every_permutation_of_four_axes_keeps_its_order(axes, dtype):
    plain = numbers((3, 5, 4, 7), dtype)
    x = np.array(plain.transpose(axes), order="C").transpose(np.argsort(axes))
    y = cd.dropout(x, 0.3, rng=SEED)
    expect_same(y, reference.dropout(plain, 0.3, SEED, 0))
    assert y.strides == x.strides
    strided = x[:, ::2, ::-1]
    y = cd.dropout(strided, 0.3, rng=SEED)
    expect_same(y, reference.dropout(plain[:, ::2, ::-1], 0.3, SEED, 0))
    assert y.strides == np.empty_like(strided).strides


@pytest.mark.parametrize("dtype", DTYPES)
def test_elements_that_are_shared_are_dropped_one_by_one(dtype):
    row = numbers((1000,), dtype)
    for x in (
        np.broadcast_to(row, (30, 1000)),
        np.broadcast_to(row[:, None], (1000, 30)),
        np.broadcast_to(row[3], (50, 70)),
        np.broadcast_to(row[:20, None, None], (20, 9, 11)).transpose(2, 0, 1),
        np.lib.stride_tricks.sliding_window_view(row, 64),
    ):
        expect_same(cd.dropout(x, 0.3, rng=SEED), reference.dropout(x, 0.3, SEED, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [1, 7, 22, 61, *slow(*range(4, 61, 5))])
def test_every_alignment(offset, dtype):
    plain = numbers((50, 131), dtype)
    for x, out in [
        (unaligned(plain, offset), unaligned(plain, 0)),
        (unaligned(plain, 0), unaligned(plain, offset)),
        (unaligned(plain, offset), unaligned(plain, 64 - offset)),
        (unaligned(plain.T.copy(), offset).T, unaligned(plain, offset)),
        (unaligned(plain, offset), unaligned(plain.T.copy(), offset).T),
    ]:
        expect_same(cd.dropout(x, 0.3, rng=SEED, out=out), reference.dropout(plain, 0.3, SEED, 0))


def test_frombuffer_at_odd_bytes():
    octets = b"\1" * 3 + numbers((500,), np.float32).tobytes() + b"\2"
    for offset in range(5):
        x = np.frombuffer(octets, np.float32, 499, offset)
        assert not x.flags.writeable
        with np.errstate(all="ignore"):  # any bits at all are numbers here
            expect_same(cd.dropout(x, 0.5, rng=SEED), reference.dropout(x, 0.5, SEED, 0))


# ---- large ------------------------------------------------------------------------------------

# The strided path cuts a mask into spans of 32768 elements, and takes rows of 4096 and more whole.
LARGE = {
    "rows of 4096": lambda n: inside(n((9, 4096)), np.s_[:, :4096], (9, 5000)),
    "rows of 4095": lambda n: inside(n((9, 4095)), np.s_[:, 1:4096], (9, 5000)),
    "rows reversed": lambda n: n((9, 5000))[::-1, 1:],
    "columns reversed": lambda n: n((9, 5000))[:, ::-1],
    "rows of rows": lambda n: n((4, 6, 9000))[::2, ::-3, 7:],
    "Fortran": lambda n: n((300, 257)).T,
    "Fortran with long columns": lambda n: n((7, 40_000)).T,
    "planes": lambda n: n((37, 41, 43)).transpose(2, 0, 1),
    "steps": lambda n: n((700, 303))[::2, ::3],
    "one axis, reversed": lambda n: n((100_001,))[::-1],
    "axes of length 1": lambda n: n((1, 300, 1, 400, 1)).transpose(4, 3, 2, 1, 0),
    "two columns": lambda n: n((2, 70_000)).T,
    "32 axes": lambda n: n((2,) * 15 + (1,) * 17).transpose(),
}


@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float16, np.float64)])
@pytest.mark.parametrize("name", LARGE)
def test_large_arrays_of_any_strides(name, dtype):
    x = LARGE[name](lambda shape: numbers(shape, dtype))
    expected = {p: reference.dropout(x, p, SEED, 0) for p in (0.1, 0.5)}
    for p in expected:
        y, mask = cd.dropout(x, p, rng=SEED, return_mask=True)
        expect_same(y, expected[p])
        assert y.strides == np.empty_like(x).strides
        expect_same(cd.dropout_backward(x, np.asarray(mask), p=p), expected[p])
        out = np.empty_like(x, order="C")
        expect_same(cd.dropout_backward(x, mask.bits(), p=p, out=out), expected[p])
    assert cd.dropout(x, 0.1, inplace=True, rng=SEED) is x
    expect_same(x, expected[0.1])


@pytest.mark.parametrize("n", [16383, 16384, 16385, 32767, 32768, 32769, 65535, 65536, 65537])
def test_lengths_at_the_ends_of_spans(n):
    x = inside(numbers((n,), np.float32), np.s_[::2], (2 * n,))
    expect_same(cd.dropout(x, 0.3, rng=SEED), reference.dropout(x, 0.3, SEED, 0))
    keep = reference.keep(SEED, 0, 0.3, 0, 3 * n)[::3]
    window = cd.Mask(3 * n, 0.3, SEED)[::3]
    np.testing.assert_array_equal(np.asarray(window), keep)
    expect_same(window.apply(x[::-1]), reference.apply(x[::-1], keep, 0.3))


WINDOWS = [
    ((400, 500), np.s_[::-3, 5::7]),
    ((40, 5000), np.s_[::2, 1:4500]),
    ((40, 5000), np.s_[::-1, ::-1]),
    ((40, 5000), np.s_[3, ::-1]),
    ((10, 40_000), np.s_[:, ::39_999]),
    ((100, 100_000), np.s_[::7, ::33_000]),
    ((100, 100_000), np.s_[::-33, -5000:]),
    ((3, 100_000), np.s_[::2, ::3]),
    ((1000, 100), np.s_[:, 3]),
    ((80, 90, 100), np.s_[5:75:3, ::-11, None, 7:]),
    ((2, 3, 40, 5000), np.s_[1, ::-2, 4:, 100:4900]),
]


# Neighbours in memory lie more than 1024 elements apart in the mask: these are not walked.
FAR = [
    ((3, 60, 40, 41), (0, 2, 3, 1)),  # channels last
    ((1, 190, 40, 41), (0, 2, 3, 1)),  # more than is copied at once, in one row
    ((1100, 1030), (1, 0)),
    ((70, 64, 65), (2, 1, 0)),
]


@pytest.mark.parametrize("shape, order", FAR)
@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float16)])
def test_orders_far_from_that_of_the_mask(shape, order, dtype):
    x = numbers(shape, dtype).transpose(order).copy().transpose(np.argsort(order))
    assert not x.flags.c_contiguous and x.strides[order[-1]] == x.itemsize
    x.flags.writeable = False
    expected = reference.dropout(x, 0.3, SEED, 0)
    y, mask = cd.dropout(x, 0.3, rng=SEED, return_mask=True)
    assert y.strides == x.strides
    expect_same(y, expected)
    expect_same(cd.dropout_backward(x, mask, out=np.empty(shape, dtype)), expected)
    part = mask[1:] if shape[0] > 1 else mask[:, 1:]  # a window
    expect_same(
        part.apply(x[1:] if shape[0] > 1 else x[:, 1:]),
        expected[1:] if shape[0] > 1 else expected[:, 1:],
    )
    z = x.copy(order="K")
    expect_same(cd.dropout(z, 0.3, inplace=True, rng=SEED), expected)
    assert z.strides == x.strides


@pytest.mark.parametrize("shape, index", WINDOWS, ids=str)
def test_large_windows_of_masks(shape, index):
    mask = cd.Mask(shape, 0.3, SEED, 4)[index]
    keep = reference.keep(SEED, 4, 0.3, 0, int(np.prod(shape))).reshape(shape)[index]
    np.testing.assert_array_equal(np.asarray(mask), keep)
    np.testing.assert_array_equal(mask.bits(), np.packbits(keep, bitorder="little"))
    for dtype in (np.float32, np.float64):
        x = numbers(keep.shape, dtype)
        expected = reference.apply(x, keep, 0.3)
        for order in "CF":
            ordered = np.array(x, order=order)
            expect_same(mask.apply(ordered), expected)
            expect_same(cd.dropout_backward(ordered, mask, True), expected)
        strided = inside(x, (np.s_[..., ::2]), (*x.shape[:-1], 2 * x.shape[-1]))
        expect_same(mask.apply(strided), expected)


@pytest.mark.parametrize("strides", [(1, 500), (500, 1), (-1, 500), (3, -1200), (0, 1), (7001, 0)])
def test_masks_with_strides_of_their_own(strides):
    shape, start = (300, 170), 300_000
    where = start + np.add.outer(*(np.arange(n) * s for n, s in zip(shape, strides, strict=True)))
    first = int(where.min())
    keep = reference.keep(SEED, 0, 0.3, first, int(where.max()) - first + 1)[where - first]
    mask = cd.Mask(shape, 0.3, SEED, start=start, strides=strides)
    np.testing.assert_array_equal(np.asarray(mask), keep)
    for x in (numbers(shape), numbers(shape[::-1]).T, numbers((300, 340))[::-1, ::2]):
        expect_same(mask.apply(x), reference.apply(x, keep, 0.3))


@pytest.mark.parametrize("dims", [0, 1, 2, (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_large_shared_draws(dims):
    plain = numbers((20, 90, 70), np.float32)
    for x in (plain, np.array(plain, order="F"), plain.transpose(2, 0, 1)[::-1]):
        y, mask = cd.dropout(x, 0.3, rng=SEED, broadcast_dims=dims, return_mask=True)
        axes = (dims,) if isinstance(dims, int) else dims
        expect_same(y, reference.dropout(x, 0.3, SEED, 0, axes))
        kept = reference.broadcast_keep(x.shape, 0.3, SEED, 0, axes)
        np.testing.assert_array_equal(np.asarray(mask[::-1, 5:]), kept[::-1, 5:])


# ---- any ----------------------------------------------------------------------------------------

SEEDS = st.sampled_from([0, -1, 2**63, -(2**63), 2**64 - 1]) | st.integers(-(2**63), 2**64 - 1)
CALLS = st.sampled_from([0, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(0, 2**64 - 1)
RATES = st.sampled_from([0, 0.1, 0.5, 0.75, 1, 2.0**-64, 1 - 2.0**-53]) | st.floats(0, 1)


@st.composite
def rooms(draw):
    """Draw an array, and a function that takes a view of it: any basic index, any order of axes."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
    room = draw(hnp.arrays(dtype, shape))
    index = draw(hnp.basic_indices(room.shape, allow_newaxis=True))
    index = index if isinstance(index, tuple) else (index,)
    index = index if ... in index else (*index, ...)  # with '...' never a scalar
    axes = draw(st.permutations(range(room[index].ndim)))
    return room, lambda array: array[index].transpose(axes)


@given_examples(300, rooms(), RATES, SEEDS, CALLS, st.data())
def test_anything_is_the_reference(pair, p, seed, call, data):
    room, view = pair
    x, before = view(room), room.copy()
    expected = reference.dropout(x, p, seed, call)
    mask = cd.Mask(x.shape, p, seed, call)
    for y in (mask.apply(x), cd.dropout_backward(x, mask)):
        expect_same(y, expected)
        assert y.strides == np.empty_like(x).strides
    window = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True))
    np.testing.assert_array_equal(np.asarray(mask[window]), np.asarray(mask)[window])
    if call == 2**64 - 1:  # a mask may have it, but a generator could not count it
        mask.apply(x, out=x)
    else:
        generator = cd.Generator()
        generator.state = {"seed": seed, "calls": call, "spawned": 0}
        assert cd.dropout(x, p, inplace=True, rng=generator) is x
        assert generator.calls == call + (0 < p < 1 and x.size > 0)
    expect_same(x, expected)
    x[...] = view(before)
    assert room.tobytes() == before.tobytes()  # nothing was written but the view

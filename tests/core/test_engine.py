"""Tests of the engine: strides, memory order and alignment never change the mask."""

import itertools
from functools import partial

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cdropout as cd

from .. import reference
from ..helpers.arrays import assert_same_bits, every_dtype, pack, with_special_values
from ..helpers.hypothesis_settings import given_examples
from ..helpers.requirements import slow

FILL = -7  # the value of the elements around a view
SEED = -12345
assert_equal = partial(assert_same_bits, equal_nan=True)


def unaligned(x, offset):
    """Return a copy of x whose address is `offset` bytes past a multiple of 64."""
    memory = np.zeros(x.nbytes + 128 + offset, np.uint8)
    first = -memory.ctypes.data % 64 + offset
    view = memory[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def view_in(x, index, shape):
    """Return a copy of x that is the view `memory[index]` of an array `memory` of this shape."""
    memory = np.full(shape, FILL, x.dtype)
    view = memory[index]
    view[...] = x
    return view


# Each function returns a copy of an array of shape (6, 8, 10) with the named layout.
LAYOUTS = {
    "C": lambda x: x.copy(),
    "Fortran": lambda x: np.array(x, order="F"),
    "middle axis outermost": lambda x: np.array(x.transpose(1, 0, 2), order="C").transpose(1, 0, 2),
    "steps": lambda x: view_in(x, np.s_[::2, 1::3, ::2], (12, 24, 20)),
    "steps in the last axis": lambda x: view_in(x, np.s_[..., ::3], (6, 8, 30)),
    "negative": lambda x: view_in(x, np.s_[::-1, ::-1, ::-1], (6, 8, 10)),
    "negative in part": lambda x: view_in(x, np.s_[:, ::-2, 10:0:-1], (6, 16, 12)),
    "sliced rows": lambda x: view_in(x, np.s_[:, 2:10, 3:13], (6, 12, 20)),
    "sliced first axis": lambda x: view_in(x, np.s_[1:7], (9, 8, 10)),
    "unaligned by 1": lambda x: unaligned(x, 1),
    "unaligned by 3": lambda x: unaligned(x, 3),
    "unaligned, Fortran": lambda x: unaligned(np.array(x.T, order="C"), 5).T,
    "unaligned, reversed": lambda x: unaligned(x[:, ::-1].copy(), 7)[:, ::-1],
}


@every_dtype
@pytest.mark.parametrize("name", LAYOUTS)
def test_dropout_accepts_x_with_any_layout(name, dtype):
    plain = with_special_values((6, 8, 10), dtype)
    x = LAYOUTS[name](plain)
    assert_equal(x, plain)
    x.flags.writeable = False
    for p in (0.5, 0.3):
        y, mask = cd.dropout(x, p, rng=SEED, return_mask=True)
        expected = reference.dropout(plain, p, SEED, 0)
        assert_equal(y, expected)
        assert y.strides == np.empty_like(x).strides
        for form in (mask, mask.bits(), np.asarray(mask)):
            y = cd.dropout_backward(x, form, p=p)
            assert_equal(y, expected)
            assert y.strides == np.empty_like(x).strides
        expected = reference.dropout(plain, p, SEED, 0, (1,))
        assert_equal(cd.dropout(x, p, rng=SEED, broadcast_dims=1), expected)


@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float64)])
@pytest.mark.parametrize("target", LAYOUTS)
@pytest.mark.parametrize("source", LAYOUTS)
def test_dropout_accepts_out_with_any_layout(source, target, dtype):
    plain = with_special_values((6, 8, 10), dtype)
    x, out = LAYOUTS[source](plain), LAYOUTS[target](np.zeros_like(plain))
    expected = reference.dropout(plain, 0.3, SEED, 0)
    assert cd.dropout(x, 0.3, rng=SEED, out=out) is out
    assert_equal(out, expected)
    assert_equal(x, plain)
    out[...] = 0
    cd.dropout_backward(x, cd.Mask(x.shape, 0.3, SEED).bits(), p=0.3, out=out)
    assert_equal(out, expected)


@every_dtype
@pytest.mark.parametrize("name", LAYOUTS)
def test_inplace_does_not_write_outside_of_a_view(name, dtype):
    plain = with_special_values((6, 8, 10), dtype)
    for p in (0.3, 1.0):
        x = LAYOUTS[name](plain)
        memory = x
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        before = memory.copy()
        assert cd.dropout(x, p, inplace=True, rng=SEED) is x
        assert_equal(x, reference.dropout(plain, p, SEED, 0))
        x[...] = plain
        assert memory.tobytes() == before.tobytes()


def test_out_can_be_x_with_another_stride_along_an_axis_of_length_1():
    x = with_special_values((1, 6, 20))[..., ::2]
    expected = reference.dropout(x, 0.3, SEED, 0)
    out = np.lib.stride_tricks.as_strided(x, x.shape, (8, *x.strides[1:]))
    cd.dropout(x, 0.3, rng=SEED, out=out)
    assert_equal(x, expected)


@every_dtype
@pytest.mark.parametrize("axes", [*itertools.permutations(range(4))])
def test_result_has_the_memory_order_of_x(axes, dtype):
    plain = with_special_values((3, 5, 4, 7), dtype)
    x = np.array(plain.transpose(axes), order="C").transpose(np.argsort(axes))
    y = cd.dropout(x, 0.3, rng=SEED)
    assert_equal(y, reference.dropout(plain, 0.3, SEED, 0))
    assert y.strides == x.strides
    strided = x[:, ::2, ::-1]
    y = cd.dropout(strided, 0.3, rng=SEED)
    assert_equal(y, reference.dropout(plain[:, ::2, ::-1], 0.3, SEED, 0))
    assert y.strides == np.empty_like(strided).strides


@every_dtype
def test_elements_with_the_same_address_have_independent_draws(dtype):
    row = with_special_values((1000,), dtype)
    for x in (
        np.broadcast_to(row, (30, 1000)),
        np.broadcast_to(row[:, None], (1000, 30)),
        np.broadcast_to(row[3], (50, 70)),
        np.broadcast_to(row[:20, None, None], (20, 9, 11)).transpose(2, 0, 1),
        np.lib.stride_tricks.sliding_window_view(row, 64),
    ):
        assert_equal(cd.dropout(x, 0.3, rng=SEED), reference.dropout(x, 0.3, SEED, 0))


@every_dtype
@pytest.mark.parametrize("offset", [1, 7, 22, 61, *slow(*range(4, 61, 5))])
def test_dropout_accepts_arrays_with_any_alignment(offset, dtype):
    plain = with_special_values((50, 131), dtype)
    for x, out in [
        (unaligned(plain, offset), unaligned(plain, 0)),
        (unaligned(plain, 0), unaligned(plain, offset)),
        (unaligned(plain, offset), unaligned(plain, 64 - offset)),
        (unaligned(plain.T.copy(), offset).T, unaligned(plain, offset)),
        (unaligned(plain, offset), unaligned(plain.T.copy(), offset).T),
    ]:
        assert_equal(cd.dropout(x, 0.3, rng=SEED, out=out), reference.dropout(plain, 0.3, SEED, 0))


def test_dropout_accepts_read_only_buffers_with_any_alignment():
    buffer = b"\1" * 3 + with_special_values((500,), np.float32).tobytes() + b"\2"
    for offset in range(5):
        x = np.frombuffer(buffer, np.float32, 499, offset)
        assert not x.flags.writeable
        with np.errstate(all="ignore"):  # some elements are signalling NaNs
            assert_equal(cd.dropout(x, 0.5, rng=SEED), reference.dropout(x, 0.5, SEED, 0))


# ---- large ------------------------------------------------------------------------------------

# Strided arrays with more than 32768 elements can be split into tiles. Bits of a tile that are
# separated by more than 4096 other bits of the mask are drawn separately.
LARGE = {
    "padded rows of even length": lambda make: view_in(make((9, 4096)), np.s_[:, :4096], (9, 5000)),
    "padded rows of odd length": lambda make: view_in(make((9, 4095)), np.s_[:, 1:4096], (9, 5000)),
    "rows reversed": lambda make: make((9, 5000))[::-1, 1:],
    "columns reversed": lambda make: make((9, 5000))[:, ::-1],
    "three axes": lambda make: make((4, 6, 9000))[::2, ::-3, 7:],
    "Fortran": lambda make: make((300, 257)).T,
    "Fortran with long columns": lambda make: make((7, 40_000)).T,
    "axes rotated": lambda make: make((37, 41, 43)).transpose(2, 0, 1),
    "steps": lambda make: make((700, 303))[::2, ::3],
    "one axis, reversed": lambda make: make((100_001,))[::-1],
    "axes of length 1": lambda make: make((1, 300, 1, 400, 1)).transpose(4, 3, 2, 1, 0),
    "two columns": lambda make: make((2, 70_000)).T,
    "32 axes": lambda make: make((2,) * 15 + (1,) * 17).transpose(),
}


@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float16, np.float64)])
@pytest.mark.parametrize("name", LARGE)
def test_dropout_of_large_arrays_with_any_strides_equals_reference(name, dtype):
    x = LARGE[name](lambda shape: with_special_values(shape, dtype))
    expected = {p: reference.dropout(x, p, SEED, 0) for p in (0.1, 0.5)}
    for p in expected:
        y, mask = cd.dropout(x, p, rng=SEED, return_mask=True)
        assert_equal(y, expected[p])
        assert y.strides == np.empty_like(x).strides
        assert_equal(cd.dropout_backward(x, np.asarray(mask), p=p), expected[p])
        out = np.empty_like(x, order="C")
        assert_equal(cd.dropout_backward(x, mask.bits(), p=p, out=out), expected[p])
    assert cd.dropout(x, 0.1, inplace=True, rng=SEED) is x
    assert_equal(x, expected[0.1])


@pytest.mark.parametrize("n", [16383, 16384, 16385, 32767, 32768, 32769, 65535, 65536, 65537])
def test_dropout_of_about_one_work_chunk_equals_reference(n):
    x = view_in(with_special_values((n,), np.float32), np.s_[::2], (2 * n,))
    assert_equal(cd.dropout(x, 0.3, rng=SEED), reference.dropout(x, 0.3, SEED, 0))
    keep = reference.keep(SEED, 0, 0.3, 0, 3 * n)[::3]
    window = cd.Mask(3 * n, 0.3, SEED)[::3]
    np.testing.assert_array_equal(np.asarray(window), keep)
    assert_equal(window.apply(x[::-1]), reference.apply(x[::-1], keep, 0.3))


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


# (shape, order of the axes in memory). Elements that are adjacent in memory are more than 1024
# positions apart in the mask.
DISTANT = [
    ((3, 60, 40, 41), (0, 2, 3, 1)),  # channels last
    ((1, 190, 40, 41), (0, 2, 3, 1)),  # more channels than a square of 64 x 64 bits has rows
    ((1100, 1030), (1, 0)),
    ((70, 64, 65), (2, 1, 0)),
]


@pytest.mark.parametrize("shape, order", DISTANT)
@pytest.mark.parametrize("dtype", [np.float32, *slow(np.float16)])
def test_elements_adjacent_in_memory_can_be_far_apart_in_the_mask(shape, order, dtype):
    x = with_special_values(shape, dtype).transpose(order).copy().transpose(np.argsort(order))
    assert not x.flags.c_contiguous and x.strides[order[-1]] == x.itemsize
    x.flags.writeable = False
    expected = reference.dropout(x, 0.3, SEED, 0)
    y, mask = cd.dropout(x, 0.3, rng=SEED, return_mask=True)
    assert y.strides == x.strides
    assert_equal(y, expected)
    assert_equal(cd.dropout_backward(x, mask, out=np.empty(shape, dtype)), expected)
    window = np.s_[1:] if shape[0] > 1 else np.s_[:, 1:]
    assert_equal(mask[window].apply(x[window]), expected[window])
    z = x.copy(order="K")
    assert_equal(cd.dropout(z, 0.3, inplace=True, rng=SEED), expected)
    assert z.strides == x.strides


@pytest.mark.parametrize("shape, index", WINDOWS, ids=str)
def test_large_windows_of_masks_equal_reference(shape, index):
    mask = cd.Mask(shape, 0.3, SEED, 4)[index]
    keep = reference.keep(SEED, 4, 0.3, 0, int(np.prod(shape))).reshape(shape)[index]
    np.testing.assert_array_equal(np.asarray(mask), keep)
    np.testing.assert_array_equal(mask.bits(), pack(keep))
    for dtype in (np.float32, np.float64):
        x = with_special_values(keep.shape, dtype)
        expected = reference.apply(x, keep, 0.3)
        for order in "CF":
            ordered = np.array(x, order=order)
            assert_equal(mask.apply(ordered), expected)
            assert_equal(cd.dropout_backward(ordered, mask, True), expected)
        strided = view_in(x, (np.s_[..., ::2]), (*x.shape[:-1], 2 * x.shape[-1]))
        assert_equal(mask.apply(strided), expected)


@pytest.mark.parametrize("strides", [(1, 500), (500, 1), (-1, 500), (3, -1200), (0, 1), (7001, 0)])
def test_masks_with_any_strides_equal_reference(strides):
    shape, start = (300, 170), 300_000
    positions = start + np.add.outer(
        *(np.arange(n) * s for n, s in zip(shape, strides, strict=True))
    )
    first = int(positions.min())
    keep = reference.keep(SEED, 0, 0.3, first, int(positions.max()) - first + 1)[positions - first]
    mask = cd.Mask(shape, 0.3, SEED, start=start, strides=strides)
    np.testing.assert_array_equal(np.asarray(mask), keep)
    for x in (
        with_special_values(shape),
        with_special_values(shape[::-1]).T,
        with_special_values((300, 340))[::-1, ::2],
    ):
        assert_equal(mask.apply(x), reference.apply(x, keep, 0.3))


@pytest.mark.parametrize("dims", [0, 1, 2, (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_dropout_of_large_arrays_with_broadcast_dims_equals_reference(dims):
    plain = with_special_values((20, 90, 70), np.float32)
    for x in (plain, np.array(plain, order="F"), plain.transpose(2, 0, 1)[::-1]):
        y, mask = cd.dropout(x, 0.3, rng=SEED, broadcast_dims=dims, return_mask=True)
        axes = (dims,) if isinstance(dims, int) else dims
        assert_equal(y, reference.dropout(x, 0.3, SEED, 0, axes))
        kept = reference.broadcast_keep(x.shape, 0.3, SEED, 0, axes)
        np.testing.assert_array_equal(np.asarray(mask[::-1, 5:]), kept[::-1, 5:])


# ---- random layouts ---------------------------------------------------------------------------

SEEDS = st.sampled_from([0, -1, 2**63, -(2**63), 2**64 - 1]) | st.integers(-(2**63), 2**64 - 1)
CALLS = st.sampled_from([0, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(0, 2**64 - 1)
PROBABILITIES = st.sampled_from([0, 0.1, 0.5, 0.75, 1, 2.0**-64, 1 - 2.0**-53]) | st.floats(0, 1)


@st.composite
def arrays_and_views(draw):
    """Draw an array and a function that indexes an array and permutes its axes."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shape = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)
    memory = draw(hnp.arrays(dtype, shape))
    index = draw(hnp.basic_indices(memory.shape, allow_newaxis=True))
    index = index if isinstance(index, tuple) else (index,)
    index = (
        index if ... in index else (*index, ...)
    )  # with '...', indexing returns an array, never a scalar
    axes = draw(st.permutations(range(memory[index].ndim)))
    return memory, lambda array: array[index].transpose(axes)


@given_examples(300, arrays_and_views(), PROBABILITIES, SEEDS, CALLS, st.data())
def test_dropout_of_random_views_equals_reference(pair, p, seed, call, data):
    memory, view = pair
    x, before = view(memory), memory.copy()
    expected = reference.dropout(x, p, seed, call)
    mask = cd.Mask(x.shape, p, seed, call)
    for y in (mask.apply(x), cd.dropout_backward(x, mask)):
        assert_equal(y, expected)
        assert y.strides == np.empty_like(x).strides
    window = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True))
    np.testing.assert_array_equal(np.asarray(mask[window]), np.asarray(mask)[window])
    if call == 2**64 - 1:  # generators do not use this call number
        mask.apply(x, out=x)
    else:
        generator = cd.Generator()
        generator.state = {"seed": seed, "calls": call, "spawned": 0}
        assert cd.dropout(x, p, inplace=True, rng=generator) is x
        assert generator.calls == call + (0 < p < 1 and x.size > 0)
    assert_equal(x, expected)
    x[...] = view(before)
    assert memory.tobytes() == before.tobytes()  # the memory around the view is unchanged

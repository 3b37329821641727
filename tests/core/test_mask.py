"""Tests of Mask: comparison, attributes, errors, drawn elements, and windows."""

import copy
import itertools
import math
import pickle
import random
import re
import sys

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import normal, pack
from ..helpers.bad_calls import assert_raises

BLOCK = reference.BLOCK
HUGE = (10**5, 10**5, 10**5)  # 10**15 elements
MASKS = [
    cd.Mask((), 0.5),
    cd.Mask(7, 0.1, -3),
    cd.Mask((2, 3), 1 / 3, 2**64 - 1, 2**64 - 1),
    cd.Mask((0, 4), 0.25, 1),
    cd.Mask((3, 5), 0, 4),
    cd.Mask([3, 5], 1, 4, 5),
    cd.Mask((3, 5), 5e-324, 4, 5, 2**63),
    cd.Mask((3, 5), 0.1, 4, 5, 100, (-20, 3)),
    cd.Mask((3, 5), 0.1, 4, 5, 2**64 - 15),
    cd.Mask(HUGE, 0.1, -1)[5:, ::-7, None, 3],
    cd.Mask((3, 5), 0.1, 4, 5, 100, (-20, 3), scale=0.1),
]


def window_positions(shape, index):
    """Return the positions that an index selects; the index has one int or slice per axis.

    Unlike `reference.window`, this function works for masks of any size.
    """
    positions = np.array(0, np.uint64)
    for axis, (item, length) in enumerate(zip(index, shape, strict=True)):
        stride = math.prod(shape[axis + 1 :])
        selected = range(length)[item]
        if isinstance(selected, int):
            positions = positions + np.uint64(selected * stride)
        else:
            offsets = np.array([i * stride for i in selected], np.uint64)
            positions = np.expand_dims(positions, -1) + offsets
    return positions


def keep_at(positions, p, seed, call):
    """Return an array of bools, True for kept elements; draw only the blocks of these positions."""
    kept = np.empty(positions.shape, bool)
    blocks = positions // np.uint64(BLOCK)
    for block in np.unique(blocks):
        keep = reference.keep(seed, call, p, int(block) * BLOCK, BLOCK)
        selected = blocks == block
        kept[selected] = keep[positions[selected] % np.uint64(BLOCK)]
    return kept


# ---- comparison and attributes ----------------------------------------------------------------


def test_masks_that_differ_in_one_argument_are_not_equal():
    copies = [copy.deepcopy(mask) for mask in MASKS]
    for a, b in itertools.product(range(len(MASKS)), repeat=2):
        assert (MASKS[a] == copies[b]) is (a == b)
        assert (MASKS[a] != copies[b]) is (a != b)
    assert {mask: i for i, mask in enumerate(MASKS)} == {mask: i for i, mask in enumerate(copies)}
    base = {"shape": (4, 6), "p": 0.5, "seed": 1, "call": 2, "start": 3, "strides": (7, 1)}
    for name, other in [("shape", (4, 5)), ("p", 0.25), ("seed", 3), ("call", 0), ("start", 0),
                        ("strides", (6, 2)), ("scale", 3.0)]:  # fmt: skip
        assert cd.Mask(**base) != cd.Mask(**{**base, name: other})
    assert MASKS[0] != "a mask" and MASKS[0] != (MASKS[0].shape, 0.5)


def test_equivalent_arguments_give_equal_masks():
    assert cd.Mask(7, 0.5) == cd.Mask((7,), np.float64(0.5), np.int64(0))
    assert cd.Mask(7, 0.5) == cd.Mask([np.uint8(7)], np.array(0.5))
    assert cd.Mask(7, 0.5, -1) == cd.Mask(7, 0.5, 2**64 - 1)
    assert cd.Mask(7, 0.5, -(2**63)) == cd.Mask(7, 0.5, 2**63)
    assert cd.Mask((4, 1, 6), 0.5, strides=(6, 99, 1)) == cd.Mask((4, 1, 6), 0.5)
    assert cd.Mask((2, 0), 0.5, strides=(8, 5)) == cd.Mask((2, 0), 0.5)


def test_attributes_of_masks():
    mask = cd.Mask((3, 5), 0.1, -4, 5, 100, (-20, 3))
    assert (mask.shape, mask.p, mask.seed, mask.call) == ((3, 5), 0.1, 2**64 - 4, 5)
    assert (mask.start, mask.strides, mask.ndim, mask.size, len(mask)) == (100, (-20, 3), 2, 15, 3)
    plain = cd.Mask((2, 3, 4), 0.5)
    assert (plain.start, plain.strides, plain.size) == (0, (12, 4, 1), 24)
    assert (cd.Mask((), 0.5).size, cd.Mask((), 0.5).ndim, cd.Mask((3, 0), 0.5).size) == (1, 0, 0)
    assert cd.Mask(HUGE, 0.5).size == 10**15
    with pytest.raises(AttributeError):
        mask.p = 0.5


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_copied_pickled_and_evaluated_masks_are_equal(mask):
    copies = [copy.copy(mask), copy.deepcopy(mask), eval(repr(mask), {"Mask": cd.Mask})]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickled = pickle.dumps(mask, protocol)
        assert len(pickled) < 400
        copies.append(pickle.loads(pickled))
    for other in copies:
        assert type(other) is cd.Mask and other == mask and hash(other) == hash(mask)
        assert (other.shape, other.p, other.seed, other.call) == (
            (mask.shape, mask.p, mask.seed, mask.call)
        )
        if other.size < 1000:
            np.testing.assert_array_equal(np.asarray(other), np.asarray(mask))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_argument_replaces_the_default_scale(dtype):
    keep = reference.keep(4, 0, 0.25, 0, 900).reshape(3, 300)
    x = normal((3, 300), dtype)
    mask = cd.Mask((3, 300), 0.25, 4, scale=0.3)
    assert mask.scale == 0.3 and mask != cd.Mask((3, 300), 0.25, 4)
    assert cd.Mask(3, 0.25).scale == 1 / 0.75 and cd.Mask(3, 1).scale == 0
    assert cd.Mask(3, 0.25, scale=1 / 0.75) == cd.Mask(3, 0.25)
    expected = np.where(keep, x * dtype(0.3), dtype(0))
    np.testing.assert_array_equal(mask.apply(x), expected)
    np.testing.assert_array_equal(cd.dropout_backward(x.copy("F"), mask), expected)
    np.testing.assert_array_equal(mask[1:, ::-2].apply(x[1:, ::-2]), expected[1:, ::-2])
    np.testing.assert_array_equal(mask.to_scale(dtype), np.where(keep, dtype(0.3), 0))
    np.testing.assert_array_equal(np.asarray(mask), keep)


SCALE = "scale has to be 0 for p = 1, otherwise positive and in the range of float32, but got "
RANGE = "a mask has positions 0 to 2**64 - 1, but this one would have positions "
LENGTH = "each length in shape has to be an int, but got "
INDICES_ONLY = "an index of a mask has to be an int, a slice, an ellipsis or None, but got "
TOO_MANY = "too many indices: the mask has {} dimensions, but {} were indexed"
ERRORS = [
    (lambda m: cd.Mask((2, -3), 0.5), ValueError,
     "shape has to contain lengths of at least 0, but got (2, -3)"),
    (lambda m: cd.Mask((2, 3.0), 0.5), TypeError, LENGTH + "float"),
    (lambda m: cd.Mask((2, True), 0.5), TypeError, LENGTH + "bool"),
    (lambda m: cd.Mask(None, 0.5), TypeError, LENGTH + "NoneType"),
    (lambda m: cd.Mask((2, 3), 0.5, strides=(1,)), ValueError,
     "strides has to have one number per axis of (2, 3), but got (1,)"),
    (lambda m: cd.Mask(3, 0.5, strides=(1.0,)), TypeError,
     "each of strides has to be an int, but got float"),
    (lambda m: cd.Mask((2**32, 2**32 + 1), 0.5), ValueError, RANGE + f"0 to {2**64 + 2**32 - 1}"),
    (lambda m: cd.Mask(2, 0.5, start=2**64 - 1), ValueError, RANGE + f"{2**64 - 1} to {2**64}"),
    (lambda m: cd.Mask(3, 0.5, start=1, strides=(-1,)), ValueError, RANGE + "-1 to 1"),
    *((lambda m, f=f: cd.Mask(3, 0.5, scale=f), ValueError, SCALE + f"{f} for p=0.5")
      for f in (0, -1.0, math.inf, math.nan, 1e-300, 1e39)),
    *((lambda m, f=f: cd.Mask(3, 0.5, scale=f), TypeError,
       f"scale has to be a number, but got {type(f).__name__}")
      for f in ("2", b"2", True, [2], np.True_, 2j, np.ones(1))),
    (lambda m: cd.Mask(3, 1, scale=2.0), ValueError, SCALE + "2.0 for p=1.0"),
    (lambda m: len(cd.Mask((), 0.5)), TypeError, "a mask of 0 dimensions has no length"),
    (lambda m: m.__array__(copy=False), ValueError,
     "a mask stores no array that could be shared: copy=False is not possible"),
    (lambda m: m[..., 0, ...], IndexError, "an index has at most one ellipsis ('...')"),
    (lambda m: m[0, None, 0, 0], IndexError, TOO_MANY.format(2, 3)),
    (lambda m: cd.Mask((), 0.5)[0], IndexError, TOO_MANY.format(0, 1)),
    (lambda m: m[2], IndexError, "index 2 is out of bounds for an axis of length 2"),
    (lambda m: m[0, -4], IndexError, "index -4 is out of bounds for an axis of length 3"),
    *((lambda m, item=item: m[item], IndexError, INDICES_ONLY + type(item).__name__)
      for item in (1.0, "0", True, [0, 1], np.array([0, 1]), np.ones(2, bool))),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", ERRORS)
def test_wrong_arguments_and_indices_raise(call, error, message):
    mask = cd.Mask((2, 3), 0.5, 1)
    assert_raises(error, f"^{re.escape(message)}$", call, mask)
    assert mask == cd.Mask((2, 3), 0.5, 1)


# ---- drawn elements ---------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0, 5e-324, 0.1, 0.5, 0.75, 1 - 2.0**-53, 1])
@pytest.mark.parametrize("shape, start", [((), 0), ((0,), 5), ((9,), 1), ((5, 13), 8190),
                                          ((3, 100, 41), 2**40 + 17)])  # fmt: skip
def test_bits_bools_and_scale_equal_the_reference(shape, start, p):
    mask = cd.Mask(shape, p, -7, 3, start)
    n = math.prod(shape)
    keep = reference.keep(-7, 3, p, start, n).reshape(shape)
    drawn = np.asarray(mask)
    assert drawn.dtype == bool and drawn.flags.c_contiguous and drawn.flags.writeable
    np.testing.assert_array_equal(drawn, keep)
    assert mask.bits().dtype == np.uint8
    np.testing.assert_array_equal(mask.bits(), reference.bits(-7, 3, p, start, n))
    for dtype in (np.float16, np.float32, np.float64, "f8"):
        scale = mask.to_scale(dtype)
        assert scale.dtype == dtype
        np.testing.assert_array_equal(scale, reference.apply(np.ones(shape, dtype), keep, p))
    assert mask.to_scale().dtype == np.float32
    x = np.arange(1.0, n + 1).reshape(shape)
    expected, out = reference.apply(x, keep, p), np.zeros_like(x)
    np.testing.assert_array_equal(mask.apply(x), expected)
    assert mask.apply(x, out) is out and mask.apply(x, out=x) is x
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(x, expected)


def test_masks_can_be_converted_to_arrays():
    mask = cd.Mask((4, 50), 0.3, 9)
    keep = reference.keep(9, 0, 0.3, 0, 200).reshape(4, 50)
    for dtype in (bool, np.uint8, np.float32, object):
        converted = np.asarray(mask, dtype)
        assert converted.dtype == dtype
        np.testing.assert_array_equal(converted, keep.astype(dtype))
    np.testing.assert_array_equal(np.array(mask, copy=True), keep)
    np.testing.assert_array_equal(np.where(mask, 1, 2), np.where(keep, 1, 2))


@pytest.mark.parametrize("start", [2**63 - 3, 2**63 + 5, 2**64 - 40])
@pytest.mark.parametrize("seed, call", [(0, 0), (2**64 - 1, 2**64 - 1), (-1, 2**63)])
def test_masks_at_the_largest_positions_equal_the_reference(start, seed, call):
    mask = cd.Mask(40, 0.3, seed, call, start)
    expected = [reference.keep_one(seed, call, 0.3, start + i) for i in range(40)]
    assert list(np.asarray(mask)) == expected
    assert list(np.asarray(mask[::-3])) == expected[::-3]
    np.testing.assert_array_equal(mask.to_scale() > 0, expected)


# ---- windows ----------------------------------------------------------------------------------


INDICES = [
    0, -1, 4, slice(None), slice(2, 4), slice(None, None, -1), slice(-2, None), slice(9, 2, -2),
    slice(3, 3), slice(4, 1), (), ..., None, (0, 1, 2), (-1, -1, -1), (..., 2), (1, ...),
    (slice(1, None, 2), ..., slice(None, None, -3)), (None, 2, None, ..., None), (..., None),
    (slice(None), 3), (slice(None), slice(5, None), 0), (2, slice(None, 0, -1)), (..., 1, 1, 1),
    (slice(-3, -1), slice(None, None, 100)), (np.int64(2), slice(np.int8(1), np.uint16(4))),
    (np.array(3), ..., slice(-100, 100)), (slice(None, None, -2),) * 3, (1, slice(7, 7), 2),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=repr)
def test_a_window_has_the_indexed_elements_of_the_mask(index):
    shape, start = (5, 9, 11), 8000
    mask = cd.Mask(shape, 0.4, 3, 1, start)
    window = mask[index]
    positions = reference.window(shape, index, start)
    assert window.shape == positions.shape and (window.seed, window.call, window.p) == (3, 1, 0.4)
    keep = reference.keep(3, 1, 0.4, start, 495)[(positions - np.uint64(start)).astype(int)]
    np.testing.assert_array_equal(np.asarray(window), keep)
    np.testing.assert_array_equal(window.bits(), pack(keep))
    x = normal(positions.shape, np.float64)
    np.testing.assert_array_equal(window.apply(x), reference.apply(x, keep, 0.4))
    assert eval(repr(window), {"Mask": cd.Mask}) == window


def random_index(rng, shape):
    """Return a random basic index into this shape: ints, slices, None and at most one '...'."""
    items = []
    for length in shape[: rng.randint(0, len(shape))]:
        if rng.random() < 0.2 and length:
            items.append(rng.randrange(-length, length))
        else:
            ends = [rng.choice([None, rng.randint(-length - 2, length + 2)]) for _ in range(2)]
            items.append(slice(*ends, rng.choice([None, 1, 2, 5, -1, -2])))
    for extra in (None, ...):
        if rng.random() < 0.3 and len(shape) < 6:
            items.insert(rng.randint(0, len(items)), extra)
    # Omit items after '...': they index the last axes, where they could be out of bounds.
    return tuple(items if ... not in items else items[: items.index(...) + 1])


def test_windows_of_windows_equal_indexed_arrays():
    rng = random.Random(4)
    whole = np.asarray(cd.Mask((6, 7, 8), 0.5, 8))
    for _ in range(400):
        mask, array = cd.Mask((6, 7, 8), 0.5, 8), whole
        for _ in range(4):
            index = random_index(rng, mask.shape)
            mask, array = mask[index], array[index]
            assert mask.shape == array.shape
        np.testing.assert_array_equal(np.asarray(mask), array)
        pickled = pickle.dumps(mask)
        assert pickle.loads(pickled) == mask and len(pickled) < 400


def test_windows_of_the_same_elements_are_equal_masks():
    mask = cd.Mask((6, 10), 0.5, 8)
    groups = [
        [mask, mask[...], mask[:], mask[()], mask[::-1][::-1], mask[:, ::-1, None][..., ::-1, 0]],
        [mask[2:5, 3], mask[2:][:3, 3], mask[:, 3][2:5], mask[2:5][:, 3], mask[4:1:-1, 3][::-1]],
        [mask[1], mask[1:2][0], mask[1:2, :][-1], cd.Mask(10, 0.5, 8, start=10)],
        [mask[1:2], mask[1][None], mask[1:5][:1], mask[1:2, ::-1][:, ::-1]],
        [mask[2, 7], mask[2][7], mask[:, 7][2], mask[2:3, 7:8][0, 0], cd.Mask((), 0.5, 8, 0, 27)],
        [mask[::2, ::3], mask[::2][:, ::3], mask[:, ::3][::2], mask[4::-2, 9::-3][::-1, ::-1]],
        [mask[3:3], mask[5:1], mask[:0], cd.Mask((0, 10), 0.5, 8)],
    ]  # fmt: skip
    for equal in groups:
        for other in equal:
            assert other == equal[0] and hash(other) == hash(equal[0]), (other, equal[0])
    assert len({equal[0] for equal in groups}) == len(groups)


def test_empty_windows_of_the_same_shape_are_equal_masks():
    mask = cd.Mask((6, 10), 0.5, 8)
    assert mask[1:3][:, 4:4] == mask[:, 4:4][1:3]
    assert mask[::-1][6:] == mask[6:]


@pytest.mark.parametrize(
    "index",
    [
        (slice(99_998, None), slice(5, 8), slice(None, None, 19_999)),
        (slice(None, None, -20_000), 99_999, slice(-300, None)),
        (50_000, slice(40_000, 40_060), slice(70_000, 70_010)),
        (-1, -1, slice(None)),
        (slice(3, 99_999, 33_332), slice(None, None, 33_333), slice(None, None, -33_333)),
        (0, 0, 0),
    ],
    ids=repr,
)
def test_windows_of_a_huge_mask_equal_the_reference(index):
    mask = cd.Mask(HUGE, 0.3, -9, 2)
    positions = window_positions(HUGE, index)
    expected = keep_at(positions, 0.3, -9, 2)
    window = mask[index]
    assert window.shape == positions.shape
    np.testing.assert_array_equal(np.asarray(window), expected)
    x = normal(positions.shape)
    np.testing.assert_array_equal(window.apply(x), reference.apply(x, expected, 0.3))
    np.testing.assert_array_equal(
        cd.dropout_backward(np.array(x, order="F"), window), reference.apply(x, expected, 0.3)
    )


def test_windows_can_be_concatenated_to_the_whole_mask():
    mask = cd.Mask((1000, 333), 0.1, 5)
    shards = [mask[i : i + 130] for i in range(0, 1000, 130)]
    np.testing.assert_array_equal(np.concatenate([np.asarray(s) for s in shards]), np.asarray(mask))
    columns = [mask[:, i : i + 50] for i in range(0, 333, 50)]
    np.testing.assert_array_equal(np.hstack([np.asarray(c) for c in columns]), np.asarray(mask))


def test_masks_have_a_length_and_can_be_iterated():
    mask = cd.Mask((3, 4), 0.5)
    assert list(mask) == [mask[0], mask[1], mask[2]]
    assert [row.shape for row in reversed(mask)] == [(4,)] * 3
    assert list(cd.Mask((0, 4), 0.5)) == [] and len(cd.Mask((0, 4), 0.5)) == 0
    assert mask[1] in mask and cd.Mask(4, 0.5, 1) not in mask


def test_a_zero_dimensional_mask_is_not_iterable():
    with pytest.raises(TypeError):
        list(cd.Mask((), 0.5))


def test_windows_with_a_stride_of_2_to_the_63_equal_the_reference():
    mask = cd.Mask((2, 2**63), 0.5, 3)[:, 5]
    expected = [reference.keep_one(3, 0, 0.5, e) for e in (5, 2**63 + 5)]
    for window, kept in ((mask, expected), (mask[::-1], expected[::-1])):
        assert list(np.asarray(window)) == kept
        assert list(window.apply(np.ones(2)) > 0) == kept


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("seed", range(10))
def test_apply_equals_the_reference_for_mask_strides_that_wrap_around(seed, order):
    """The column stride is negative and equals twice the row stride modulo 2**64."""
    columns = (2**64 + 2) // 3
    mask = cd.Mask((2, columns), 0.5, seed=seed)[:, columns - 1 :: 2 - columns]
    elements = [row * columns + column for row in (0, 1) for column in (columns - 1, 1)]
    keep = [reference.keep_one(seed, 0, 0.5, element) for element in elements]
    y = mask.apply(np.ones((2, 2), np.float32, order=order))
    np.testing.assert_array_equal(y, 2.0 * np.reshape(keep, (2, 2)))


def test_mask_strides_can_reach_position_2_to_the_64_minus_1():
    strides = (2**63 - 1, 2**63 - 1, 1)
    kept = np.asarray(cd.Mask((2, 2, 2), 0.5, seed=1, strides=strides))
    for index in np.ndindex(2, 2, 2):
        position = sum(i * stride for i, stride in zip(index, strides, strict=True))
        assert kept[index] == reference.keep(1, 0, 0.5, position, 1)[0]


def test_bool_of_a_mask_is_true_for_any_shape():
    assert cd.Mask((0,), 0.5) and cd.Mask((), 0.5)


def test_masks_that_differ_only_in_p_are_nested():
    """With 12 bits per element, a mask drops every element that a mask with a lower p drops."""
    n = 50_000
    probabilities = (2.0**-60, 0.01, 0.1, 0.1000001, 0.3, 0.7, 0.999)
    dropped = [~np.asarray(cd.Mask(n, p, 3, 4)) for p in probabilities]
    for lower, higher in itertools.pairwise(dropped):
        assert not (lower & ~higher).any() and lower.sum() <= higher.sum()
    half = ~np.asarray(cd.Mask(n, 0.5, 3, 4))  # this mask draws one bit per element
    first_groups = np.arange(n) % BLOCK < reference.GROUP
    only_lower = dropped[4] & ~half
    assert not only_lower[first_groups].any() and only_lower[~first_groups].any()
    other = ~np.asarray(cd.Mask(n, 0.3, 3, 5))
    assert (dropped[2] & ~other).any()


@pytest.mark.parametrize("shape", [5, (1 << 40,), (3, 4, 5), (1 << 20, 1 << 20, 1 << 20)])
def test_mask_objects_of_any_shape_use_little_memory(shape):
    mask = cd.Mask(shape, 0.1, seed=2**64 - 1, call=2**64 - 1)
    assert sys.getsizeof(mask) + sys.getsizeof(mask.shape) < 200

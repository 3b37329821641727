"""Tests of arrays and masks with more than 2**32 elements, and of views of such arrays."""

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.aliased_array import aliased_array
from ..helpers.arrays import normal, pack
from ..helpers.requirements import linux_only

SEED = 31
SIZE = (1 << 32) + (1 << 20)
# The tests compare 1000 elements from each of these indices on. These elements include those
# with the indices 2**31 and 2**32.
STARTS = [0, (1 << 31) - 500, (1 << 31) + (1 << 17), (1 << 32) - 500, SIZE - 1008]


def windows(array):
    return [array[start : start + 1000] for start in STARTS]


def filled(dtype):
    """Return a huge array with the same 1000 values in each window, and these values."""
    x, values = aliased_array(dtype, SIZE, STARTS), normal(1000, dtype)
    for window in windows(x):
        window[:] = values
    return x, values


@linux_only
def test_in_place_calls_change_arrays_that_are_spread_over_gigabytes():
    x = aliased_array(np.float16, SIZE)[:: SIZE >> 12]
    values = np.resize(normal(1000, np.float16), x.size)
    mask, bias = cd.Mask(x.size, 0.5, SEED), np.zeros(x.size, np.float16)
    for function in [
        lambda: cd.dropout(x, 0.5, rng=SEED, inplace=True),
        lambda: cd.dropout_backward(x, mask.bits(), True, p=0.5),
        lambda: cd.dropout_backward(x, np.asarray(mask), True, p=0.5),
        lambda: cd.bias_dropout_add(x, bias, bias, 0.5, rng=SEED, out=x),
    ]:
        x[:] = values
        function()
        np.testing.assert_array_equal(x, mask.apply(values))
    rows = x.reshape(64, 64)
    rows[:] = 1
    cd.dropout(rows, 0.5, rng=SEED, broadcast_dims=1, inplace=True)
    kept = reference.broadcast_keep(rows.shape, 0.5, SEED, 0, (1,))
    np.testing.assert_array_equal(rows, 2 * kept)


def test_bits_of_a_huge_mask_equal_the_reference():
    bits = cd.Mask(SIZE, 0.5, SEED).bits()
    for start in STARTS:
        expected = reference.bits(SEED, 0, 0.5, start // 8 * 8, 1000)
        np.testing.assert_array_equal(bits[start // 8 : start // 8 + 125], expected)


@pytest.mark.slow
@linux_only
@pytest.mark.parametrize("dtype, first", [(np.float16, 2**63 - 2**31), (np.float32, 2**64 - SIZE)])
def test_apply_equals_the_reference_for_a_huge_array(dtype, first):
    x, values = filled(dtype)
    y = aliased_array(dtype, SIZE, STARTS) if dtype is np.float16 else x
    assert cd.Mask(SIZE, 0.3, SEED, start=first).apply(x, y) is y
    for start, window in zip(STARTS, windows(y), strict=True):
        keep = reference.keep(SEED, 0, 0.3, first + start, 1000)
        np.testing.assert_array_equal(window, reference.apply(values, keep, 0.3))


@pytest.mark.slow
@linux_only
def test_dropout_changes_only_every_second_element_of_a_huge_array():
    x, values = filled(np.float16)
    cd.dropout(x[::2], 0.5, rng=SEED, inplace=True)
    for start, window in zip(STARTS, windows(x), strict=True):
        keep = reference.keep(SEED, 0, 0.5, start // 2, 500)
        np.testing.assert_array_equal(window[::2], reference.apply(values[::2], keep, 0.5))
        np.testing.assert_array_equal(window[1::2], values[1::2])


@pytest.mark.slow
@linux_only
def test_dropout_drops_whole_rows_of_a_huge_array():
    x, values = filled(np.float16)
    cd.dropout(x.reshape(1 << 12, -1), 0.5, rng=SEED, broadcast_dims=1, inplace=True)
    rows_kept = reference.keep(SEED, 0, 0.5, 0, 1 << 12)
    for start, window in zip(STARTS, windows(x), strict=True):
        keep = rows_kept[np.arange(start, start + 1000) // (SIZE >> 12)]
        np.testing.assert_array_equal(window, reference.apply(values, keep, 0.5))


@pytest.mark.slow
@linux_only
def test_dropout_backward_applies_packed_bits_to_a_huge_array():
    x, values = filled(np.float16)
    bits = aliased_array(np.uint8, SIZE // 8, [start // 8 for start in STARTS])
    keeps = [reference.keep(SEED, 0, 0.5, start // 8 * 8, 1008) for start in STARTS]
    for start, keep in zip(STARTS, keeps, strict=True):
        bits[start // 8 : start // 8 + 126] = pack(keep)[: bits.size]
    cd.dropout_backward(x, bits, True, p=0.5)
    for start, window, keep in zip(STARTS, windows(x), keeps, strict=True):
        kept = keep[start % 8 :][:1000]
        np.testing.assert_array_equal(window, reference.apply(values, kept, 0.5))


@pytest.mark.slow
@linux_only
def test_bias_dropout_add_equals_the_reference_for_a_huge_array():
    x, values = filled(np.float32)
    table = x.reshape(-1, 1 << 20)
    cd.bias_dropout_add(table, np.zeros(1 << 20, np.float32), table, 0.5, rng=SEED, out=table)
    for start, window in zip(STARTS, windows(x), strict=True):
        keep = reference.keep(SEED, 0, 0.5, start, 1000)
        np.testing.assert_array_equal(window, reference.apply(values, keep, 0.5) + values)

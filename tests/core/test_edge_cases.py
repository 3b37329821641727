"""Tests of rare masks, whose constant c would be 0 or whose strides wrap around."""

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers import kernel_tables as tables
from ..helpers.requirements import ISAS

MASK64 = 2**64 - 1


@pytest.mark.parametrize("c", [0, 1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_constant_c_of_a_mask_is_never_0(isa, c):
    """If c were 0, the state of a lane could be 0. Masks whose c would be 0 have c = 1 instead."""
    table, seed, p, n = tables.tables()[isa], 7, 0.1, 20000
    _, first, _ = reference.mask_constants(seed, 0)
    call = (c - first) & MASK64
    assert reference.mask_constants(seed, call)[1] == (c or 1)
    bits = np.zeros(n // 8, np.uint8)
    table.bits(bits.ctypes.data, n, tables.new_mask(table, p, seed, call), 0)
    assert bits.tobytes() == reference.bits(seed, call, p, 0, n).tobytes()


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("seed", range(10))
def test_apply_with_mask_strides_that_wrap_around(seed, order):
    """The stride between columns, which is negative, is twice the row stride modulo 2**64."""
    columns = (2**64 + 2) // 3
    mask = cd.Mask((2, columns), 0.5, seed=seed)[:, columns - 1 :: 2 - columns]
    elements = [row * columns + column for row in (0, 1) for column in (columns - 1, 1)]
    keep = [reference.keep_one(seed, 0, 0.5, element) for element in elements]
    y = mask.apply(np.ones((2, 2), np.float32, order=order))
    np.testing.assert_array_equal(y, 2.0 * np.reshape(keep, (2, 2)))

"""What few masks meet: a constant that would be 0, steps whose product wraps around."""

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers import kernel_tables as tables
from ..helpers.requirements import ISAS

MASK64 = 2**64 - 1


@pytest.mark.parametrize("c", [0, 1, 2])
@pytest.mark.parametrize("isa", ISAS)
def test_c_is_never_0(isa, c):
    """One call of a seed would have 0, with which both words of a lane could be 0: it has 1."""
    table, seed, p, n = tables.tables()[isa], 7, 0.1, 20000
    _, first, _ = reference.mask_constants(seed, 0)
    call = (c - first) & MASK64
    assert reference.mask_constants(seed, call)[1] == (c or 1)
    bits = np.zeros(n // 8, np.uint8)
    table.bits(bits.ctypes.data, n, tables.new_mask(table, p, seed, call), 0)
    assert bits.tobytes() == reference.bits(seed, call, p, 0, n).tobytes()


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("seed", range(10))
def test_steps_whose_product_wraps_around(seed, order):
    """Rows 2^64 / 3 apart, columns as far backwards: twice the one is the other, modulo 2^64."""
    columns = (2**64 + 2) // 3
    mask = cd.Mask((2, columns), 0.5, seed=seed)[:, columns - 1 :: 2 - columns]
    elements = [row * columns + column for row in (0, 1) for column in (columns - 1, 1)]
    keep = [reference.keep_one(seed, 0, 0.5, element) for element in elements]
    y = mask.apply(np.ones((2, 2), np.float32, order=order))
    np.testing.assert_array_equal(y, 2.0 * np.reshape(keep, (2, 2)))

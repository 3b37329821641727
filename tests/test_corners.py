"""What few masks meet: constants that would be 0."""

import numpy as np
import pytest

import reference
import tables

MASK64 = 2**64 - 1


@pytest.mark.parametrize("c", [0, 1, 2])
@pytest.mark.parametrize("isa", tables.tables())
def test_c_is_never_0(isa, c):
    """One call of a seed would have 0, with which both words of a lane could be 0: it has 1."""
    table, seed, p, n = tables.tables()[isa], 7, 0.1, 20000
    _, first, _ = reference.mask_constants(seed, 0)
    call = (c - first) & MASK64
    assert reference.mask_constants(seed, call)[1] == (c or 1)
    bits = np.zeros(n // 8, np.uint8)
    table.bits(bits.ctypes.data, n, tables.new_mask(table, p, seed, call), 0)
    assert bits.tobytes() == reference.bits(seed, call, p, 0, n).tobytes()

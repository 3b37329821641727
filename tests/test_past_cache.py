"""Large outputs are stored past the cache: the same bytes, and nothing else."""

import random

import numpy as np
import pytest

from cdropout.core import dispatch

import reference
import tables
from tables import DTYPES, Room, new_mask, numbers, octets, room_of

SEED, CALL, P = 0xFEDCBA9876543210, 2**40 + 3, 0.3  # those of new_mask
LENGTHS = [0, 1, 127, 128, 129, 511, 512, 513, 640, 1023, 1024, 1025, 1600, 8191, 8704, 20000]
START = 2**33 - 77


@pytest.fixture(params=tables.tables())
def table(request):
    tables.store_past_cache(request.param, 0)
    yield tables.tables()[request.param]
    tables.store_past_cache(request.param, dispatch.largest_cached)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("n", LENGTHS)
def test_the_same_bytes(table, dtype, n):
    keep, mask, code = reference.keep(SEED, CALL, P, START, n), new_mask(table, P), DTYPES[dtype]
    x, rng = numbers(dtype, 20000)[:n], random.Random(n)
    want, bits = reference.apply(x, keep, P), np.packbits(keep, bitorder="little")
    for offset in [*range(0, 64, x.itemsize), 1, rng.randrange(64)]:
        source, target = room_of(x, rng.randrange(64)), Room(x.nbytes, offset)
        assert table.apply(code, source.address, target.address, n, mask, START) == 0
        assert target.holds(want) and source.holds(x)
        target.inside[:] = octets(x)
        table.apply_bits(code, source.address, target.address, n, bits.ctypes.data, 0, 1 / 0.7)
        assert target.holds(want)
        table.apply(code, source.address, source.address, n, mask, START)  # in place: as ever
        assert source.holds(want)


def test_from_how_many_bytes():
    assert dispatch.largest_cached >= 1 << 18

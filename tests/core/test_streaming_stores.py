"""Tests that kernels write the same output with streaming stores, and write nothing else."""

import random

import pytest

from cdropout._core import dispatch

from .. import reference
from ..helpers import kernel_tables as tables
from ..helpers.arrays import pack
from ..helpers.kernel_tables import (
    DTYPES,
    PART_OF_LARGE,
    GuardedBuffer,
    as_bytes,
    guarded_copy,
    new_mask,
    numbers,
)
from ..helpers.requirements import ISAS, slow

SEED, CALL, P = 0xFEDCBA9876543210, 2**40 + 3, 0.3  # SEED and CALL are the defaults of new_mask
LENGTHS = [0, 127, 129, 512, 640, 1025, 8704, 20000]
LENGTHS += slow(1, 128, 511, 513, 1023, 1024, 1600, 8191)
START = 2**33 - 77


@pytest.fixture(params=ISAS)
def table(request):
    tables.set_streaming_threshold(request.param, 0)
    yield tables.tables()[request.param]
    tables.set_streaming_threshold(request.param, dispatch.streaming_threshold)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("n", LENGTHS)
def test_streaming_stores_do_not_change_the_output(table, dtype, n):
    keep, mask, code = reference.keep(SEED, CALL, P, START, n), new_mask(table, P), DTYPES[dtype]
    x, rng = numbers(dtype, 20000)[:n], random.Random(n)
    want, bits = reference.apply(x, keep, P), pack(keep)
    for offset in [*range(0, 64, x.itemsize), 1, rng.randrange(64)]:
        source, target = guarded_copy(x, rng.randrange(64)), GuardedBuffer(x.nbytes, offset)
        assert table.apply(code, 0, source.address, target.address, n, mask, START) == 0
        assert target.holds(want) and source.holds(x)
        target.inside[:] = as_bytes(x)
        where = source.address, target.address, n
        table.apply_bits(code, 0, *where, bits.ctypes.data, 0, 1 / 0.7)
        assert target.holds(want)
        table.apply(code, 0, source.address, source.address, n, mask, START)  # in place
        assert source.holds(want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.__name__)
def test_flag_part_of_large_does_not_change_the_output(isa, dtype):
    table, n = tables.tables()[isa], 20000
    x, keep = numbers(dtype, n), reference.keep(SEED, CALL, P, START, n)
    mask, y = new_mask(table, P), GuardedBuffer(x.nbytes, 4)
    bits = pack(keep)
    where = DTYPES[dtype], PART_OF_LARGE, x.ctypes.data, y.address, n
    assert table.apply(*where, mask, START) == 0
    assert y.holds(reference.apply(x, keep, P))
    y.inside[:] = 0
    assert table.apply_bits(*where, bits.ctypes.data, 0, 1 / 0.7) == 0
    assert y.holds(reference.apply(x, keep, P))


def test_default_streaming_threshold_is_at_least_256_kib():
    assert dispatch.streaming_threshold >= 1 << 18

"""Tests of the mask stream on each instruction set: recorded hashes, rates, and rare constants."""

import hashlib
import json
import math
from importlib.resources import files

import numpy as np
import pytest

from .. import reference
from ..helpers import kernel_tables as tables
from ..helpers.arrays import pack
from ..helpers.requirements import ISAS, slow

SIGMAS = 5.2  # two-sided tail probability: 2e-7 per test
every_isa = pytest.mark.parametrize("isa", ISAS)


@every_isa
def test_masks_of_each_isa_have_the_recorded_hashes(isa):
    table = tables.tables()[isa]
    records = json.loads(files("cdropout").joinpath("stream_v1.json").read_text())
    assert len(records) == 220
    for case in records:
        n, start, p = case["n"], case["start"], float.fromhex(case["p"])
        mask = tables.new_mask(table, p, case["seed"] % 2**64, case["call"])
        bits, bools = tables.GuardedBuffer(-(-n // 8)), tables.GuardedBuffer(n)
        y = tables.guarded_copy(np.ones(n))
        table.bits(bits.address, n, mask, start)
        table.bools(bools.address, n, mask, start)
        table.apply(tables.DTYPES[np.float64], 0, y.address, y.address, n, mask, start)
        kept = y.inside.view(np.float64) != 0
        for drawn in (bits.inside, pack(bools.inside), pack(kept)):
            assert hashlib.sha256(drawn.tobytes()).hexdigest() == case["sha256"], case


def count_ones(packed):
    if hasattr(np, "bitwise_count"):  # added in NumPy 2.0
        return int(np.bitwise_count(packed).sum(dtype=np.int64))
    ones = np.array([value.bit_count() for value in range(256)], np.uint8)
    return int(ones[packed].sum(dtype=np.int64))


@every_isa
@pytest.mark.parametrize("p", [0.1, 0.5, *slow(0.001, 0.25, 0.9)])
def test_rate_of_dropped_elements_is_p_with_each_isa(isa, p):
    table, n = tables.tables()[isa], 1 << 27
    mask = tables.new_mask(table, p)
    drawn = np.empty(n // 8, np.uint8)
    table.bits(drawn.ctypes.data, n, mask, 12345)
    dropped = n - count_ones(drawn)
    assert abs(dropped - n * p) < SIGMAS * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("c", [0, 1, 2])
@every_isa
def test_constant_c_of_a_mask_is_never_0(isa, c):
    """If c were 0, the state of a lane could be 0. Masks whose c would be 0 have c = 1 instead."""
    table, seed, p, n = tables.tables()[isa], 7, 0.1, 20000
    _, first, _ = reference.mask_constants(seed, 0)
    call = (c - first) % 2**64
    assert reference.mask_constants(seed, call)[1] == (c or 1)
    bits = np.zeros(n // 8, np.uint8)
    table.bits(bits.ctypes.data, n, tables.new_mask(table, p, seed, call), 0)
    assert bits.tobytes() == reference.bits(seed, call, p, 0, n).tobytes()

"""Tests that kernels of each instruction set give the results of the reference implementation.

The kernels are called through the C table. Most tests of strided kernels are in test_view.py.
"""

import itertools
import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest

from .. import reference
from ..helpers import kernel_tables as tables
from ..helpers.arrays import every_half, pack
from ..helpers.kernel_tables import DTYPES, Axis, GuardedBuffer, as_bytes, guarded_copy, new_mask
from ..helpers.requirements import ISAS, slow

SEED, CALL = 0xFEDCBA9876543210, 2**40 + 3  # the defaults of new_mask
PROBABILITIES = [0, 5e-324, 0.0625, 0.1, 0.5, 1 - 2**-53, 1, *slow(0.001, 0.25, 0.3, 0.75, 0.9)]
LENGTHS = [*range(71), *range(126, 132), *range(510, 515), 1023, 1024, 1025, 8191, 8192, 8193,
           16383, 16384, 16385, 20000]  # fmt: skip
STARTS = [0, 1, 7, 8, 31, 63, 64, 65, 511, 512, 513, 8191, 8192,
          2**31 - 5, 2**32 - 3, 2**40 + 17, 2**62 + 1]  # fmt: skip
MAX_LENGTH = max(LENGTHS)
LONG = (1 << 21) + 4321  # number of elements of a long range


@pytest.fixture(params=ISAS)
def table(request):
    return tables.tables()[request.param]


@pytest.fixture(params=DTYPES, ids=lambda dtype: dtype.__name__)
def dtype(request):
    return request.param


@cache
def kept(p, start, n=MAX_LENGTH):
    return reference.keep(SEED, CALL, p, start, n)


def numbers(dtype, n=MAX_LENGTH):
    return tables.numbers(dtype, n)


@cache
def expected(dtype, p, start, n=MAX_LENGTH):
    return reference.apply(numbers(dtype, n), kept(p, start, n), p)


def unpack(bits):
    return np.unpackbits(bits, bitorder="little").astype(bool)


def check(kernel, x, want, rng):
    """Assert that kernel(x, y) writes `want`, out of place and in place, at random alignments."""
    source, target = guarded_copy(x, rng.randrange(64)), GuardedBuffer(x.nbytes, rng.randrange(64))
    assert kernel(source.address, target.address) == 0
    assert target.holds(want) and source.holds(x), (source.address % 64, target.address % 64)
    assert kernel(source.address, source.address) == 0
    assert source.holds(want), source.address % 64


# ---- apply, bits and bools --------------------------------------------------------------------


@pytest.mark.parametrize("ranges", [40, *slow(400)])
@pytest.mark.parametrize("p", PROBABILITIES)
def test_apply_equals_the_reference(table, dtype, p, ranges):
    mask, apply, rng = new_mask(table, p), table.apply, random.Random(f"{dtype} {p}")
    before = bytes(mask)
    for start, n in rng.sample(list(itertools.product(STARTS, LENGTHS)), ranges):

        def kernel(x, y, n=n, start=start):
            return apply(DTYPES[dtype], 0, x, y, n, mask, start)

        check(kernel, numbers(dtype)[:n], expected(dtype, p, start)[:n], rng)
    assert bytes(mask) == before


@pytest.mark.parametrize("ranges", [200, *slow(len(STARTS) * len(LENGTHS))])
@pytest.mark.parametrize("p", PROBABILITIES)
def test_bits_and_bools_equal_the_reference(table, p, ranges):
    mask, bits, bools, rng = new_mask(table, p), table.bits, table.bools, random.Random(f"{p}")
    for start, n in rng.sample(list(itertools.product(STARTS, LENGTHS)), ranges):
        keep = kept(p, start)[:n]
        for kernel, want in [(bits, pack(keep)), (bools, keep)]:
            out = GuardedBuffer(want.nbytes, rng.randrange(64))
            kernel(out.address, n, mask, start)
            assert out.holds(want), (start, n, out.address % 64)


def test_apply_uses_the_scale_of_the_mask(table, dtype):
    mask, x, keep = new_mask(table, 0.3), numbers(dtype, 1000), kept(0.3, 7, 1000)
    for p in (0.0, 0.75):
        mask.scale, y = 1 / (1 - p), guarded_copy(x)
        assert table.apply(DTYPES[dtype], 0, y.address, y.address, 1000, mask, 7) == 0
        assert y.holds(reference.apply(x, keep, p))


@pytest.mark.parametrize(
    "p, start, offset",
    [
        (0.3, 1000, 0),
        pytest.param(0.5, 2**33 - 77, 8, marks=pytest.mark.slow),
        pytest.param(0.1, 5, 3, marks=pytest.mark.slow),
    ],
)
def test_kernels_equal_the_reference_on_long_ranges(table, dtype, p, start, offset):
    mask, x, want = new_mask(table, p), numbers(dtype, LONG), expected(dtype, p, start, LONG)
    packed, code = pack(kept(p, start, LONG)), DTYPES[dtype]
    source, target = guarded_copy(x), GuardedBuffer(x.nbytes, offset)
    bits = GuardedBuffer(packed.nbytes, offset)
    table.bits(bits.address, LONG, mask, start)
    assert bits.holds(packed)
    table.apply(code, 0, source.address, target.address, LONG, mask, start)
    assert target.holds(want)
    target.inside[:] = tables.SENTINEL
    table.apply_bits(code, 0, source.address, target.address, LONG, bits.address, 0, mask.scale)
    assert target.holds(want)
    table.apply(code, 0, source.address, source.address, LONG, mask, start)
    assert source.holds(want)


@pytest.mark.parametrize("before_end", [0, 1, 8191, *slow(63, 511, 512, 8192, 20000)])
def test_kernels_equal_the_reference_at_the_last_positions(table, dtype, before_end):
    mask = new_mask(table, 0.3)
    for n in (1, 2, 63, 64, 65, 512, 513, 8192, 8193, 20000):
        start = 2**64 - before_end - n
        keep, x = kept(0.3, start, n), numbers(dtype, n)
        source, bools, bits = guarded_copy(x), GuardedBuffer(n), GuardedBuffer(-(-n // 8))
        table.apply(DTYPES[dtype], 0, source.address, source.address, n, mask, start)
        table.bools(bools.address, n, mask, start)
        table.bits(bits.address, n, mask, start)
        assert source.holds(reference.apply(x, keep, 0.3)), n
        assert bools.holds(keep) and bits.holds(pack(keep)), n
    assert reference.keep_one(SEED, CALL, 0.3, start + n - 1) == keep[-1]


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_two_parts_of_a_range_equal_the_whole(table, dtype, p):
    mask, rng, code = new_mask(table, p), random.Random(3), DTYPES[dtype]
    for _ in range(200):
        start, n = rng.choice(STARTS) + rng.randrange(9000), rng.choice([100, 1000, 20000])
        x, cut = numbers(dtype)[:n], rng.randrange(n + 1)
        source = guarded_copy(x)
        whole, parts = GuardedBuffer(x.nbytes), GuardedBuffer(x.nbytes)
        to, middle = parts.address, cut * x.itemsize
        table.apply(code, 0, source.address, whole.address, n, mask, start)
        table.apply(code, 0, source.address, to, cut, mask, start)
        table.apply(code, 0, source.address + middle, to + middle, n - cut, mask, start + cut)
        assert parts.holds(whole.inside), (start, n, cut)


def test_an_element_is_kept_if_its_random_number_equals_p(table):
    """The random number of the element equals the first p and is less than the second p."""
    # This is the first element whose 12 drawn bits are 0 and whose hash is a multiple of 4096.
    seed, call, element = 1, 0, 23_804_840
    _, _, tie = reference.mask_constants(seed, call)
    hashed = reference.mix(tie + reference.GAMMA * (element + 1))
    assert hashed % 4096 == 0
    for T, keep in [(hashed >> 12, True), ((hashed >> 12) + 1, False)]:
        p = math.ldexp(T, -64)
        assert reference.keep_one(seed, call, p, element) == keep
        mask, y = new_mask(table, p, seed, call), guarded_copy(np.ones(1))
        assert mask.threshold == T
        table.apply(DTYPES[np.float64], 0, y.address, y.address, 1, mask, element)
        assert y.holds(np.full(1, mask.scale if keep else 0.0))
        for kernel in (table.bits, table.bools):
            bit = GuardedBuffer(1)
            kernel(bit.address, 1, mask, element)
            assert bit.holds(np.array([keep]))


# ---- apply_bits -------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [20, *slow(len(LENGTHS))])
@pytest.mark.parametrize("p", [0.3, 0.9])
def test_apply_bits_equals_the_reference(table, dtype, p, lengths):
    apply_bits, scale, rng = table.apply_bits, new_mask(table, p).scale, random.Random(4)
    bits, x = np.random.default_rng(6).integers(0, 256, 3600, np.uint8), numbers(dtype)
    for first in (*range(10), 31, 32, 33, 63, 64, 65, 511, 512, 8191, 8193):
        want = reference.apply(x, unpack(bits)[first : first + MAX_LENGTH], p)
        for n in rng.sample(LENGTHS, lengths):
            # the packed bits end with the last byte that is needed
            packed = guarded_copy(bits[: (first + n + 7) // 8], rng.randrange(8))

            def kernel(x, y, n=n, first=first, packed=packed):
                return apply_bits(DTYPES[dtype], 0, x, y, n, packed.address, first, scale)

            check(kernel, x[:n], want[:n], rng)


def test_apply_bits_equals_the_reference_at_a_large_bit_offset(table, dtype):
    x, first = numbers(dtype, 999), 2**32 + 5
    bits = np.zeros(2**29 + 200, np.uint8)  # only pages that are used take memory
    bits[2**29 :] = np.random.default_rng(7).integers(0, 256, 200)
    keep, y = unpack(bits[2**29 :])[5 : 5 + len(x)], GuardedBuffer(x.nbytes)
    where = x.ctypes.data, y.address, len(x), bits.ctypes.data
    table.apply_bits(DTYPES[dtype], 0, *where, first, 2.0)
    assert y.holds(reference.apply(x, keep, 0.5))


# ---- bias, dropout and residual ---------------------------------------------------------------


ROWS = [(0, 3), (3, 0), (1, 1), (1, 600), (600, 1), (7, 5), (5, 31), (4, 64), (3, 513), (20, 1000)]


def add(x, other):
    """Return x + other in the type of x; for half types, first round to float32."""
    real = reference.computation_dtype(x.dtype)
    with np.errstate(all="ignore"):
        total = x.astype(real) + other.astype(real)
    if np.dtype(x.dtype).name not in reference.HALVES:
        return total
    bits = reference.round_to_half(total.view(np.uint32), np.dtype(x.dtype).name)
    return bits.view(x.dtype).reshape(total.shape)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("p", [0, 0.1, 0.5, 1])
def test_bias_dropout_add_equals_the_reference(table, dtype, p, bias):
    # The inputs contain no NaN, because the sum of two NaNs can be either NaN.
    values = np.nan_to_num(numbers(dtype, MAX_LENGTH + 1000), posinf=np.inf, neginf=-np.inf)
    values[::5] = -0.0  # -0.0 plus the +0.0 of a dropped element is +0.0
    start, rng = 2**33 - 77, random.Random(7)
    for (rows, columns), output in itertools.product(ROWS, ["separate", "x", "residual"]):
        n = rows * columns
        inputs = {"x": values[:n], "bias": values[99 : 99 + columns], "residual": values[7 : 7 + n]}
        x = inputs["x"].reshape(rows, columns)
        biased = add(x, inputs["bias"]) if bias else x
        want = add(inputs["residual"], reference.apply(biased.reshape(n), kept(p, start)[:n], p))
        buffers = {name: guarded_copy(array, rng.randrange(64)) for name, array in inputs.items()}
        buffers["separate"] = GuardedBuffer(want.nbytes, rng.randrange(64))
        addresses = {name: buffer.address for name, buffer in buffers.items()}
        addresses["bias"] = addresses["bias"] if bias else None
        where = *(addresses[name] for name in [*inputs, output]), rows, columns
        assert table.bias_dropout_add(DTYPES[dtype], *where, new_mask(table, p), start) == 0
        assert buffers.pop(output).holds(want), (rows, columns, output)
        assert all(buffers[name].holds(inputs[name]) for name in inputs if name in buffers)


@pytest.mark.parametrize("p", [0, 0.1, 0.5, 1])
def test_bias_dropout_add_backward_equals_the_reference(table, dtype, p):
    start, rng = 2**33 - 77, random.Random(8)
    values = np.random.default_rng(9).normal(size=MAX_LENGTH)
    for (rows, columns), separate in itertools.product(ROWS, [True, False]):
        n = rows * columns
        gy = values[:n].astype(dtype)
        want = reference.apply(gy, kept(p, start)[:n], p)
        sums = np.zeros(columns)
        for row in want.reshape(rows, columns):  # row by row, because the order affects rounding
            sums += row.astype(np.float64)
        source, total = guarded_copy(gy, rng.randrange(64)), guarded_copy(np.zeros(columns), 8)
        target = GuardedBuffer(gy.nbytes, rng.randrange(64)) if separate else source
        where = source.address, target.address, total.address, rows, columns
        code, mask = DTYPES[dtype], new_mask(table, p)
        assert table.bias_dropout_add_backward(code, *where, mask, start) == 0
        assert target.holds(want) and total.holds(sums), (rows, columns, separate)
        assert not separate or source.holds(gy)


# ---- special values and bad arguments ---------------------------------------------------------


def product(value, scale, dtype):
    """Return value * scale rounded to dtype; scale > 0. For half types, first round to float32."""
    if not np.isfinite(value):
        return value
    try:  # for two float32 numbers, the product is exact in float64
        rounded = float(Fraction(float(value)) * Fraction(float(scale)))
    except OverflowError:
        rounded = math.inf
    with np.errstate(over="ignore"):
        rounded = rounded if dtype is np.float64 else np.float32(rounded)
        return np.copysign(dtype(rounded), value)


@pytest.mark.parametrize("kernel", ["apply", "apply_bits", "apply_bools_strided"])
@pytest.mark.parametrize("p", [0.3, 1 - 2**-53, *slow(0.1, 0.5, 0.9)])
def test_kernels_round_products_of_special_values_correctly(table, dtype, p, kernel):
    info, n = ml_dtypes.finfo(dtype), 3001
    limits = info.smallest_subnormal, info.smallest_normal, info.max
    tiny, normal, largest = map(float, limits)
    values = [np.nan, np.inf, 0, tiny, 3 * tiny, 0.7 * normal, normal, 1, 1 / 3]
    values += [largest / 2, largest]
    special = np.array([sign * value for value in values for sign in (1, -1)], dtype)
    x, buffer = np.resize(special, n), GuardedBuffer(n * special.itemsize)
    scale = reference.scale(p, dtype)
    y = np.resize(np.array([product(value, scale, dtype) for value in special], dtype), n)
    mask, code, keep = new_mask(table, p), DTYPES[dtype], kept(p, 7, n)
    source, to, bits, out = x.ctypes.data, buffer.address, pack(keep), buffer.inside.view(dtype)
    if kernel == "apply":
        table.apply(code, 0, source, to, n, mask, 7)
    elif kernel == "apply_bits":
        table.apply_bits(code, 0, source, to, n, bits.ctypes.data, 0, mask.scale)
    else:
        axis = Axis(n, x.itemsize, x.itemsize, 1)
        table.apply_bools_strided(code, 0, source, to, 1, axis, keep.ctypes.data, mask.scale)
    np.testing.assert_array_equal(as_bytes(out[~keep]), 0)  # dropped elements are +0.0, not -0.0
    np.testing.assert_array_equal(np.isnan(out[keep]), np.isnan(x[keep]))
    number = keep & ~np.isnan(x)
    np.testing.assert_array_equal(as_bytes(out[number]), as_bytes(y[number]))


@pytest.mark.parametrize("p", [0.1, 1 / 3, 0.5, 0.9, 1 - 2**-20])
@every_half
def test_apply_bits_with_every_half_precision_number(table, dtype, p):
    """Some kernels load elements in pairs. Each number is tested as first and as second element."""
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    want, bits = reference.apply(x, np.ones(65536, bool), p), np.full(8192, 255, np.uint8)
    for shift in (0, 1):
        y = guarded_copy(np.roll(x, shift))
        where = y.address, y.address, 65536, bits.ctypes.data
        table.apply_bits(DTYPES[dtype], 0, *where, 0, 1 / (1 - p))
        assert y.holds(np.roll(want, shift))


def test_mask_init_equals_the_reference(table):
    mask, rng = tables.Mask(), np.random.default_rng(8)
    exact = [0.0, -0.0, 0.5, 1.0, 2.0**-64, 2.0**-12, 2.0**-11, 0.1, 1 / 3]
    near = [math.nextafter(p, to) for p in exact for to in (0.0, 1.0)]
    for p in [*exact, *near, *rng.random(1000), *np.exp2(-75 * rng.random(1000))]:
        assert table.mask_init(mask, 2**64 - 1, 2**63 + 1, p) == 0
        want = (reference.threshold(p) if 0 < p < 1 else 0, reference.scale(p, np.float64))
        assert (mask.threshold, mask.scale) == want, p
        assert (mask.seed, mask.call) == (2**64 - 1, 2**63 + 1)


@pytest.mark.parametrize(
    "p", [math.nan, -math.nan, math.inf, -math.inf, -5e-324, math.nextafter(1, 2), -1, 2, 1e300]
)
def test_mask_init_returns_minus_1_for_an_invalid_p(table, p):
    mask = tables.Mask(1, 2, 3, 4.0)
    assert table.mask_init(mask, 5, 6, p) == -1
    assert bytes(mask) == bytes(tables.Mask(1, 2, 3, 4.0))


@pytest.mark.parametrize("code", [-1, 4, 77, 2**31 - 1])
@pytest.mark.parametrize("p", [0, 0.5, 1])
def test_kernels_return_minus_1_for_an_unknown_dtype(table, code, p):
    mask, x = new_mask(table, p), guarded_copy(np.ones(100))
    y, keep = GuardedBuffer(800), GuardedBuffer(100)
    assert table.apply(code, 0, x.address, y.address, 100, mask, 0) == -1
    assert table.apply_bits(code, 0, x.address, y.address, 100, keep.address, 0, 2.0) == -1
    where = x.address, x.address, x.address, y.address, 10, 10
    assert table.bias_dropout_add(code, *where, mask, 0) == -1
    assert table.bias_dropout_add_backward(code, *where[1:], mask, 0) == -1
    assert y.holds(np.full(800, tables.SENTINEL, np.uint8)) and x.holds(np.ones(100))


# ---- threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [4, *slow(20)])
def test_threads_can_write_adjacent_ranges(table, dtype, rounds):
    """Ranges end within cache lines, so that two threads can write to the same cache line."""
    n, threads, start, p = 1_000_000, 8, 99, 0.3
    mask, code, x = new_mask(table, p), DTYPES[dtype], numbers(dtype, n)
    source, size, rng = x.ctypes.data, x.itemsize, random.Random(6)
    barrier = threading.Barrier(threads)

    def work(ranges, y):
        barrier.wait(timeout=60)
        for first, last in ranges:
            where = source + first * size, y.address + first * size
            table.apply(code, 0, *where, last - first, mask, start + first)

    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            ranges = list(itertools.pairwise(sorted([0, n, *rng.choices(range(n), k=40)])))
            y = GuardedBuffer(x.nbytes, rng.randrange(8))
            futures = [pool.submit(work, ranges[i::threads], y) for i in range(threads)]
            for future in futures:
                future.result()
            assert y.holds(expected(dtype, p, start, n))

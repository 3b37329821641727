"""Tests of masking and scaling with all values of float16 and bfloat16."""

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers import kernel_tables as tables
from ..helpers.arrays import assert_same_bits, every_half, pack
from ..helpers.requirements import ISAS

SEED = 0x0123456789ABCDEF
# These p give scales that are powers of 2, have many bits, or are too large for float16.
PROBABILITIES = [5e-324, 0.1, 0.25, 0.3, 0.5, 0.9, 0.999, 1 - 2.0**-10, 1 - 2.0**-40, 1 - 2.0**-53]


def every_number(dtype):
    """Return all bit patterns of a half type, in an order in which neighbours differ greatly."""
    patterns = np.arange(65536, dtype=np.uint32) * 40503 % 65536  # 40503 is odd: all patterns occur
    return patterns.astype(np.uint16).view(dtype)


def test_every_number_returns_65536_patterns():
    assert len(set(every_number(np.float16).view(np.uint16).tolist())) == 65536


@every_half
@pytest.mark.parametrize("p", [*PROBABILITIES, 1])
def test_dropout_equals_the_reference_for_every_number(p, dtype):
    x = every_number(dtype)
    want = reference.dropout(x, p, SEED, 0)
    out = np.empty_like(x)
    y, mask = cd.dropout(x, p, rng=SEED, return_mask=True, out=out)
    assert y is out
    assert_same_bits(y, want)
    assert_same_bits(cd.dropout(x, p, rng=SEED), want)
    assert_same_bits(cd.dropout_backward(x, mask), want)
    x = x.copy()
    assert cd.dropout(x, p, inplace=True, rng=SEED) is x
    assert_same_bits(x, want)


@every_half
def test_dropout_in_evaluation_copies_every_number(dtype):
    x = every_number(dtype)
    assert_same_bits(cd.dropout(x, 0, out=np.empty_like(x)), x)
    assert_same_bits(cd.dropout(x, 0.5, False, out=np.empty_like(x)), x)


@every_half
@pytest.mark.parametrize("p", PROBABILITIES)
def test_dropout_with_a_given_mask_equals_the_reference_for_every_number(p, dtype):
    """Each number is kept by either the first or the second mask, and by the third mask."""
    x = every_number(dtype)
    keep = np.random.default_rng(1).integers(0, 2, x.shape).astype(bool)
    for bools in (keep, ~keep, np.ones_like(keep)):
        want = reference.apply(x, bools, p)
        for mask in (bools, pack(bools)):
            assert_same_bits(cd.dropout(x, p, mask=mask), want)
            assert_same_bits(cd.dropout_backward(x, mask, p=p), want)
            y = x.copy()
            assert cd.dropout(y, p, inplace=True, mask=mask) is y
            assert_same_bits(y, want)


@pytest.mark.parametrize("isa", ISAS)
@every_half
def test_apply_bits_multiplies_by_a_scale_of_0(isa, dtype):
    """Infinity times 0 is NaN; a finite number becomes 0 with the same sign."""
    x, bits = every_number(dtype), np.full(1 << 13, 255, np.uint8)
    y = np.empty_like(x)
    where = x.ctypes.data, y.ctypes.data, x.size, bits.ctypes.data
    tables.tables()[isa].apply_bits(tables.DTYPES[dtype], 0, *where, 0, 0.0)
    with np.errstate(all="ignore"):  # NumPy warns about signalling NaNs of type bfloat16
        finite = np.isfinite(x)
        assert np.isnan(y[~finite]).all() and not y[finite].any()
        np.testing.assert_array_equal(np.signbit(y[finite]), np.signbit(x[finite]))


# Bit patterns of 0 and of numbers at the ends of these ranges of float16 or bfloat16: subnormal
# numbers, numbers whose product can overflow, finite numbers, and signalling NaNs.
SPECIAL = [0x0000, 0x0001, 0x03FF, 0x0400, 0x6FFF, 0x7000, 0x73FF, 0x7400, 0x77FE, 0x7800, 0x7BFE,
           0x7BFF, 0x7C00, 0x7C01, 0x7DFF, 0x7E00, 0x7F7F, 0x7F80, 0x7F81, 0x7FFF]  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@every_half
@pytest.mark.parametrize(
    "scale",
    [2.0**-70, 2.0**-65, 0.3, 1, 1 + 2.0**-23, 10 / 9, 2, 3.7, 8191, 8192, 16384, 2.0**40, 1e38],
)
def test_apply_bits_with_a_special_number_at_each_index_of_a_step(isa, dtype, scale):
    """Kernels may have a faster path for steps of 32 elements without special numbers."""
    x = np.random.default_rng(2).standard_normal((2 * len(SPECIAL), 32, 32)).astype(dtype)
    x[:, ::3, ::5] = 0
    index = np.arange(32)
    signed = np.array([SPECIAL, np.bitwise_or(SPECIAL, 0x8000)]).reshape(-1, 1)
    x.view(np.uint16)[:, index, index] = signed
    with np.errstate(all="ignore"):
        wide = reference.widen(x.view(np.uint16), x.dtype.name).view(np.float32) * np.float32(scale)
    want = reference.round_to_half(wide.view(np.uint32), x.dtype.name).view(dtype)
    bits = np.full(x.size // 8, 255, np.uint8)
    for y in (np.empty_like(x), x):
        where = x.ctypes.data, y.ctypes.data, x.size, bits.ctypes.data
        tables.tables()[isa].apply_bits(tables.DTYPES[dtype], 0, *where, 0, scale)
        assert_same_bits(y, want)


def layouts(x):
    """Return x with shape (256, 256), and a list of copies with other strides and alignments."""
    square = x.reshape(256, 256)
    wide, unaligned = np.zeros((256, 3, 256), x.dtype), np.zeros(2 * x.size + 1, np.uint8)
    views = [
        np.empty((256, 256), x.dtype).T,
        wide[::-1, 1, ::-1],
        unaligned[1:].view(x.dtype).reshape(256, 256),
    ]
    for view in views:
        view[...] = square
    return square, views


@every_half
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dropout_with_any_strides_equals_the_reference_for_every_number(p, dtype):
    square, views = layouts(every_number(dtype))
    want = reference.dropout(square, p, SEED, 0)
    keep = reference.keep(SEED, 0, p, 0, square.size).reshape(square.shape)
    packed = pack(keep)
    for x in views:
        assert_same_bits(cd.dropout(x, p, rng=SEED), want)
        assert_same_bits(cd.dropout(x, p, mask=keep), want)
        assert_same_bits(cd.dropout(x, p, mask=packed), want)
        assert_same_bits(cd.dropout(x, p, mask=np.asfortranarray(keep)), want)
        assert_same_bits(cd.dropout(x, p, rng=SEED, out=np.zeros_like(square)), want)
        assert_same_bits(cd.dropout(square, p, rng=SEED, out=np.zeros_like(x)), want)
        cd.dropout(x, p, inplace=True, rng=SEED)
        assert_same_bits(x, want)


@every_half
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dropout_with_broadcast_dims_equals_the_reference_for_every_number(p, dtype):
    square, views = layouts(every_number(dtype))
    for dims in ((0,), (1,), (0, 1)):
        want = reference.dropout(square, p, SEED, 0, dims)
        for x in (square, *views):
            y = cd.dropout(x, p, rng=SEED, broadcast_dims=dims)
            assert_same_bits(y, want)


@every_half
def test_to_scale_in_half_precision_equals_the_reference(dtype):
    mask = cd.Mask((50, 60), 0.3, SEED, 7)
    scale = mask.to_scale(dtype)
    assert_same_bits(scale, reference.apply(np.ones(mask.shape, dtype), np.asarray(mask), 0.3))
    assert set(scale.astype(float).ravel()) == {0, float(dtype(np.float32(1 / 0.7)))}
    x = np.random.default_rng(1).standard_normal(mask.shape).astype(dtype)
    assert_same_bits(cd.dropout(x, mask=scale), np.where(np.asarray(mask), x * scale, dtype(0)))


def test_dropout_with_a_scale_array_overflows_without_a_warning():
    x = np.full(4, 60000, np.float16)
    y = cd.dropout(x, mask=np.array([0, 2, 0, 2], np.float16))
    np.testing.assert_array_equal(y, [0, np.inf, 0, np.inf])


@every_half
def test_alpha_dropout_returns_small_numbers_for_p_close_to_1(dtype):
    """All elements are dropped. float16 cannot represent the constants a and b of alpha dropout."""
    for p in (1 - 2.0**-40, 1 - 2.0**-53):
        y = cd.alpha_dropout(np.full(100, np.nan, dtype), p, True, rng=1)
        assert (abs(y.astype(float)) < 1e-5).all()

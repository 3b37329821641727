"""Tests of the kernels of softmax with dropout, on each instruction set."""

import ctypes
import importlib
import math
import mmap

import numpy as np
import pytest

from cdropout._core import dispatch

from ..helpers.kernel_tables import GuardedBuffer, capsule_pointer
from ..helpers.requirements import ISAS, linux_only

DTYPES = {np.float32: 0, np.float64: 1}  # cdropout_dtype
ALL = 2**62  # a value of `visible` for which no column is hidden
SCALE = 1.25


class Softmax(ctypes.Structure):
    """The struct cd_softmax of softmax.h."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("begin", "end", "columns", "visible")),
        ("bits", ctypes.c_void_p),
        ("bits_per_row", ctypes.c_size_t),
        ("scale", ctypes.c_double),
    ]


FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int, *[ctypes.c_void_p] * 3)
RECOMPUTE = ctypes.CFUNCTYPE(None, ctypes.c_int, *[ctypes.c_void_p] * 4)


class Table(ctypes.Structure):
    """The struct SoftmaxTable of softmax.pxd."""

    _fields_ = [("forward", FUNCTION), ("recompute", RECOMPUTE), ("backward", FUNCTION)]


def kernels(isa):
    module = importlib.import_module(dispatch.module_of(isa))
    return Table.from_address(
        capsule_pointer(module.softmax_table, b"cdropout._core.softmax_table")
    )


def random_case(rows, columns, dtype, visible=ALL, seed=0):
    """Return scores, a gradient, the mask, and bools that are True for visible weights."""
    rng = np.random.default_rng((rows, columns, seed))
    scores, gradient = (rng.standard_normal((2, rows, columns)) * 3).astype(dtype)
    keep = rng.random((rows, columns)) < 0.8
    seen = np.arange(columns) < np.minimum(visible + np.arange(rows), columns)[:, None]
    return scores, gradient, keep, seen


def expected_results(scores, gradient, keep, seen):
    """Return the results of the three kernels: dropped weights, sums, weights and gradient."""
    x = np.where(seen, scores.astype(np.longdouble), -np.inf)
    largest = x.max(1, keepdims=True)
    largest[largest == -np.inf] = 0
    exponentials = np.exp(x - largest)
    total = exponentials.sum(1, keepdims=True)
    total[total == 0] = 1
    weights = exponentials / total
    g = np.where(keep & seen, gradient * np.longdouble(SCALE), 0)
    gradient = np.where(seen, weights * (g - (weights * g).sum(1, keepdims=True)), 0)
    sums = np.concatenate([np.log(total), largest], axis=1)
    return np.where(keep, weights * SCALE, 0), sums, weights, gradient


def run_kernels(isa, scores, gradient, keep, visible, extra_bits=0, offset=0, ranges=None):
    """Return the results of the kernels; assert that they write nothing else."""
    rows, columns = scores.shape
    table, dtype = kernels(isa), DTYPES[scores.dtype.type]
    pitch = columns + extra_bits
    bools = np.zeros((rows, pitch), bool)
    bools[:, :columns] = keep
    bits = GuardedBuffer((rows * pitch + 7) // 8, content=np.packbits(bools, bitorder="little"))
    itemsize = scores.itemsize
    buffers = [GuardedBuffer(scores.nbytes, offset * itemsize) for _ in range(4)]
    dropped, weights, again, g = buffers
    sums = GuardedBuffer(2 * rows * itemsize, offset * itemsize)
    dropped.inside[:] = weights.inside[:] = scores.view(np.uint8).ravel()
    g.inside[:] = gradient.view(np.uint8).ravel()
    for begin, end in ranges or [(0, rows)]:
        matrix = Softmax(begin, end, columns, visible, bits.address, pitch, SCALE)
        pointer = ctypes.addressof(matrix)
        table.forward(dtype, pointer, dropped.address, sums.address)
        table.recompute(dtype, pointer, weights.address, sums.address, again.address)
        table.backward(dtype, pointer, weights.address, g.address)
    results = []
    for buffer, shape in zip(
        (dropped, sums, weights, again, g),
        [(rows, columns), (rows, 2)] + 3 * [(rows, columns)],
        strict=True,
    ):
        assert buffer.holds(buffer.inside)
        results.append(buffer.inside.view(scores.dtype).reshape(shape).copy())
    return results


def check(results, expected, dtype, scores):
    dropped, sums, weights, again, gradient = results
    eps = np.finfo(dtype).eps
    # The difference of a score and the largest one is rounded; its error is relative to both
    finite = np.abs(scores[np.isfinite(scores)])
    relative = 8 * eps * max(1, 2 * finite.max(initial=0))
    tiny = np.finfo(dtype).tiny * 10
    np.testing.assert_allclose(dropped, expected[0].astype(dtype), rtol=relative, atol=tiny)
    np.testing.assert_allclose(sums, expected[1].astype(dtype), rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(weights, expected[2].astype(dtype), rtol=relative, atol=tiny)
    np.testing.assert_allclose(again, expected[0].astype(dtype), rtol=relative, atol=tiny)
    largest = np.abs(expected[3]).max(initial=0)
    np.testing.assert_allclose(
        gradient, expected[3].astype(dtype), rtol=0, atol=max(relative * largest, eps)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", [1, 2, 15, 31, 32, 33, 64, 100, 1000, 4096, 4097, 9001])
def test_kernels_equal_reference(columns, isa, dtype):
    rows = 3 if columns > 1000 else 9
    for visible in (ALL, 1, max(columns - 4, 1)):
        scores, gradient, keep, seen = random_case(rows, columns, dtype, visible)
        results = run_kernels(isa, scores, gradient, keep, visible, columns % 7, columns % 5)
        check(results, expected_results(scores, gradient, keep, seen), dtype, scores)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_minus_infinity_have_no_weights(isa, dtype):
    scores, gradient, keep, seen = random_case(4, 37, dtype)
    scores[1] = -np.inf
    scores[2, 5:] = -np.inf
    results = run_kernels(isa, scores, gradient, keep, ALL)
    check(results, expected_results(scores, gradient, keep, seen), dtype, scores)
    assert not results[0][1].any() and not results[1][1].any() and not results[4][1].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 35])
def test_special_scores_make_kept_weights_of_their_row_nan(column, number, isa, dtype):
    scores, gradient, keep, _ = random_case(3, 37, dtype)
    scores[1, column] = number
    dropped, _, weights, again, _ = run_kernels(isa, scores, gradient, keep, ALL)
    for result in (dropped, again):
        assert (np.isnan(result[1]) == keep[1]).all()
        assert (result[1][~keep[1]] == 0).all() and not np.signbit(result[1][~keep[1]]).any()
        assert np.isfinite(result[[0, 2]]).all()
    assert np.isnan(weights[1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_large_scores_do_not_overflow(isa, dtype):
    scores, gradient, keep, seen = random_case(3, 70, dtype)
    for factor in (1e4, -1e4, 1e30):
        large = (scores * factor).astype(dtype)
        results = run_kernels(isa, large, gradient, keep, ALL)
        assert all(np.isfinite(result).all() for result in results)
        np.testing.assert_allclose(results[2].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_ranges_of_rows_give_the_same_bits(isa):
    scores, gradient, keep, _ = random_case(20, 77, np.float32, visible=50)
    whole = run_kernels(isa, scores, gradient, keep, 50, 3)
    parts = run_kernels(isa, scores, gradient, keep, 50, 3, ranges=[(8, 20), (0, 8)])
    for a, b in zip(whole, parts, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_every_magnitude_have_small_errors(dtype, isa):
    """The second score of each row is smaller than the first one by 0 to 100 (float64: 740)."""
    step = np.linspace(0, 100 if dtype is np.float32 else 740, 20001)
    scores = np.stack([np.zeros_like(step), -step], axis=1).astype(dtype)
    ones = np.ones(scores.shape, bool)
    weights = run_kernels(isa, scores, scores, ones, ALL)[2]
    expected = expected_results(scores, scores, ones, ones)[2]
    normal = expected >= np.finfo(dtype).tiny * 2
    errors = np.abs(weights - expected)[normal] / np.spacing(expected[normal].astype(dtype))
    # The exponents, of up to 100 (740), are rounded to half a unit of their last place
    assert errors.max() <= (100 if dtype is np.float32 else 740)
    assert (weights[~normal] <= np.finfo(dtype).tiny * 2).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_recomputed_weights_are_at_most_1(isa, dtype):
    """Products that are rounded differently can exceed the largest score of the forward pass."""
    scores = np.array([[1, 1e3, 1e5, 1e30, np.nan, -1]], dtype)
    sums, dropped = np.zeros((1, 2), dtype), np.empty_like(scores)
    bits = np.array([255], np.uint8)
    matrix = Softmax(0, 1, 6, ALL, bits.ctypes.data, 6, SCALE)
    arrays = (array.ctypes.data for array in (scores, sums, dropped))
    kernels(isa).recompute(DTYPES[dtype], ctypes.addressof(matrix), *arrays)
    np.testing.assert_allclose(scores, [[1, 1, 1, 1, np.nan, np.exp(-1)]], rtol=1e-6)


def address_before_a_guard_page(array, pages):
    """Copy the array to memory that ends at a page that cannot be accessed. Return the address."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(start + size), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    pages.append((memory, protect, start + size))
    address = start + size - array.nbytes
    ctypes.memmove(address, array.ctypes.data, array.nbytes)
    return address


@linux_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 100])
def test_kernels_read_nothing_after_their_arrays(columns, isa, dtype):
    pages = []
    table, number = kernels(isa), DTYPES[dtype]
    scores, gradient, keep, _ = random_case(3, columns, dtype)
    bits = np.packbits(keep, bitorder="little")
    arrays = scores, np.zeros((3, 2), dtype), gradient, scores, bits
    weights, sums, g, other, bits = (address_before_a_guard_page(a, pages) for a in arrays)
    matrix = Softmax(0, 3, columns, ALL, bits, columns, SCALE)
    pointer = ctypes.addressof(matrix)
    table.forward(number, pointer, weights, sums)
    table.recompute(number, pointer, other, sums, weights)
    table.recompute(number, pointer, other, sums, None)
    table.backward(number, pointer, other, g)
    for _, protect, page in pages:  # so that the memory can be freed
        protect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 3)
    assert math.isfinite(ctypes.c_float.from_address(sums).value)

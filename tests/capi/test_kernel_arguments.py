"""Tests of kernels with null pointers, no elements, no axes and positions that wrap around."""

import ctypes

import numpy as np
import pytest

from ..helpers import kernel_tables as tables
from ..helpers.arrays import pack
from ..helpers.kernel_tables import BOOL, DTYPES, Axis, GuardedBuffer, new_mask
from ..helpers.requirements import ISAS

N = 12
REALS = [DTYPES[np.float32], DTYPES[np.float64]]


@pytest.fixture(params=ISAS)
def table(request):
    return tables.tables()[request.param]


def calls(table, rows, columns, code, address):
    """Yield (kernel, arguments) for rows * columns elements; all buffers are at `address`."""
    n, mask, buffers = rows * columns, new_mask(table, 0.3), [address] * 4
    yield "apply", [code, 0, *buffers[:2], n, mask, 0]
    yield "apply_bits", [code, 0, *buffers[:2], n, buffers[2], 0, 2.0]
    axes = (Axis * 2)(Axis(rows, 8 * columns, 8 * columns, columns), Axis(columns, 8, 8, 1))
    strided = [code, 0, *buffers[:2], 2, axes]
    yield "apply_strided", [*strided, mask, 0]
    yield "apply_bits_strided", [*strided, buffers[2], 0, 2.0]
    yield "apply_bools_strided", [*strided, buffers[2], 2.0]
    yield "bits", [buffers[0], n, mask, 0]
    yield "bools", [buffers[0], n, mask, 0]
    if code in REALS:
        yield "apply_alpha_strided", [*strided, mask, 0, 0.5, -1.5]
    yield "bias_dropout_add", [code, *buffers, rows, columns, mask, 0]
    yield "bias_dropout_add_backward", [code, *buffers[:3], rows, columns, mask, 0]


def pointers(table, kernel):
    """Return the indices of the kernel's pointer arguments."""
    kinds = tables.KERNELS[kernel][1:]
    return [
        i for i, kind in enumerate(kinds) if kind in (ctypes.c_void_p, tables.MASK, tables.AXES)
    ]


@pytest.mark.parametrize("code", DTYPES.values())
def test_kernels_reject_null_pointers(table, code):
    buffer = GuardedBuffer(16 * N, content=np.arange(16 * N, dtype=np.uint8))
    seen = set()
    for kernel, arguments in calls(table, 3, N // 3, code, buffer.address):
        assert getattr(table, kernel)(*arguments) == 0
        before = buffer.inside.copy()
        for index in pointers(table, kernel):
            missing = [*arguments[:index], None, *arguments[index + 1 :]]
            if (kernel, index) == ("bias_dropout_add", 2):  # the bias, which is optional
                assert getattr(table, kernel)(*missing) == 0
                before = buffer.inside.copy()
                continue
            assert getattr(table, kernel)(*missing) == -1, (kernel, index)
            assert buffer.holds(before), (kernel, index)
        seen.add(kernel)
    expected = set(tables.KERNELS) - {"mask_init"}
    if code not in REALS:
        expected -= {"apply_alpha_strided"}
    assert seen == expected
    assert table.mask_init(None, 1, 2, 0.5) == -1


@pytest.mark.parametrize("rows, columns", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("code", DTYPES.values())
def test_kernels_accept_null_pointers_if_there_are_no_elements(table, code, rows, columns):
    """The pointer to the axes must not be null, because kernels read the length 0 from the axes."""
    for kernel, arguments in calls(table, rows, columns, code, None):
        for index in pointers(table, kernel):
            if tables.KERNELS[kernel][1 + index] is not tables.AXES:
                arguments[index] = None
        assert getattr(table, kernel)(*arguments) == 0, kernel
        if isinstance(arguments[0], int):
            assert getattr(table, kernel)(77, *arguments[1:]) == -1, kernel
        if "strided" in kernel:
            assert getattr(table, kernel)(*arguments[:5], None, *arguments[6:]) == -1, kernel


def test_apply_strided_with_zero_axes_writes_one_element(table):
    x, mask = np.ones(1), new_mask(table, 0.3)
    for start in range(20):
        y, want = GuardedBuffer(8), GuardedBuffer(1)
        table.bools(want.address, 1, mask, start)
        assert table.apply_strided(1, 0, x.ctypes.data, y.address, 0, None, mask, start) == 0
        assert y.holds(mask.scale * want.inside)


def test_strided_kernels_for_bools_accept_a_null_x(table):
    given, axis = tables.guarded_copy(np.arange(N, dtype=np.uint8) % 3), Axis(N, 0, 1, 1)
    y, mask, want = GuardedBuffer(N), new_mask(table, 0.3), GuardedBuffer(N)
    where = BOOL, 0, None, y.address, 1, axis
    assert table.apply_strided(*where, mask, 9) == 0
    table.bools(want.address, N, mask, 9)
    assert y.holds(want.inside)
    assert table.apply_bools_strided(*where, given.address, 2.0) == 0
    assert y.holds(given.inside != 0)
    missing = BOOL, 0, None, None, 1, axis
    assert table.apply_strided(*missing, mask, 9) == -1
    assert table.apply_bools_strided(*missing, given.address, 2.0) == -1
    assert table.apply_bits_strided(*missing, given.address, 0, 2.0) == -1


@pytest.mark.parametrize("p", [0.3, 0.5])
def test_mask_positions_wrap_around_after_2_to_the_64_minus_1(table, p):
    before, after, mask = 700, 9000, new_mask(table, p)
    start = 2**64 - before
    n = before + after
    keep = np.empty(n, np.uint8)
    assert table.bools(keep.ctypes.data, before, mask, start) == 0
    assert table.bools(keep.ctypes.data + before, after, mask, 0) == 0
    kept = keep != 0
    bits, bools, x = GuardedBuffer(-(-n // 8)), GuardedBuffer(n), np.ones(n)
    table.bits(bits.address, n, mask, start)
    table.bools(bools.address, n, mask, start)
    assert bits.holds(pack(kept)) and bools.holds(kept)
    y, zero, sums = GuardedBuffer(8 * n), np.zeros(n), np.zeros(n)
    where = x.ctypes.data, y.address
    double = DTYPES[np.float64]
    table.apply(double, 0, *where, n, mask, start)
    assert y.holds(mask.scale * kept)
    y.inside[:] = 0
    table.apply_strided(double, 0, *where, 1, Axis(n, 8, 8, 1), mask, start)
    assert y.holds(mask.scale * kept)
    table.bias_dropout_add(double, where[0], *[zero.ctypes.data] * 2, where[1], 1, n, mask, start)
    assert y.holds(mask.scale * kept)
    table.bias_dropout_add_backward(double, *where, sums.ctypes.data, 1, n, mask, start)
    assert y.holds(mask.scale * kept) and np.array_equal(sums, mask.scale * kept)

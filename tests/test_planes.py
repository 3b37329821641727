"""The plane kernels where rows lie side by side, and apply_channels, against the slow twin."""

import itertools
import random

import numpy as np
import pytest

import reference
import tables
from needs import ISAS, slow
from tables import DTYPES, Field, Plane, new_mask, numbers

SEED, CALL = 0xFEDCBA9876543210, 2**40 + 3  # those of new_mask
SHAPES = [(40, 33), (64, 49), (33, 64), (5, 1000), (200, 1), (300, 7), (2, 8193), (0, 5), (5, 0)]
SHAPES += slow((1, 31), (3, 32), (17, 100), (9, 512), (3, 8192), (9000, 3), (8200, 33), (1, 1))


@pytest.fixture(params=ISAS)
def table(request):
    return tables.tables()[request.param]


@pytest.fixture(params=DTYPES, ids=lambda dtype: dtype.__name__)
def dtype(request):
    return request.param


def dense(dtype, shape, offset):
    """Return a Field in C order, filled with numbers of every kind."""
    size = np.dtype(dtype).itemsize
    field = Field(dtype, shape, (shape[1] * size, size), offset)
    field.items[...] = numbers(dtype, max(field.items.size, 2))[: field.items.size].reshape(shape)
    return field


def spread(decisions, shape, by_row):
    """Return a decision a row, or a column, as one an element."""
    return np.broadcast_to(decisions[:, None] if by_row else decisions, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("by_row", [True, False], ids=["rows", "columns"])
def test_one_byte_for_a_whole_row_or_column(table, dtype, shape, by_row):
    rng, length = random.Random(shape[1]), shape[not by_row]
    for offset, in_place, stride in itertools.product((0, 4, rng.randrange(64)), (0, 1), (1, -3)):
        x = dense(dtype, shape, offset)
        y = x if in_place else dense(dtype, shape, 64 - offset)
        keep = Field(np.uint8, (length, 1), (stride, 0), 5)
        kept = spread(keep.items[:, 0] != 0, shape, by_row)
        want = y.once_written(reference.apply(x.items, kept, 0.3))
        strides = (stride, 0) if by_row else (0, stride)
        plane = Plane(*shape, x.strides, y.strides, strides)
        code = DTYPES[dtype]
        assert table.apply_bools(code, x.address, y.address, keep.address, plane, 1 / 0.7) == 0
        assert y.room.holds(want), (offset, in_place, stride)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("by_row", [True, False], ids=["rows", "columns"])
def test_apply_channels(table, dtype, shape, by_row):
    channels = (1, 0) if by_row else (0, 1)
    for p, start, in_place in [(0.3, 2**33 - 77, False), (0, 5, True), (1, 0, False)]:
        x = dense(dtype, shape, 4)
        y = x if in_place else dense(dtype, shape, 12)
        kept = spread(reference.keep(SEED, CALL, p, start, shape[not by_row]), shape, by_row)
        want = y.once_written(reference.apply(x.items, kept, p))
        plane, mask = Plane(*shape, x.strides, y.strides, channels), new_mask(table, p)
        assert table.apply_channels(DTYPES[dtype], x.address, y.address, plane, mask, start) == 0
        assert y.room.holds(want), (p, start)


def test_apply_channels_at_any_strides(table, dtype):
    size, shape = np.dtype(dtype).itemsize, (70, 90)
    kinds = tables.layouts(size, *shape)
    for (name, strides), by_row in itertools.product(list(kinds.items())[:5], (True, False)):
        x, y = dense(dtype, shape, 4), Field(dtype, shape, strides, 3)
        kept = spread(reference.keep(SEED, CALL, 0.3, 9, shape[not by_row]), shape, by_row)
        want = y.once_written(reference.apply(x.items, kept, 0.3))
        plane = Plane(*shape, x.strides, strides, (1, 0) if by_row else (0, 1))
        where = DTYPES[dtype], x.address, y.address, plane, new_mask(table, 0.3), 9
        assert table.apply_channels(*where) == 0
        assert y.room.holds(want), name


@pytest.mark.parametrize("by_row", [True, False], ids=["rows", "columns"])
def test_apply_channels_that_are_many(table, by_row):
    """The mask of more than 8192 channels is drawn in parts."""
    shape = (8200, 2) if by_row else (2, 8200)
    x = dense(np.float32, shape, 4)
    y = Field(np.float32, shape, (8, 8 * 8200) if by_row else (8 * 8200, 8), 3)
    kept = spread(reference.keep(SEED, CALL, 0.3, 9, 8200), shape, by_row)
    want = y.once_written(reference.apply(x.items, kept, 0.3))
    plane = Plane(*shape, x.strides, y.strides, (1, 0) if by_row else (0, 1))
    code = DTYPES[np.float32]
    assert table.apply_channels(code, x.address, y.address, plane, new_mask(table, 0.3), 9) == 0
    assert y.room.holds(want)


@pytest.mark.parametrize("keep", [(0, 0), (1, 1), (2, 0), (0, -1), (2, -1), (-1, 2)])
def test_channels_that_are_refused(table, keep):
    x = dense(np.float32, (4, 40), 0)
    before = x.room.inside.copy()
    plane, mask = Plane(4, 40, x.strides, x.strides, keep), new_mask(table, 0.3)
    assert table.apply_channels(0, x.address, x.address, plane, mask, 0) == -1
    plane = Plane(4, 40, x.strides, x.strides, (1, 0))
    assert table.apply_channels(9, x.address, x.address, plane, mask, 0) == -1
    assert x.room.holds(before)

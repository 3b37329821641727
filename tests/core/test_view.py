"""Tests that strided kernels give the results of the reference implementation."""

import itertools
import math
import random
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest

from .. import reference
from ..helpers import kernel_tables as tables
from ..helpers.arrays import pack
from ..helpers.kernel_tables import (
    BOOL,
    DTYPES,
    PART_OF_LARGE,
    Axis,
    GuardedArray,
    GuardedBuffer,
    new_mask,
    numbers,
)
from ..helpers.requirements import ISAS, slow

SEED, CALL = 0xFEDCBA9876543210, 2**40 + 3  # the defaults of new_mask
TYPES = [*DTYPES, bool]  # bool stands for CDROPOUT_BOOL
STARTS = [0, 1, 77, 511, 8190, 2**33 - 77]


class Layout(NamedTuple):
    """The order of the axes in memory, fastest axis last, and their steps, as in slices."""

    order: tuple
    steps: tuple

    def strides(self, itemsize, shape):
        """Return the strides in bytes of an array with this itemsize and shape."""
        strides, extent = [0] * len(shape), itemsize
        for axis in reversed(self.order):
            strides[axis] = extent * self.steps[axis]
            extent *= max(shape[axis], 1) * abs(self.steps[axis])
        return tuple(strides)


class Case(NamedTuple):
    shape: tuple
    x: Layout
    y: Layout
    mask: tuple  # strides in elements
    start: int = 77


def layout(ndim, order=None, steps=None):
    return Layout(tuple(order or range(ndim)), tuple(steps or [1] * ndim))


def mask_strides(shape, broadcast=(), flipped=(), within=None):
    """Return the strides of a mask in C order, or of a window into a mask of shape `within`.

    Axes in `broadcast` have the stride 0, and axes in `flipped` have negative strides.
    """
    strides, extent = [0] * len(shape), 1
    for axis in reversed(range(len(shape))):
        if axis not in broadcast:
            strides[axis] = -extent if axis in flipped else extent
            extent *= (within or shape)[axis]
    return tuple(strides)


def case(shape, order=None, y_order=None, steps=None, y_steps=None, start=77, **mask):
    """Return a Case, in which y has the layout of x unless another layout is given for y."""
    ndim = len(shape)
    x = layout(ndim, order, steps)
    y = layout(ndim, y_order or order, y_steps or steps)
    strides = mask_strides(shape, **mask)
    start += sum((n - 1) * -stride for n, stride in zip(shape, strides, strict=True) if stride < 0)
    return Case(shape, x, y, strides, start)


# ---- the reference ----------------------------------------------------------------------------


@cache
def keep(p, first, n):
    """Return the keep bits of n elements starting at `first`; position 0 follows 2**64 - 1."""
    first %= 2**64
    before = min(n, 2**64 - first)
    parts = [reference.keep(SEED, CALL, p, first, before)]
    return np.concatenate([*parts, reference.keep(SEED, CALL, p, 0, n - before)])


def extent(case):
    """Return the lowest position of the case in the mask, and the number of positions spanned."""
    reach = [(n - 1) * stride for n, stride in zip(case.shape, case.mask, strict=True)]
    first = case.start + sum(offset for offset in reach if offset < 0)
    return first, sum(map(abs, reach)) + 1


@cache
def kept(case, p):
    """Return the keep bits of the case as an array of bools with the shape of the case."""
    first, n = extent(case)
    positions = np.full(case.shape, case.start - first)
    for axis, stride in enumerate(case.mask):
        along = np.arange(case.shape[axis]) * stride
        positions += along.reshape([-1 if i == axis else 1 for i in range(positions.ndim)])
    return keep(p, first, n)[positions] if positions.size else np.empty(case.shape, bool)


def values(dtype, shape):
    n = math.prod(shape)
    return numbers(dtype, max(n, 2))[:n].reshape(shape)


@cache
def expected(case, dtype, p):
    if dtype is bool:
        return kept(case, p)
    return reference.apply(values(dtype, case.shape), kept(case, p), p)


# ---- the calls --------------------------------------------------------------------------------


def axes_of(shape, x, y, mask):
    axes = zip(shape, x, y, mask, strict=True)
    return len(shape), (Axis * max(len(shape), 1))(*(Axis(*axis) for axis in axes))


def given_bits(case, p, first):
    """Return a buffer of `first` ones and the bits of the case, and the bit index of element 0."""
    position, n = extent(case)
    bits = np.concatenate([np.ones(first, bool), keep(p, position, n)])
    packed = pack(bits)
    return tables.guarded_copy(packed, first), first + case.start - position


def given_bools(case, p):
    """Return a buffer with the bools of the case, and the address of the bool of element 0."""
    position, n = extent(case)
    buffer = tables.guarded_copy(keep(p, position, n) * (1 + np.arange(n, dtype=np.uint8) % 255), 3)
    return buffer, buffer.address + case.start - position


def check(table, case, dtype, p, rng, flags=0):
    """Assert that strided kernels write the expected values to y and change nothing else.

    All kernels are called out of place, and one of them in place if x and y have equal strides.
    """
    itemsize, code = (1, BOOL) if dtype is bool else (np.dtype(dtype).itemsize, DTYPES[dtype])
    want, mask = expected(case, dtype, p), new_mask(table, p)
    if case.shape and 0 not in case.shape:
        bits, bit_start = given_bits(case, p, rng.randrange(20))
        bools, first_bool = given_bools(case, p)
    else:
        bits, bit_start, bools = GuardedBuffer(1), 0, GuardedBuffer(1)
        bits.inside[:] = bools.inside[:] = keep(p, case.start, 1)
        first_bool = bools.address
    kernels = [
        (table.apply_strided, mask, case.start),
        (table.apply_bits_strided, bits.address, bit_start, mask.scale),
        (table.apply_bools_strided, first_bool, mask.scale),
    ]
    x_strides = case.x.strides(itemsize, case.shape)
    y_strides = case.y.strides(itemsize, case.shape)
    source = GuardedArray(dtype, case.shape, x_strides, rng.randrange(64))
    targets = [GuardedArray(dtype, case.shape, y_strides, rng.randrange(64)) for _ in kernels]
    if dtype is not bool:
        source.items[...] = values(dtype, case.shape)
    given = [buffer.inside.copy() for buffer in (source.buffer, bits, bools)]
    axes = axes_of(case.shape, x_strides, y_strides, case.mask)
    for (kernel, *mask_arguments), target in zip(kernels, targets, strict=True):
        result = target.bytes_after(want)
        x = None if dtype is bool else source.address
        assert kernel(code, flags, x, target.address, *axes, *mask_arguments) == 0
        assert target.buffer.holds(result), (kernel, case, p)
    for buffer, before in zip((source.buffer, bits, bools), given, strict=True):
        assert buffer.holds(before), (case, p)
    if dtype is not bool and x_strides == y_strides:
        kernel, *mask_arguments = rng.choice(kernels)
        result = source.bytes_after(want)
        assert kernel(code, flags, source.address, source.address, *axes, *mask_arguments) == 0
        assert source.buffer.holds(result), (kernel, case, p, "in place")


@pytest.fixture(params=ISAS)
def table(request):
    return tables.tables()[request.param]


@pytest.fixture(params=TYPES, ids=lambda dtype: dtype.__name__)
def dtype(request):
    return request.param


def check_all(table, cases, dtype, probabilities=(0.1, 0.5)):
    rng = random.Random(f"{cases}")
    for i, each in enumerate(cases):
        p = probabilities[i % len(probabilities)]
        check(table, each, dtype, p, rng, PART_OF_LARGE * (i % 3 == 0))


# ---- layouts ----------------------------------------------------------------------------------

CHANNELS = (3, 7, 8, 9, 16, 64, 65, 100)
NHWC, F_ORDER = (0, 2, 3, 1), (1, 0)
LAYOUTS = {
    "C order": [
        case(shape) for shape in [(3000,), (5, 700), (7, 11, 13), (2, 3, 5, 7), (9, 1, 33)]
    ],
    "Fortran order": [
        case(shape, F_ORDER) for shape in [(37, 101), (64, 128), (130, 67), (3, 900)]
    ],
    "Fortran order of x or y": [
        case((37, 101), F_ORDER, (0, 1)),
        case((37, 101), (0, 1), F_ORDER),
        case((66, 31), (0, 1), F_ORDER, y_steps=(2, 1)),
    ],
    "channels last": [case((2, c, 9, 8), NHWC) for c in CHANNELS],
    "from and to channels last": [
        each
        for c in CHANNELS[::2]
        for each in (case((2, c, 5, 13), NHWC, range(4)), case((2, c, 5, 13), range(4), NHWC))
    ],
    "steps": [
        case((20, 70), steps=(1, 2)),
        case((20, 70), steps=(3, 1)),
        case((20, 70), steps=(2, 3), y_steps=(1, 1)),
        case((20, 70), steps=(1, 1), y_steps=(1, 2)),
        case((700,), steps=(5,)),
        case((1500,), steps=(1,), y_steps=(2,)),
    ],
    "backwards": [
        case((20, 70), steps=signs, y_steps=y_signs)
        for signs in itertools.product((1, -1), repeat=2)
        for y_signs in itertools.product((1, -1), repeat=2)
    ],
    "backwards in the mask": [
        case((15, 70), order, flipped=flipped)
        for flipped in [(0,), (1,), (0, 1)]
        for order in [(0, 1), (1, 0)]
    ]
    + [case((2, 65, 5, 7), NHWC, flipped=flipped) for flipped in [(1,), (2, 3), (0, 1, 2, 3)]],
    "broadcast axes": [
        case((6, 10, 35), order, broadcast=broadcast)
        for broadcast in [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)]
        for order in [(0, 1, 2), (2, 0, 1)]
    ],
    "channels": [case((3, c, 4, 9), NHWC, broadcast=(2, 3)) for c in CHANNELS]
    + [case((3, c, 4, 9), broadcast=(2, 3)) for c in CHANNELS[:3]],
    "windows": [
        case((37, 64), order, start=start, within=(100, 90))
        for order in [(0, 1), (1, 0)]
        for start in (0, 13 * 90 + 7, 2**33 - 5)
    ]
    + [case((5, 9, 31), (2, 1, 0), within=(5, 40, 77)), case((7, 9), within=(7, 5000))],
    "gaps in the mask": [
        case((15, 70), order)._replace(mask=mask)
        for order in [(0, 1), (1, 0)]
        for mask in [(140, 2), (3, 50), (2, 0), (0, 7), (-2, 31)]
    ]
    + [
        case((5, 7, 30), (2, 0, 1))._replace(mask=(700, 90, 3)),
        case((3, 4, 20))._replace(mask=(30_000, 6000, 1)),
    ],
    "the last positions of the mask": [
        case((30, 70), order, start=2**64 - before)
        for order in [(0, 1), (1, 0)]
        for before in (1, 999)
    ],
    "axes of length 1": [
        *(case(shape) for shape in [(), (1,), (1, 1, 1), (1, 40, 1, 50, 1)]),
        case((1, 40, 1, 50, 1), (3, 0, 1, 4, 2), steps=(-7, 1, 5, -1, 3)),
    ],
    "no element": [case((0,)), case((3, 0, 5), (2, 0, 1)), case((0, 0))],
}  # fmt: skip


@pytest.mark.parametrize("cases", LAYOUTS.values(), ids=LAYOUTS)
def test_strided_kernels_equal_the_reference_for_each_layout(table, dtype, cases):
    check_all(table, cases, dtype)


@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_strided_kernels_equal_the_reference_for_several_probabilities(table, dtype, p):
    for name in ("C order", "channels last", "broadcast axes"):
        check_all(table, LAYOUTS[name][-2:], dtype, [p])


@pytest.mark.parametrize(
    "shape", [(7, 13, 21), (3, 5, 7, 11), *slow((17, 33, 65), (9, 10, 67, 12))], ids=str
)
def test_strided_kernels_equal_the_reference_for_permuted_axes(table, dtype, shape):
    every = list(itertools.permutations(range(len(shape))))
    for order in random.Random(1).sample(every, 6 if math.prod(shape) < 2000 else len(every)):
        check_all(table, [case(shape, order), case(shape, order, every[-1])], dtype)


LARGE = [  # arrays larger than a tile; along some axes, the last tile is shorter
    case((600, 701), F_ORDER),
    case((3, 67, 61, 59), NHWC),
    case((30, 9001), steps=(2, 1)),
    case((9001, 41), F_ORDER, broadcast=(1,)),
    case((5, 300, 301), (1, 2, 0), broadcast=(0,)),
    case((700_001,), steps=(2,)),
    case((700_001,), flipped=(0,)),
    case((90, 77, 60), (2, 0, 1), start=2**33, within=(90, 100, 200)),
    case((2, 7, 300, 99), NHWC, broadcast=(2, 3)),
]


@pytest.mark.parametrize("large", [*LARGE[:1], *slow(*LARGE[1:])], ids=lambda each: f"{each.shape}")
def test_strided_kernels_equal_the_reference_for_arrays_larger_than_a_tile(table, dtype, large):
    check(table, large, dtype, 0.1, random.Random(9))


@pytest.mark.parametrize(
    "large",
    [*LARGE[1:3], case((300, 20), within=(300, 4000))],
    ids=lambda each: f"{each.shape}",
)
def test_strided_kernels_equal_the_reference_for_bools_larger_than_a_tile(table, large):
    """The last case has few elements, whose positions are spread over a long range of the mask."""
    check(table, large, bool, 0.1, random.Random(9))


@pytest.mark.parametrize(
    "shape, mask",
    [
        ((7, 2, 4, 2, 3, 5, 9), (24582, 8193, 0, 24582, 4097, 12291, 24582)),
        ((2, 2, 3, 4, 3, 1457, 9), (13590, 44865, 4097, 0, 44865, 5395, 13590)),
    ],
)
def test_strided_kernels_equal_the_reference_when_elements_share_mask_positions(table, shape, mask):
    """The last tile is shorter than the other tiles and must not need more bits than the others."""
    c_order = layout(len(shape))
    check(table, Case(shape, c_order, c_order, mask), bool, 0.1, random.Random(9))


@pytest.mark.parametrize(
    "contiguous",
    [
        case((3, 10_007)),
        case((5, 3, 7000), broadcast=(1, 2)),
        case((12, 6001), broadcast=(0,)),
        case((2, 3, 5003), steps=(2, 2, 1)),
    ],
    ids=lambda each: f"{each.shape}",
)
@pytest.mark.parametrize("isa", ISAS)
def test_strided_kernels_with_streaming_stores_equal_the_reference(isa, contiguous):
    """Rows are long enough for streaming stores; y is contiguous or has gaps between rows."""
    table, rng = tables.tables()[isa], random.Random(3)
    ndim = len(contiguous.shape)
    gaps = contiguous._replace(y=layout(ndim, steps=[2, *[1] * (ndim - 1)]))
    for each, dtype in itertools.product((contiguous, gaps), (np.float32, np.float64)):
        check(table, each, dtype, 0.1, rng, PART_OF_LARGE)


REALS = pytest.mark.parametrize("real", [np.float32, np.float64], ids=["float32", "float64"])


@cache
def expected_alpha(case, dtype, p, shift, constant):
    """Return x * scale + shift where kept and `constant` where dropped, or only +0.0 if p is 1."""
    x, scale = values(dtype, case.shape), reference.scale(p, dtype)
    with np.errstate(all="ignore"):
        shifted = x * scale + dtype(shift)
    return np.where(kept(case, p), shifted, dtype(constant)) if p < 1 else np.zeros_like(x)


@REALS
@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_apply_alpha_strided_equals_numpy(table, real, p):
    itemsize, rng, mask = np.dtype(real).itemsize, random.Random(8), new_mask(table, p)
    terms = 0.7, -1.75
    for name in ("C order", "Fortran order", "steps", "broadcast axes", "windows", "no element"):
        for i, each in enumerate(LAYOUTS[name]):
            strides = each.x.strides(itemsize, each.shape), each.y.strides(itemsize, each.shape)
            arrays = [GuardedArray(real, each.shape, s, rng.randrange(64)) for s in strides]
            source, target = (arrays[0],) * 2 if each.x == each.y and i % 2 else arrays
            source.items[...] = values(real, each.shape)
            result = target.bytes_after(expected_alpha(each, real, p, *terms))
            where = DTYPES[real], i % 2, source.address, target.address
            axes = axes_of(each.shape, source.strides, target.strides, each.mask)
            assert table.apply_alpha_strided(*where, *axes, mask, each.start, *terms) == 0
            assert target.buffer.holds(result), (each, p)


def random_case(rng):
    """Return a random case with at most 5 axes and at most 20,000 elements."""
    shape = []
    for _ in range(rng.randrange(1, 6)):
        n = rng.choice([1, 2, 3, 5, 8, 9, 16, 31, 33, 64, 65, 100, 513])
        if math.prod(shape) * n <= 20_000:
            shape.append(n)
    shape = tuple(shape)
    axes = range(len(shape))
    orders = [tuple(rng.sample(axes, len(shape))) for _ in range(2)]
    steps = [tuple(rng.choice([1, 1, 1, 1, 2, -1, -2]) for _ in axes) for _ in range(2)]
    if rng.random() < 0.4:  # y has the layout of x, so that the call can be in place
        orders[1], steps[1] = orders[0], steps[0]
    broadcast, flipped = ([axis for axis in axes if rng.random() < 0.2] for _ in range(2))
    within = tuple(n + rng.choice([0, 0, 1, 30]) for n in shape)
    start = rng.choice(STARTS)
    return case(shape, *orders, *steps, start, broadcast=broadcast, flipped=flipped, within=within)


@pytest.mark.parametrize("count", [12, *slow(400)])
def test_strided_kernels_equal_the_reference_for_random_layouts(table, dtype, count):
    rng = random.Random(count)
    cases = [random_case(rng) for _ in range(count)]
    check_all(table, [each for each in cases if extent(each)[1] < 10**6], dtype)


def test_apply_strided_supports_64_axes_and_returns_minus_1_for_65(table, dtype):
    """16 axes have length 2. The other axes have length 1 and strides that must be ignored."""
    itemsize = 1 if dtype is bool else np.dtype(dtype).itemsize
    rng = random.Random(2)
    many = case((2,) * 16, rng.sample(range(16), 16), rng.sample(range(16), 16))
    source = GuardedArray(dtype, many.shape, many.x.strides(itemsize, many.shape))
    target = GuardedArray(dtype, many.shape, many.y.strides(itemsize, many.shape), 5)
    if dtype is not bool:
        source.items[...] = values(dtype, many.shape)
    _, some = axes_of(many.shape, source.strides, target.strides, many.mask)
    axes = [
        *some,
        *(Axis(1, *(rng.randrange(-(2**62), 2**62) for _ in range(3))) for _ in range(49)),
    ]
    rng.shuffle(axes)
    code, mask = BOOL if dtype is bool else DTYPES[dtype], new_mask(table, 0.1)
    where = code, 0, source.address, target.address
    before = target.buffer.inside.copy()
    last = next(i for i, axis in enumerate(axes) if axis.length == 1)
    assert table.apply_strided(*where, 65, (Axis * 65)(*axes), mask, many.start) == -1
    assert target.buffer.holds(before)
    result = target.bytes_after(expected(many, dtype, 0.1))
    del axes[last]
    assert table.apply_strided(*where, 64, (Axis * 64)(*axes), mask, many.start) == 0
    assert target.buffer.holds(result)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("stride", [2**40 + 3, -(2**62) - 1, 2**63 - 1, -(2**63)])
def test_apply_strided_equals_the_reference_for_any_64_bit_mask_stride(table, dtype, order, stride):
    """Positions in the mask wrap around modulo 2**64."""
    shape = 5, 70
    itemsize, code = (1, BOOL) if dtype is bool else (np.dtype(dtype).itemsize, DTYPES[dtype])
    rows = np.array([keep(0.1, 99 + i * stride, 70) for i in range(5)])
    want = rows if dtype is bool else reference.apply(values(dtype, shape), rows, 0.1)
    array = GuardedArray(dtype, shape, layout(2, order).strides(itemsize, shape), 1)
    if dtype is not bool:
        array.items[...] = values(dtype, shape)
    result = array.bytes_after(want)
    axes = axes_of(shape, array.strides, array.strides, (stride, 1))
    where = array.address, array.address, *axes
    assert table.apply_strided(code, 0, *where, new_mask(table, 0.1), 99) == 0
    assert array.buffer.holds(result)


def test_apply_bits_strided_equals_the_reference_at_a_large_bit_offset(table):
    first = 2**32 + 5
    memory = np.zeros(2**29 + 1000, np.uint8)  # only pages that are used take memory
    memory[2**29 :] = np.random.default_rng(3).integers(0, 256, 1000)
    bits = np.unpackbits(memory[2**29 :], bitorder="little")[5:]
    y = GuardedArray(bool, (63, 65), (1, 63), 3)
    result = y.bytes_after(bits[: 63 * 65].reshape(63, 65))
    axes = axes_of(y.shape, (0, 0), y.strides, (65, 1))
    where = BOOL, 0, None, y.address, *axes
    assert table.apply_bits_strided(*where, memory.ctypes.data, first, 1.0) == 0
    assert y.buffer.holds(result)


def test_apply_strided_equals_the_reference_for_a_stride_of_0_in_x(table):
    x, y = values(np.float32, (50,)), GuardedArray(np.float32, (7, 50), (200, 4), 1)
    want = reference.apply(np.broadcast_to(x, (7, 50)), keep(0.1, 5, 350), 0.1)
    result = y.bytes_after(want)
    axes = axes_of((7, 50), (0, 4), (200, 4), (50, 1))
    assert table.apply_strided(0, 0, x.ctypes.data, y.address, *axes, new_mask(table, 0.1), 5) == 0
    assert y.buffer.holds(result)


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.3, 1])
@pytest.mark.parametrize(
    "code, flags, ndim",
    [(-1, 0, 2), (5, 0, 2), (77, 0, 2), (0, 2, 2), (0, 3, 2), (0, 2**31, 2), (BOOL, 256, 2),
     (0, 0, -1), (0, 0, -(2**31)), (0, 0, 65), (0, 0, 2**31 - 1)],
)  # fmt: skip
def test_strided_kernels_return_minus_1_for_bad_arguments(table, code, flags, ndim, p):
    mask, x = new_mask(table, p), GuardedBuffer(400)
    y, given = GuardedBuffer(400), GuardedBuffer(100)
    before = y.inside.copy()
    _, axes = axes_of((10, 10), (40, 4), (40, 4), (10, 1))
    where = code, flags, x.address, y.address, ndim, axes
    assert table.apply_strided(*where, mask, 0) == -1
    assert table.apply_bits_strided(*where, given.address, 0, 2.0) == -1
    assert table.apply_bools_strided(*where, given.address, 2.0) == -1
    assert table.apply_alpha_strided(*where, mask, 0, 1.0, 1.0) == -1
    for other in (2, 3, BOOL):  # types that apply_alpha_strided does not support
        assert table.apply_alpha_strided(other, *where[1:4], 2, axes, mask, 0, 1.0, 1.0) == -1
    if ndim == 2:
        assert table.apply(*where[:4], 100, mask, 0) == -1
        assert table.apply_bits(*where[:4], 100, given.address, 0, 2.0) == -1
    assert y.holds(before)

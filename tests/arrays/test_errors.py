"""Tests of every error: its type, its words, and that nothing has changed after it."""

import math
import re
import sys
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

import cdropout as cd
from cdropout._core import dispatch

TAKEN = "float16, bfloat16, float32 or float64"
NO_P = "p has to be a number between 0 and 1, but got "
BAD_P = "dropout probability has to be between 0 and 1, but got "
BAD_RNG = (
    "rng has to be None, a cdropout.Generator, a numpy.random.Generator or SeedSequence, "
    "or an int, but got "
)
STATE = "state has to be a dict with the keys seed, calls and spawned, but got "
SELF = "overlap in memory"
BOOL = type(np.True_).__name__  # NumPy 1 has another
OVERLAP = "out partly overlaps x; it has to be x itself or must not overlap x"


@pytest.fixture
def world():
    """Return everything that an error might change; afterwards assert that none of it has."""
    generator = cd.Generator(5)
    w = SimpleNamespace(
        x=np.arange(1, 7, dtype=np.float32).reshape(2, 3),
        out=np.full((2, 3), 7, np.float32),
        generator=generator,
        module=cd.Dropout(0.5, rng=generator),
        numpy_rng=np.random.default_rng(5),
        mask=cd.Mask((2, 3), 0.5, 1),
    )
    w.module(w.x)
    before = snapshot(w)
    yield w
    assert snapshot(w) == before


def snapshot(w):
    m, numpy_state = w.module, w.numpy_rng.bit_generator.state
    return (
        [(a.tobytes(), a.shape, a.strides, a.flags.writeable) for a in (w.x, w.out)],
        (w.generator.state, cd.default_generator.state, numpy_state),
        (m.p, m.inplace, m.training, m.mask, repr(w.mask), cd.get_num_threads()),
    )


def expect(error, words, call, /, *args, **kwargs):
    """Assert that the call raises exactly this type with exactly these words."""
    with pytest.raises(error, match=f"^{re.escape(words)}$") as caught:
        call(*args, **kwargs)
    assert caught.type is error


class Broken:
    """A number that cannot be had."""

    def __float__(self):
        raise ZeroDivisionError("no float today")

    def __index__(self):
        raise ZeroDivisionError("no index today")


class Sparse:
    """Looks like a sparse matrix: a shape and a dtype, but no memory that could be read."""

    shape, dtype, nnz = (2, 3), np.dtype(np.float32), 1


# ---- p ----------------------------------------------------------------------------------------

PROBABILITIES = [
    ("0.5", TypeError, NO_P + "str"),
    (None, TypeError, NO_P + "NoneType"),
    (True, TypeError, NO_P + "bool"),
    (np.True_, TypeError, NO_P + BOOL),
    (np.array(True), TypeError, NO_P + "ndarray"),
    (np.array([0.5]), TypeError, NO_P + "ndarray"),
    ([0.5], TypeError, NO_P + "list"),
    (np.array("0.5"), TypeError, NO_P + "ndarray"),
    (0.5j, TypeError, NO_P + "complex"),
    (np.complex128(0.5), TypeError, NO_P + "complex128"),
    (np.array(0.5 + 0j), TypeError, NO_P + "ndarray"),
    (np.timedelta64(0, "s"), TypeError, NO_P + "timedelta64"),
    (Broken(), ZeroDivisionError, "no float today"),
    (math.nan, ValueError, BAD_P + "nan"),
    (np.float32("nan"), ValueError, BAD_P + "nan"),
    (-0.1, ValueError, BAD_P + "-0.1"),
    (1.5, ValueError, BAD_P + "1.5"),
    (math.inf, ValueError, BAD_P + "inf"),
    (-math.inf, ValueError, BAD_P + "-inf"),
    (2, ValueError, BAD_P + "2"),
    (-1, ValueError, BAD_P + "-1"),
    (math.nextafter(1, 2), ValueError, BAD_P + "1.0000000000000002"),
    (-5e-324, ValueError, BAD_P + "-5e-324"),
    (np.float64(1.5), ValueError, BAD_P + "1.5"),
    (np.array(1.5), ValueError, BAD_P + "1.5"),
    (Decimal("1.5"), ValueError, BAD_P + "1.5"),
    (10**400, ValueError, BAD_P + str(10**400)),
]


@pytest.mark.parametrize("p, error, words", PROBABILITIES, ids=lambda value: repr(value)[:30])
def test_p(world, p, error, words):
    w = world
    for rng in (w.generator, w.numpy_rng, None):
        expect(error, words, cd.dropout, w.x, p, rng=rng)
    expect(error, words, cd.dropout, w.x, p, inplace=True)
    expect(error, words, cd.dropout, w.x, p, out=w.out)
    expect(error, words, cd.dropout, w.x, p, training=False)
    expect(error, words, cd.Mask, (2, 3), p)
    expect(error, words, cd.Dropout, p)
    expect(error, words, cd.Dropout, p, rng=w.numpy_rng)
    w.module.p = p
    expect(error, words, w.module, w.x)
    w.module.p = 0.5
    if p is not None:  # to a mask of bools or bits that is p not said: see GIVEN
        kept = np.ones((2, 3), bool)
        for given in (kept, np.packbits(kept), w.mask):
            expect(error, words, cd.dropout_backward, w.x, given, p=p, out=w.out)
        for given in (kept, np.packbits(kept)):
            expect(error, words, cd.dropout, w.x, p, mask=given, inplace=True)


@pytest.mark.parametrize(
    "p, error, words", [("0.5", TypeError, NO_P + "str"), (7, ValueError, BAD_P + "7")]
)
def test_p_is_checked_where_the_mask_says_it_too(world, p, error, words):
    w = world
    for given in (w.mask, w.mask.to_scale()):
        expect(error, words, cd.dropout, w.x, p, mask=given, out=w.out)
        expect(error, words, cd.dropout_backward, w.x, given, p=p, out=w.out)


# ---- x ----------------------------------------------------------------------------------------

KINDS = f"x has to be an array of {TAKEN}, but got "
NO_ARRAY = (
    f"x has to be a NumPy array, or have DLPack or the buffer protocol, with elements of {TAKEN}, "
    "but got "
)
MASKED = "x is a masked array, and its mask would be lost; pass x.data or x.filled()"
ORDER = "x has to be in this machine's byte order, but got "
SWAPPED = ">" if sys.byteorder == "little" else "<"
INPUTS = [
    ([1.0, 2.0], NO_ARRAY + "list"),
    (1.0, NO_ARRAY + "float"),
    (None, NO_ARRAY + "NoneType"),
    ("x", NO_ARRAY + "str"),
    (Sparse(), NO_ARRAY + "Sparse"),
    (cd.Mask(3, 0.5), NO_ARRAY + "Mask"),
    (np.ones((2, 3), np.int64), KINDS + "int64"),
    (np.ones((2, 3), np.uint8), KINDS + "uint8"),
    (np.ones((2, 3), bool), KINDS + "bool"),
    (np.ones((2, 3), np.complex64), KINDS + "complex64"),
    (np.ones((2, 3), object), KINDS + "object"),
    (np.ones((2, 3), "U3"), KINDS + str(np.dtype("U3"))),
    (np.ones((2, 3), "m8[s]"), KINDS + "timedelta64[s]"),
    (np.ones((2, 3), "f4,f4"), KINDS + str(np.dtype("f4,f4"))),
    (np.int32(3), KINDS + "int32"),
    (b"abcd", KINDS + "uint8"),
    (np.ones((2, 3), np.longdouble), KINDS + str(np.dtype(np.longdouble))),
    (np.ones((2, 3), SWAPPED + "f4"), ORDER + SWAPPED + "f4"),
    (np.ones((2, 3), SWAPPED + "f8"), ORDER + SWAPPED + "f8"),
    (memoryview(np.ones((2, 3), SWAPPED + "f8")), ORDER + SWAPPED + "f8"),
    (np.ma.masked_array([1.0], [True]), MASKED),
    (np.ma.masked_array([1.0]), MASKED),
]


@pytest.mark.parametrize("x, words", INPUTS, ids=lambda value: repr(value)[:30])
def test_x(world, x, words):
    w = world
    for kwargs in ({}, {"p": 0}, {"p": 1}, {"training": False}, {"inplace": True}, {"out": w.out}):
        expect(TypeError, words, cd.dropout, x, rng=w.generator, **kwargs)
    expect(TypeError, words, cd.dropout, x, rng=w.numpy_rng)
    expect(TypeError, words, cd.dropout_backward, x, w.mask)
    expect(TypeError, words, w.mask.apply, x, w.out)
    expect(TypeError, words, w.module, x)
    expect(TypeError, words, w.module.backward, x)


def test_x_in_place(world):
    mask, window = world.mask, strided(world.x, (4, 4))
    for x, words in [(frozen(world.x), "x is read-only"), (window, f"elements of x {SELF}")]:
        for kwargs in ({}, {"p": 1}, {"broadcast_dims": 0}):
            expect(ValueError, words, cd.dropout, x, inplace=True, rng=world.generator, **kwargs)
        for given in (mask, mask.bits()):
            expect(ValueError, words, cd.dropout, x, inplace=True, mask=given)
        for given in (mask, mask.bits(), np.asarray(mask), mask.to_scale()):
            expect(ValueError, words, cd.dropout_backward, x, given, True, p=0.5)
    both = "inplace=True and out= exclude each other"
    expect(ValueError, both, cd.dropout, world.x, inplace=True, out=world.out, rng=world.generator)
    expect(ValueError, both, cd.dropout, world.x, 0, inplace=True, out=world.out)
    expect(ValueError, both, cd.dropout_backward, world.x, mask, True, out=world.x)


def test_a_scalar_cannot_be_written_to(world):
    with pytest.raises(ValueError, match="read-only"):
        cd.dropout(np.float32(3), 0.5, inplace=True, rng=world.generator)


# ---- out --------------------------------------------------------------------------------------

NO_OUT = "out has to be a NumPy array, but got "
SHAPE = "out has to have the shape of x, (2, 3), but got "
TYPE = f"out has to have the type and byte order of x, {np.dtype('f4').str}, but got "
OUTS = [
    (lambda w: [[0.0] * 3] * 2, TypeError, NO_OUT + "list"),
    (lambda w: memoryview(w.out), TypeError, NO_OUT + "memoryview"),
    (lambda w: np.ma.masked_array(w.out), TypeError, NO_OUT + "MaskedArray"),
    (lambda w: w.out.T, ValueError, SHAPE + "(3, 2)"),
    (lambda w: w.out[:1], ValueError, SHAPE + "(1, 3)"),
    (lambda w: w.out.reshape(6), ValueError, SHAPE + "(6,)"),
    (lambda w: w.out.astype("f8"), ValueError, TYPE + np.dtype("f8").str),
    (lambda w: w.out.view("i4"), ValueError, TYPE + np.dtype("i4").str),
    (lambda w: w.out.view(SWAPPED + "f4"), ValueError, TYPE + SWAPPED + "f4"),
    (lambda w: frozen(w.out), ValueError, "out is read-only"),
    (lambda w: np.broadcast_to(w.out[0], (2, 3)), ValueError, "out is read-only"),
    (lambda w: strided(w.out, (0, 4)), ValueError, f"elements of out {SELF}"),
    (lambda w: strided(w.out, (4, 4)), ValueError, f"elements of out {SELF}"),
]


def frozen(array):
    array = array.view()
    array.flags.writeable = False
    return array


def strided(array, strides):
    return np.lib.stride_tricks.as_strided(array, (2, 3), strides)


@pytest.mark.parametrize("make, error, words", OUTS)
def test_out(world, make, error, words):
    w, out = world, make(world)
    for kwargs in ({}, {"p": 0}, {"p": 1}, {"training": False}):
        expect(error, words, cd.dropout, w.x, out=out, rng=w.generator, **kwargs)
    expect(error, words, cd.dropout, w.x, out=out, mask=w.mask)
    expect(error, words, cd.dropout, w.x, out=out, rng=w.numpy_rng)
    for given in (w.mask, w.mask.bits(), np.asarray(w.mask), w.mask.to_scale()):
        expect(error, words, cd.dropout_backward, w.x, given, p=0.5, out=out)
    expect(error, words, w.mask.apply, w.x, out)
    expect(error, words, w.module.backward, w.x, out=out)


@pytest.mark.parametrize(
    "make, words",
    [(frozen, "out is read-only"), (lambda x: strided(x, (0, 4)), f"elements of out {SELF}")],
)
def test_x_as_out(world, make, words):
    x = make(world.x)
    for kwargs in ({}, {"p": 0}, {"p": 1}, {"training": False}):
        expect(ValueError, words, cd.dropout, x, out=x, rng=world.generator, **kwargs)
    expect(ValueError, words, cd.dropout, x, out=x, mask=world.mask)
    expect(ValueError, words, world.mask.apply, x, x)


def test_out_is_refused_where_an_overlap_takes_too_long_to_find():
    shape, base = (3, 3, 5, 3, 5, 4, 3), np.zeros(500_000, np.float32)
    steps = (177965, 51539, 6197, 1207, 155, 23, 5), (110376, 24215, 4074, 915, 94, 23, 5)
    x, out = (
        np.lib.stride_tricks.as_strided(memory, shape, [4 * step for step in of_each])
        for memory, of_each in zip((base, base[1:]), steps, strict=True)
    )
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(x, out, max_work=100_000)
    expect(ValueError, OVERLAP, cd.dropout, x, out=out)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_out_that_partly_overlaps_x(dtype):
    base = np.arange(40, dtype=dtype)
    before, generator, square = base.copy(), cd.Generator(1), base[:36].reshape(6, 6)
    octets = base.view(np.uint8)
    for x, out in [
        (base[:20], base[1:21]),
        (base[1:21], base[:20]),
        (base[:20], base[19:39]),  # one element
        (base, base[::-1]),
        (base[:20:2], base[10:20]),
        (square, square.T),
        (square[:, :3], square[:, 2:5]),
        (square[::2], square[1:4]),
        (base[:20], octets[1 : 1 + 20 * base.itemsize].view(dtype)),  # half an element
    ]:
        expect(ValueError, OVERLAP, cd.dropout, x, out=out, rng=generator)
        expect(ValueError, OVERLAP, cd.dropout, x, 0, out=out)
        expect(ValueError, OVERLAP, cd.Mask(x.shape, 0.5).apply, x, out)
        assert base.tobytes() == before.tobytes() and generator.calls == 0
    for x, out in [
        (base[:20], base[20:]),
        (base[20:], base[:20]),
        (base[::2], base[1::2]),
        (square[:, :3], square[:, 3:]),
    ]:
        np.testing.assert_array_equal(cd.dropout(x, rng=1, out=out), cd.dropout(x, rng=1))


# ---- mask -------------------------------------------------------------------------------------

ARRAYS = "mask has to be a Mask, or an array of bool, uint8 (packed bits) or float32, but got "
OTHER = "the mask has the shape {}, but x has (2, 3)"
BITS = "packed bits for x of shape (2, 3) have the shape (1,), but got "
GIVEN = [
    ("mask", TypeError, "mask has to be a Mask or a NumPy array, but got str"),
    ([[True] * 3] * 2, TypeError, "mask has to be a Mask or a NumPy array, but got list"),
    (np.ones((2, 3), np.int64), TypeError, ARRAYS + "int64"),
    (np.ones((2, 3), np.float64), TypeError, ARRAYS + "float64"),
    (np.ones((2, 3), SWAPPED + "f4"), TypeError, ARRAYS + SWAPPED + "f4"),
    (np.ones((2, 3), object), TypeError, ARRAYS + "object"),
    (cd.Mask((3, 2), 0.5), ValueError, OTHER.format("(3, 2)")),
    (cd.Mask((), 0.5), ValueError, OTHER.format("()")),
    (cd.Mask((2, 3, 1), 0.5), ValueError, OTHER.format("(2, 3, 1)")),
    (np.ones((3, 2), bool), ValueError, OTHER.format("(3, 2)")),
    (np.ones((1, 3), bool), ValueError, OTHER.format("(1, 3)")),
    (np.ones(3, np.float32), ValueError, OTHER.format("(3,)")),
    (np.ones(2, np.uint8), ValueError, BITS + "(2,)"),
    (np.ones(0, np.uint8), ValueError, BITS + "(0,)"),
    (np.ones((2, 3), np.uint8), ValueError, BITS + "(2, 3)"),
]


@pytest.mark.parametrize("given, error, words", GIVEN, ids=lambda value: repr(value)[:30])
def test_mask(world, given, error, words):
    w = world
    for kwargs in ({"inplace": True}, {"out": w.out}, {}):
        expect(error, words, cd.dropout, w.x, mask=given, **kwargs)
        expect(error, words, cd.dropout_backward, w.x, given, p=0.5, **kwargs)
    if isinstance(given, cd.Mask):
        expect(error, words, given.apply, w.x, w.out)


def test_a_mask_and_its_p(world):
    w, kept = world, np.ones((2, 3), bool)
    bools, bits = (f"a mask of {kind} requires p; pass p=" for kind in ("bools", "packed bits"))
    expect(ValueError, bools, cd.dropout_backward, w.x, kept, out=w.out)
    expect(ValueError, bits, cd.dropout_backward, w.x, np.packbits(kept), True)
    other = "the mask has p=0.5, but p=0.25 was given"
    expect(ValueError, other, cd.dropout_backward, w.x, w.mask, True, p=0.25)


# ---- numbers that name masks and generators ---------------------------------------------------

RANGE = "seed has to be in [-2**63, 2**64), but got "
SEEDS = [
    (True, TypeError, "bool"),
    (np.True_, TypeError, BOOL),
    (1.0, TypeError, "float"),
    (np.float64(1), TypeError, "float64"),
    ("1", TypeError, "str"),
    (np.array([1, 2]), TypeError, "ndarray"),
    (np.array(1.0), TypeError, "ndarray"),
    (2**64, ValueError, RANGE + str(2**64)),
    (-(2**63) - 1, ValueError, RANGE + str(-(2**63) - 1)),
]


@pytest.mark.parametrize("seed, error, words", SEEDS, ids=repr)
def test_seed(world, seed, error, words):
    w = world
    as_seed = "seed has to be an int, but got " + words if error is TypeError else words
    as_rng = BAD_RNG + words if error is TypeError else words
    expect(error, as_seed, cd.Generator, seed)
    expect(error, as_seed, cd.manual_seed, seed)
    expect(error, as_seed, cd.Mask, (2, 3), 0.5, seed)
    state = {"seed": seed, "calls": 9, "spawned": 9}
    expect(error, as_seed, setattr, w.generator, "state", state)
    for kwargs in ({}, {"p": 0}, {"training": False}, {"inplace": True}, {"out": w.out}):
        expect(error, as_rng, cd.dropout, w.x, rng=seed, **kwargs)
    expect(error, as_rng, cd.Dropout, rng=seed)


DIMS = "broadcast_dims has to be in [-2, 2) for 2 dimensions, but got "
OTHERS = [
    (lambda w: cd.dropout(w.x, rng=np.random), TypeError, BAD_RNG + "module"),
    (lambda w: cd.dropout(w.x, rng=np.random.RandomState(1)), TypeError, BAD_RNG + "RandomState"),
    (lambda w: cd.dropout(w.x, rng=Broken()), ZeroDivisionError, "no index today"),
    (lambda w: setattr(w.generator, "state", 5), ValueError, STATE + "5"),
    (lambda w: setattr(w.generator, "state", {"seed": 1}), ValueError, STATE + "{'seed': 1}"),
    (lambda w: w.generator.__setstate__(None), ValueError, STATE + "None"),
    (lambda w: cd.Dropout().backward(w.x), RuntimeError,
     "Dropout.backward was called before forward: there is no mask; "
     "call forward first, or pass mask="),
    (lambda w: w.module.backward(w.x.T), ValueError,
     "the mask has the shape (2, 3), but x has (3, 2)"),
    (lambda w: cd.dropout(w.x, broadcast_dims=2), ValueError, DIMS + "2"),
    (lambda w: cd.dropout(w.x, broadcast_dims=(0, -3), rng=w.generator), ValueError, DIMS + "-3"),
    (lambda w: cd.dropout(w.x, broadcast_dims=(1, -1), out=w.out), ValueError,
     "broadcast_dims names dimension 1 twice: (1, -1)"),
    (lambda w: cd.dropout(w.x, broadcast_dims=True, inplace=True), TypeError,
     "each of broadcast_dims has to be an int, but got bool"),
    (lambda w: cd.dropout(w.x, broadcast_dims=(0.0,), rng=w.numpy_rng), TypeError,
     "each of broadcast_dims has to be an int, but got float"),
    (lambda w: dispatch.choose("sse9", ("baseline",), ("baseline",)), ValueError,
     "CDROPOUT_ISA has to be one of baseline, avx2, avx512, but got 'sse9'"),
    (lambda w: dispatch.choose("avx2", ("baseline",), ("baseline", "avx2")), ValueError,
     "CDROPOUT_ISA=avx2: cdropout was built without avx2; it has baseline"),
    (lambda w: dispatch.choose("avx2", ("baseline", "avx2"), ("baseline",)), ValueError,
     "CDROPOUT_ISA=avx2: this CPU cannot run avx2; it runs baseline"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, words", OTHERS)
def test_the_other_errors(world, call, error, words):
    expect(error, words, call, world)

"""Tests of the type and message of each error; a call that fails must not change its arguments."""

import ctypes
import math
import mmap
import os
import pickle
import re
import subprocess
import sys
from array import array
from decimal import Decimal

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import every_dtype
from ..helpers.bad_calls import SHAPE, Number, Rng, Seeds, assert_raises, fail, forms_of
from ..helpers.requirements import slow


def each_row(names, table):
    """Parametrize a test with the rows of a table {id: row}."""
    return pytest.mark.parametrize(names, table.values(), ids=table)


# ---- p ----------------------------------------------------------------------------------------

NO_P = "^p has to be a number between 0 and 1, but got "
BAD_P = "^dropout probability has to be between 0 and 1, but got "
BOOL = type(np.True_).__name__  # "bool" in NumPy 2, "bool_" in NumPy 1


class NumberWithoutDtype(Number):
    """A number that raises an error when its attribute `dtype` is read."""

    dtype = property(fail)


PROBABILITIES = {
    "str": ("0.5", TypeError, NO_P + "str$"),
    "None": (None, TypeError, NO_P + "NoneType$"),
    "bool": (True, TypeError, NO_P + "bool$"),
    "NumPy bool": (np.True_, TypeError, NO_P + f"{BOOL}$"),
    "array of bool": (np.array(True), TypeError, NO_P + "ndarray$"),
    "1-d array": (np.array([0.5]), TypeError, NO_P + "ndarray$"),
    "2-d array": (np.full((1, 1), 0.5), TypeError, NO_P + "ndarray$"),
    "array of str": (np.array("0.5"), TypeError, NO_P + "ndarray$"),
    "list": ([0.5], TypeError, NO_P + "list$"),
    "complex": (0.5j, TypeError, NO_P + "complex$"),
    "complex128": (np.complex128(0.5), TypeError, NO_P + "complex128$"),
    "array of complex": (np.array(0.5 + 0j), TypeError, NO_P + "ndarray$"),
    "timedelta": (np.timedelta64(0, "s"), TypeError, NO_P + "timedelta64$"),
    "nan": (math.nan, ValueError, BAD_P + "nan$"),
    "NumPy nan": (np.float32("nan"), ValueError, BAD_P + "nan$"),
    "-0.1": (-0.1, ValueError, BAD_P + "-0.1$"),
    "1.5": (1.5, ValueError, BAD_P + "1.5$"),
    "inf": (math.inf, ValueError, BAD_P + "inf$"),
    "-inf": (-math.inf, ValueError, BAD_P + "-inf$"),
    "2": (2, ValueError, BAD_P + "2$"),
    "-1": (-1, ValueError, BAD_P + "-1$"),
    "just above 1": (math.nextafter(1, 2), ValueError, BAD_P + "1.0000000000000002$"),
    "just below 0": (-5e-324, ValueError, BAD_P + "-5e-324$"),
    "NumPy 1.5": (np.float64(1.5), ValueError, BAD_P + "1.5$"),
    "array of 1.5": (np.array(1.5), ValueError, BAD_P + "1.5$"),
    "Decimal": (Decimal("1.5"), ValueError, BAD_P + "1.5$"),
    "huge": (10**400, ValueError, BAD_P + f"{10**400}$"),
    "__float__ raises": (Number(fail), ZeroDivisionError, "^not today$"),
    "__float__ is a str": (Number(lambda: "0.5"), TypeError, "__float__ returned non-float"),
    "__float__ is nan": (Number(lambda: math.nan), ValueError, BAD_P + ".*Number object"),
    "dtype raises": (NumberWithoutDtype(lambda: 0.5), ZeroDivisionError, "^not today$"),
}


@each_row("p, error, match", PROBABILITIES)
def test_functions_reject_invalid_p(calls_with, p, error, match):
    for call in calls_with("p"):
        # dropout_backward accepts p=None
        if p is not None or "mask" not in call.arguments:
            assert_raises(error, match, call, p=p)


# ---- x ----------------------------------------------------------------------------------------

FLOATS = "float16, bfloat16, float32 or float64"
NO_X = (
    "^x has to be a NumPy array, or have DLPack or the buffer protocol, "
    f"with elements of {FLOATS}, but got "
)
DTYPE = f"^x has to be an array of {FLOATS}, but got "
MASKED = r"^x is a masked array, and its mask would be lost; pass x.data or x.filled\(\)$"
SWAPPED, SWAPPED_FLOAT = (
    (">", ctypes.c_float.__ctype_be__)
    if sys.byteorder == "little"
    else ("<", ctypes.c_float.__ctype_le__)
)
ORDER = "^x has to be in this machine's byte order, but got "


class Sparse:
    """An object with a shape and a dtype but without a buffer, like a sparse matrix."""

    shape, dtype, nnz = SHAPE, np.dtype(np.float32), 1


class Convertible:
    """An object with a method `__array__` that NumPy could call to convert the object."""

    __array__ = fail


class ArrayInterface:
    """An object whose `__array_interface__` has an invalid address, which NumPy does not check."""

    __array_interface__ = {"version": 3, "data": (8, False), "shape": SHAPE, "typestr": "<f4"}


class FakeArray:
    """An object that is not an array although its `__class__` is ndarray."""

    __class__ = np.ndarray


class Exporter:
    """An object whose DLPack methods call the given functions."""

    def __init__(self, export, find_device=lambda: (1, 0)):
        self.export, self.find_device = export, find_device

    def __dlpack__(self, **_):
        return self.export()

    def __dlpack_device__(self):
        return self.find_device()


def released_memoryview():
    view = memoryview(np.ones(3, np.float32))
    view.release()
    return view


def closed_mmap():
    memory = mmap.mmap(-1, 4096)
    memory.close()
    return memory


def exporter_of_used_capsule():
    capsule = np.ones(SHAPE, np.float32).__dlpack__()
    np.from_dlpack(Exporter(lambda: capsule))
    return Exporter(lambda: capsule)


def exporter_of(dtype):
    return Exporter(lambda: ones(dtype).__dlpack__())


def exporter_that_raises(error):
    def export():
        raise error

    return Exporter(export)


def ones(dtype):
    return np.ones(SHAPE, dtype)


def row_of(dtype):
    """Return the row of INPUTS for an array with this unsupported dtype."""
    return ones(dtype), TypeError, DTYPE + re.escape(str(np.dtype(dtype))) + "$"


INPUTS = {
    "list": ([1.0, 2.0], TypeError, NO_X + "list$"),
    "tuple": ((1.0,), TypeError, NO_X + "tuple$"),
    "float": (1.0, TypeError, NO_X + "float$"),
    "None": (None, TypeError, NO_X + "NoneType$"),
    "str": ("x", TypeError, NO_X + "str$"),
    "sparse": (Sparse(), TypeError, NO_X + "Sparse$"),
    "Mask": (cd.Mask(3, 0.5), TypeError, NO_X + "Mask$"),
    "__array__": (Convertible(), TypeError, NO_X + "Convertible$"),
    "__array_interface__": (ArrayInterface(), TypeError, NO_X + "ArrayInterface$"),
    "__class__": (FakeArray(), TypeError, NO_X + "FakeArray$"),
    "released": (released_memoryview(), TypeError, NO_X + "memoryview$"),
    "closed": (closed_mmap(), TypeError, NO_X + "mmap$"),
    "int64": row_of(np.int64),
    "uint8": row_of(np.uint8),
    "bool": row_of(bool),
    "complex64": row_of(np.complex64),
    "object": row_of(object),
    "str array": row_of("U3"),
    "timedelta": row_of("m8[s]"),
    "structured": row_of("f4,f4"),
    "float8": row_of(ml_dtypes.float8_e4m3fn),
    "longdouble": row_of(np.longdouble),
    "NumPy int": (np.int32(3), TypeError, DTYPE + "int32$"),
    "bytes": (b"abcd", TypeError, DTYPE + "uint8$"),
    "bytearray": (bytearray(8), TypeError, DTYPE + "uint8$"),
    "memory of int32": (memoryview(bytes(8)).cast("i"), TypeError, DTYPE + "int32$"),
    "memory of bool": (memoryview(bytes(8)).cast("?"), TypeError, DTYPE + "bool$"),
    "memory of char": (memoryview(bytes(8)).cast("c"), TypeError, DTYPE + r"\|S1$"),
    "array.array": (array("q", [1]), TypeError, DTYPE + "int64$"),
    "ctypes": ((ctypes.c_int * 3)(1, 2, 3), TypeError, DTYPE + "int32$"),
    "DLPack of complex64": (exporter_of(np.complex64), TypeError, DTYPE + "complex64$"),
    "DLPack of bool": (exporter_of(bool), TypeError, DTYPE + "bool$"),
    "swapped float32": (ones(SWAPPED + "f4"), TypeError, ORDER + SWAPPED + "f4$"),
    "swapped float64": (ones(SWAPPED + "f8"), TypeError, ORDER + SWAPPED + "f8$"),
    "swapped memory": (memoryview(ones(SWAPPED + "f8")), TypeError, ORDER + SWAPPED + "f8$"),
    "swapped ctypes": ((SWAPPED_FLOAT * 3)(1, 2, 3), TypeError, ORDER + SWAPPED + "f4$"),
    "masked array": (np.ma.masked_array([1.0], [True]), TypeError, MASKED),
    "masked array, no mask": (np.ma.masked_array([1.0]), TypeError, MASKED),
    "__dlpack__ raises": (Exporter(fail), ZeroDivisionError, "^not today$"),
    "BufferError": (exporter_that_raises(BufferError("no")), BufferError, "no$"),
    "ValueError": (exporter_that_raises(ValueError("not so")), ValueError, "^not so$"),
    "__dlpack__ is an int": (Exporter(lambda: 5), ValueError, "PyCapsule"),
    "__dlpack__ is None": (Exporter(lambda: None), ValueError, "PyCapsule"),
    "used capsule": (exporter_of_used_capsule(), ValueError, "PyCapsule"),
    "__dlpack_device__ raises": (Exporter(fail, fail), ZeroDivisionError, "^not today$"),
}


@each_row("x, error, match", INPUTS)
def test_functions_reject_invalid_x(calls_with, x, error, match):
    for call in calls_with("x"):
        assert_raises(error, match, call, x=x)


# ---- x and out that cannot be written ---------------------------------------------------------

OVERLAPPING = "^elements of {} overlap in memory$"


def frozen(array):
    array = array.view()
    array.flags.writeable = False
    return array


def strided(array, strides):
    return np.lib.stride_tricks.as_strided(array, array.shape, strides)


def repeated_rows(array):
    """Return a view with a stride of 0 along the first axis."""
    return strided(array, (0, *array.strides[1:]))


def overlapping_rows(array):
    """Return a view with a stride of 4 bytes along every axis, so that its rows overlap."""
    return strided(array, (4,) * array.ndim)


UNWRITABLE = {
    "read-only": (frozen, "^{} is read-only$"),
    "stride of 0": (repeated_rows, OVERLAPPING),
    "overlapping rows": (overlapping_rows, OVERLAPPING),
}


@each_row("make, match", UNWRITABLE)
def test_inplace_requires_x_to_be_writable(calls_with, make, match):
    for call in calls_with("x", "inplace"):
        changed = {"x": make(call.arguments["x"]), "inplace": True}
        if "out" in call.arguments:
            changed["out"] = None
        if call.name in ("dropout in evaluation", "dropout with p = 0"):  # both return x itself
            assert call(**changed) is changed["x"]
        else:
            assert_raises(ValueError, match.format("x"), call, **changed)


@each_row("make, match", UNWRITABLE)
def test_inplace_with_broadcast_dims_requires_x_to_be_writable(unchanged, make, match):
    arguments = {"inplace": True, "rng": unchanged.generator, "broadcast_dims": 0}
    assert_raises(ValueError, match.format("x"), cd.dropout, make(unchanged.x), **arguments)


def test_inplace_with_a_scalar_raises(unchanged):
    arguments = {"inplace": True, "rng": unchanged.generator}
    assert_raises(ValueError, "read-only", cd.dropout, np.float32(3), 0.5, **arguments)


def test_inplace_with_out_raises(unchanged, calls_with):
    match = "^inplace=True cannot be combined with out=$"
    for call in calls_with("x", "inplace", "out"):
        for out in (unchanged.out, unchanged.x):
            assert_raises(ValueError, match, call, inplace=True, out=out)


@each_row("make, match", UNWRITABLE)
def test_x_passed_as_out_has_to_be_writable(calls_with, make, match):
    for call in calls_with("x", "out"):
        if call.name != "mc_dropout":  # in mc_dropout, `out` has another shape than x
            x = make(call.arguments["x"])
            assert_raises(ValueError, match.format("out"), call, x=x, out=x)


NO_OUT = "^out has to be a NumPy array, but got "
OUT_SHAPE = "^out has to have the shape of x, SHAPES$"
OUT_DTYPE = f"^out has to have the type and byte order of x, {np.dtype('f4').str}, but got "
OVERLAP = "^out partly overlaps x; it has to be x itself or memory that does not overlap x$"


def begin_with_last_element_of_x(u, out):
    return u.memory[419:][: out.size].reshape(out.shape)


def end_with_first_element_of_x(u, out):
    return u.memory[301 - out.size :][: out.size].reshape(out.shape)


OUTS = {
    "list": (lambda u, out: [[0.0]], TypeError, NO_OUT + "list$"),
    "memoryview": (lambda u, out: memoryview(out), TypeError, NO_OUT + "memoryview$"),
    "masked": (lambda u, out: np.ma.masked_array(out), TypeError, NO_OUT + "MaskedArray$"),
    "transposed": (lambda u, out: out.T, ValueError, OUT_SHAPE),
    "too short": (lambda u, out: out[:1], ValueError, OUT_SHAPE),
    "flat": (lambda u, out: out.reshape(-1), ValueError, OUT_SHAPE),
    "empty": (lambda u, out: out[:0], ValueError, OUT_SHAPE),
    "float64": (lambda u, out: out.astype("f8"), ValueError, OUT_DTYPE + np.dtype("f8").str),
    "int32": (lambda u, out: out.view("i4"), ValueError, OUT_DTYPE + np.dtype("i4").str),
    "swapped": (lambda u, out: out.view(SWAPPED + "f4"), ValueError, OUT_DTYPE + SWAPPED + "f4"),
    "read-only": (lambda u, out: frozen(out), ValueError, "^out is read-only$"),
    "broadcast": (lambda u, out: np.broadcast_to(out[0], out.shape), ValueError,
                  "^out is read-only$"),
    "stride of 0": (lambda u, out: repeated_rows(out), ValueError, OVERLAPPING.format("out")),
    "overlapping rows": (lambda u, out: overlapping_rows(out), ValueError,
                         OVERLAPPING.format("out")),
    "last element of x": (begin_with_last_element_of_x, ValueError, OVERLAP),
    "first element of x": (end_with_first_element_of_x, ValueError, OVERLAP),
}  # fmt: skip


@each_row("make, error, match", OUTS)
def test_functions_reject_invalid_out(unchanged, calls_with, make, error, match):
    for call in calls_with("out"):
        valid = call.arguments["out"]
        out = make(unchanged, valid)
        shapes = f"{valid.shape}, but got {np.shape(out)}"
        assert_raises(error, match.replace("SHAPES", re.escape(shapes)), call, out=out)


def test_dropout_rejects_out_if_the_search_for_an_overlap_takes_too_long():
    shape, base = (3, 3, 5, 3, 5, 4, 3), np.zeros(500_000, np.float32)
    steps = (177965, 51539, 6197, 1207, 155, 23, 5), (110376, 24215, 4074, 915, 94, 23, 5)
    x, out = (
        np.lib.stride_tricks.as_strided(memory, shape, [4 * step for step in steps_of_array])
        for memory, steps_of_array in zip((base, base[1:]), steps, strict=True)
    )
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(x, out, max_work=100_000)
    assert_raises(ValueError, OVERLAP, cd.dropout, x, out=out)


@every_dtype
def test_out_must_not_partly_overlap_x(dtype):
    base = np.arange(40, dtype=dtype)
    before, generator, square = base.copy(), cd.Generator(1), base[:36].reshape(6, 6)
    bytes_ = base.view(np.uint8)
    for x, out in [
        (base[:20], base[1:21]),
        (base[1:21], base[:20]),
        (base[:20], base[19:39]),  # one element overlaps
        (base, base[::-1]),
        (base[:20:2], base[10:20]),
        (square, square.T),
        (square[:, :3], square[:, 2:5]),
        (square[::2], square[1:4]),
        (
            base[:20],
            bytes_[1 : 1 + 20 * base.itemsize].view(dtype),
        ),  # shifted by one byte
    ]:
        assert_raises(ValueError, OVERLAP, cd.dropout, x, out=out, rng=generator)
        assert_raises(ValueError, OVERLAP, cd.dropout, x, 0, out=out)
        assert_raises(ValueError, OVERLAP, cd.Mask(x.shape, 0.5).apply, x, out)
        assert base.tobytes() == before.tobytes() and generator.calls == 0
    for x, out in [
        (base[:20], base[20:]),
        (base[20:], base[:20]),
        (base[::2], base[1::2]),
        (square[:, :3], square[:, 3:]),
    ]:
        np.testing.assert_array_equal(cd.dropout(x, rng=1, out=out), cd.dropout(x, rng=1))


# ---- mask -------------------------------------------------------------------------------------

NO_MASK = "^mask has to be a Mask or a NumPy array, but got "
MASK_DTYPE = (
    "^mask has to be a Mask, or an array of bool, uint8 \\(packed bits\\) or float32, but got "
)


def shape_message(shape):
    """Return a pattern for the message about a mask with this shape."""
    return "^" + re.escape(f"the mask has the shape {shape}, but x has {SHAPE}") + "$"


def bits_message(shape):
    """Return a pattern for the message about packed bits with this shape."""
    text = f"packed bits for x of shape {SHAPE} have the shape (15,), but got {shape}"
    return "^" + re.escape(text) + "$"


MASKS = {
    "str": ("mask", TypeError, NO_MASK + "str$"),
    "list": ([[True] * 3] * 2, TypeError, NO_MASK + "list$"),
    "memoryview": (memoryview(np.ones(15, np.uint8)), TypeError, NO_MASK + "memoryview$"),
    "masked array": (np.ma.ones(SHAPE, bool), TypeError, NO_MASK + "MaskedArray$"),
    "class": (cd.Mask, TypeError, NO_MASK + "type$"),
    "int8": (ones(np.int8), TypeError, MASK_DTYPE + "int8$"),
    "int64": (ones(np.int64), TypeError, MASK_DTYPE + "int64$"),
    "float64": (ones(np.float64), TypeError, MASK_DTYPE + "float64$"),
    "swapped": (ones(SWAPPED + "f4"), TypeError, MASK_DTYPE + SWAPPED + "f4$"),
    "object": (ones(object), TypeError, MASK_DTYPE + "object$"),
    "Mask, transposed": (cd.Mask(SHAPE[::-1], 0.5), ValueError, shape_message(SHAPE[::-1])),
    "Mask of no axes": (cd.Mask((), 0.5), ValueError, shape_message(())),
    "Mask, one more axis": (cd.Mask((*SHAPE, 1), 0.5), ValueError, shape_message((*SHAPE, 1))),
    "bools, transposed": (ones(bool).T, ValueError, shape_message(SHAPE[::-1])),
    "bools of length 1": (ones(bool)[:1], ValueError, shape_message((1, 3, 4, 5))),
    "scale, fewer axes": (ones("f4")[0], ValueError, shape_message((3, 4, 5))),
    "too few bits": (np.ones(14, np.uint8), ValueError, bits_message((14,))),
    "too many bits": (np.ones(16, np.uint8), ValueError, bits_message((16,))),
    "no bits": (np.ones(0, np.uint8), ValueError, bits_message((0,))),
    "bits of x's shape": (ones(np.uint8), ValueError, bits_message(SHAPE)),
    "Mask without __init__": (cd.Mask.__new__(cd.Mask), TypeError, "NoneType"),
}


@each_row("mask, error, match", MASKS)
def test_functions_reject_invalid_masks(unchanged, calls_with, mask, error, match):
    for call in calls_with("mask"):
        for changed in ({}, {"out": None, "inplace": True}, {"out": None}):
            assert_raises(error, match, call, mask=mask, **changed)
    if error is ValueError and isinstance(mask, cd.Mask):
        assert_raises(error, match, mask.apply, unchanged.x, unchanged.out)


def test_module_backward_rejects_a_gradient_with_another_shape(unchanged):
    match = re.escape(f"the mask has the shape {SHAPE}, but x has {SHAPE[::-1]}")
    assert_raises(ValueError, f"^{match}$", unchanged.module.backward, unchanged.x.T)


P_OF_MASKS = {
    "bools": (None, "^a mask of bools requires p; pass p=$"),
    "bits": (None, "^a mask of packed bits requires p; pass p=$"),
    "Mask": (0.25, "^the mask has p=0.5, but p=0.25 was given$"),
}


@pytest.mark.parametrize("form", P_OF_MASKS)
def test_dropout_backward_rejects_a_missing_or_different_p(unchanged, form):
    p, match = P_OF_MASKS[form]
    mask = forms_of(unchanged.mask)[form]
    for arguments in ({"out": unchanged.out}, {"inplace": True}, {}):
        assert_raises(ValueError, match, cd.dropout_backward, unchanged.x, mask, p=p, **arguments)


# ---- rng and seeds ----------------------------------------------------------------------------

BAD_RNG = (
    "^rng has to be None, a cdropout.Generator, a numpy.random.Generator or SeedSequence, "
    "or an int, but got "
)
NO_SEED = "^seed has to be an int, but got "
SEED_RANGE = r"^seed has to be in \[-2\*\*63, 2\*\*64\), but got "


def exhausted_generator():
    """Return a generator that has used all its call numbers."""
    generator = cd.Generator(1)
    generator.state = {"seed": 1, "calls": 2**64 - 1, "spawned": 0}
    return generator


SEEDS = {
    "bool": (True, TypeError, "bool$"),
    "NumPy bool": (np.True_, TypeError, f"{BOOL}$"),
    "float": (1.0, TypeError, "float$"),
    "float64": (np.float64(1), TypeError, "float64$"),
    "str": ("1", TypeError, "str$"),
    "array of ints": (np.array([1, 2]), TypeError, "ndarray$"),
    "array of float": (np.array(1.0), TypeError, "ndarray$"),
    "__index__ is a float": (Number(lambda: 1.5), TypeError, "Number$"),
    "too large": (2**64, ValueError, f"{SEED_RANGE}{2**64}$"),
    "too small": (-(2**63) - 1, ValueError, f"{SEED_RANGE}{-(2**63) - 1}$"),
    "__index__ raises": (Number(fail), ZeroDivisionError, "^not today$"),
}


@each_row("seed, error, match", SEEDS)
def test_functions_reject_invalid_seeds(unchanged, calls_with, seed, error, match):
    as_seed, as_rng = (NO_SEED + match, BAD_RNG + match) if error is TypeError else (match, match)
    assert_raises(error, as_seed, cd.Generator, seed)
    assert_raises(error, as_seed, cd.manual_seed, seed)
    state = {"seed": seed, "calls": 9, "spawned": 9}
    assert_raises(error, as_seed, setattr, unchanged.generator, "state", state)
    for call in calls_with("seed"):
        assert_raises(error, as_seed, call, seed=seed)
    for call in calls_with("rng"):
        assert_raises(error, as_rng, call, rng=seed)


@pytest.mark.parametrize("rng", [np.random.Generator, np.random, np.random.RandomState(1)])
def test_functions_reject_rng_of_other_types(calls_with, rng):
    for call in calls_with("rng"):
        assert_raises(TypeError, BAD_RNG + type(rng).__name__ + "$", call, rng=rng)


FAILING_RNGS = {
    "integers raises": (Rng(fail), ZeroDivisionError, "^not today$"),
    "integers is a str": (Rng(lambda: "1"), TypeError, NO_SEED + "str$"),
    "empty sequence": (Seeds(list), IndexError, "list index out of range"),
    "no call numbers": (exhausted_generator(), OverflowError,
                        r"^this generator has used all 2\*\*64 - 1 "),
}  # fmt: skip


@each_row("rng, error, match", FAILING_RNGS)
def test_functions_raise_if_rng_fails(calls_with, rng, error, match):
    for call in calls_with("x", "rng"):
        if call.arguments["p"] == 0.5 and call.arguments.get("training", True):
            assert_raises(error, match, call, rng=rng)
    if isinstance(rng, cd.Generator):
        assert rng.calls == 2**64 - 1


# ---- broadcast_dims ---------------------------------------------------------------------------

NO_AXIS = "^each of broadcast_dims has to be an int, but got "
AXIS_RANGE = r"^broadcast_dims has to be in \[-4, 4\) for 4 dimensions, but got "
TWO_AXES = "^broadcast_dims contains dimension {} twice: {}$"
AXES = {
    "None": (None, TypeError, NO_AXIS + "NoneType$"),
    "bool": (True, TypeError, NO_AXIS + "bool$"),
    "str": ("01", TypeError, NO_AXIS + "str$"),
    "iterator": ((i for i in [0]), TypeError, NO_AXIS + "generator$"),
    "array": (np.array([0, 1]), TypeError, NO_AXIS + "ndarray$"),
    "float": ((0.0,), TypeError, NO_AXIS + "float$"),
    "nested": ((0, (1,)), TypeError, NO_AXIS + "tuple$"),
    "__index__ is a float": ((0, Number(lambda: 0.0)), TypeError, NO_AXIS + "Number$"),
    "__index__ raises": ((Number(fail),), ZeroDivisionError, "^not today$"),
    "huge": (10**30, ValueError, f"{AXIS_RANGE}{10**30}$"),
    "too large": (4, ValueError, AXIS_RANGE + "4$"),
    "second too large": ((0, 4), ValueError, AXIS_RANGE + "4$"),
    "too small": ((0, -5), ValueError, AXIS_RANGE + "-5$"),
    "twice, list": ([0, -4], ValueError, TWO_AXES.format(0, r"\(0, -4\)")),
    "twice": ((3, -1), ValueError, TWO_AXES.format(3, r"\(3, -1\)")),
}


@each_row("axes, error, match", AXES)
def test_functions_reject_invalid_broadcast_dims(calls_with, axes, error, match):
    for call in calls_with("broadcast_dims"):
        assert_raises(error, match, call, broadcast_dims=axes)


# ---- arguments of few functions ---------------------------------------------------------------


def copy_x(u, **changed):
    return cd.mc_dropout(**{"x": u.x, "n": 2, "rng": u.generator, "out": u.copies, **changed})


class Keys(dict):
    """An empty dict whose method `keys` returns the keys of a state."""

    def keys(self):
        return {"seed", "calls", "spawned"}


STATE = "^state has to be a dict with the keys seed, calls and spawned, but got "
NO_N = "^n has to be an int, but got "
OTHERS = {  # each call takes the objects of the fixture `unchanged`
    "n: float": (lambda u: copy_x(u, n=2.0), TypeError, NO_N + "float$"),
    "n: str": (lambda u: copy_x(u, n="2"), TypeError, NO_N + "str$"),
    "n: bool": (lambda u: copy_x(u, n=True), TypeError, NO_N + "bool$"),
    "n: -1": (lambda u: copy_x(u, n=-1), ValueError, "^n has to be at least 0, but got -1$"),
    "n: huge": (lambda u: copy_x(u, n=2**62, out=None), ValueError, "too (large|big)"),
    "x: part of out": (lambda u: copy_x(u, x=u.copies[1]), ValueError, OVERLAP),
    "state: int": (lambda u: setattr(u.generator, "state", 5), ValueError, STATE + "5$"),
    "state: keys": (lambda u: setattr(u.generator, "state", {"seed": 1}), ValueError,
                    STATE + "{'seed': 1}$"),
    "state: list": (lambda u: setattr(u.generator, "state", [1, 2, 3]), ValueError,
                    STATE + r"\[1, 2, 3\]$"),
    "state: None": (lambda u: u.generator.__setstate__(None), ValueError, STATE + "None$"),
    "state: no values": (lambda u: setattr(u.generator, "state", Keys()), KeyError, "seed"),
    "state: calls raise": (
        lambda u: setattr(u.generator, "state", {"seed": 1, "calls": Number(fail), "spawned": 3}),
        ZeroDivisionError, "^not today$"),
    "seed is read-only": (lambda u: setattr(u.generator, "seed", 1), AttributeError, "seed"),
    "seed: None": (lambda u: cd.manual_seed(None), TypeError, NO_SEED + "NoneType$"),
    "threads: raises": (lambda u: cd.set_num_threads(Number(fail)), ZeroDivisionError,
                        "^not today$"),
    "index: raises": (lambda u: u.mask[Number(fail)], ZeroDivisionError, "^not today$"),
    "slice: raises": (lambda u: u.mask[Number(fail):], ZeroDivisionError, "^not today$"),
    "slice: step 0": (lambda u: u.mask[::0], ValueError, "^slice step cannot be zero$"),
    "Mask: call": (lambda u: u.mask.__init__((2, 3), 0.1, 9, 2**64), ValueError, "^call has to"),
    "Mask: start": (lambda u: u.mask.__init__((2, 3), 0.1, 9, start=2**64 - 1), ValueError,
                    "this one"),
    "Mask: length raises": (lambda u: cd.Mask((Number(fail),), 0.5), ZeroDivisionError,
                            "^not today$"),
    "Mask: scale raises": (lambda u: cd.Mask(3, 0.5, scale=Number(fail)), ZeroDivisionError,
                           "^not today$"),
    "Mask.shape is read-only": (lambda u: setattr(u.mask, "shape", (1,)), AttributeError, "shape"),
    "Mask.to_scale of int": (lambda u: u.mask.to_scale(int), TypeError, "^x has to be an array of"),
}  # fmt: skip


@each_row("call, error, match", OTHERS)
def test_other_invalid_arguments_raise(unchanged, call, error, match):
    assert_raises(error, match, call, unchanged)


# ---- pickles ----------------------------------------------------------------------------------

PICKLED = {
    "Mask": cd.Mask((3, 4), 0.3, 2**64 - 1, 7)[1:, ::2],
    "Generator": cd.Generator(5),
    "Dropout": cd.Dropout(0.5, rng=3),
}
INCOMPLETE = EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", PICKLED.values(), ids=PICKLED)
def test_unpickling_incomplete_pickles_raises(unchanged, value, protocol):
    complete, before = pickle.dumps(value, protocol), repr(value)
    for length in range(len(complete)):
        with pytest.raises(INCOMPLETE):
            pickle.loads(complete[:length])
    assert repr(pickle.loads(complete)) == before == repr(value)


class Recipe:
    """An object that is pickled as the given function, arguments and state."""

    def __init__(self, *recipe):
        self.recipe = recipe

    def __reduce__(self):
        return self.recipe


PICKLES = {
    "Mask without p": ((cd.Mask, ()), TypeError, "takes at least 2 pos"),
    "Mask of p = 2": ((cd.Mask, ((3,), 2.0)), ValueError, BAD_P + "2.0$"),
    "Mask past the end": ((cd.Mask, ((3,), 0.5, 0, 0, 2**64 - 1)), ValueError, "this one"),
    "Generator of str": ((cd.Generator, ("1",)), TypeError, NO_SEED + "str$"),
    "state without keys": ((cd.Generator, (1,), {"seed": 1}), ValueError, STATE),
    "state of str": ((cd.Generator, (1,), "calls"), ValueError, STATE),
}


@each_row("recipe, error, match", PICKLES)
def test_unpickling_invalid_arguments_raises(unchanged, recipe, error, match):
    assert_raises(error, match, pickle.loads, pickle.dumps(Recipe(*recipe)))


# ---- environment ------------------------------------------------------------------------------


def import_with(**environment):
    """Import cdropout in a new process; return the exit status and the last line of stderr."""
    done = subprocess.run(
        [sys.executable, "-P", "-X", "utf8", "-c", "import cdropout"],
        capture_output=True, text=True, encoding="utf-8", errors="surrogateescape",
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("text", ["AVX3", "../kernels", *slow(" avx2", "avx2,avx512", "\udcff")])
def test_import_with_an_invalid_cdropout_isa_raises(text):
    message = "CDROPOUT_ISA has to be one of baseline, avx2, avx512, but got "
    status, error = import_with(CDROPOUT_ISA=text)
    assert status == 1 and error == f"ValueError: {message}{text!r}"


@pytest.mark.parametrize("text", ["0", "1_0", *slow("-1", "two", "1.5", " 2", "0x2", "²", "+2")])
def test_import_with_an_invalid_cdropout_num_threads_raises(text):
    message = "CDROPOUT_NUM_THREADS has to be an int of at least 1, but got "
    status, error = import_with(CDROPOUT_NUM_THREADS=text)
    assert status == 1 and error == f"ValueError: {message}{text!r}"


@pytest.mark.slow
def test_import_with_too_many_digits_in_cdropout_num_threads_raises():
    status, error = import_with(CDROPOUT_NUM_THREADS="9" * 5000)
    assert status == 1 and re.match("ValueError: .*4300 digits", error)

"""Bad calls of every function: the error, its words, and that nothing has changed."""

import mmap

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from ..helpers.bad_calls import NO_P, OVERLAP, SHAPE, Number, Rng, assert_raises, fail

BAD_P = "^dropout probability has to be between 0 and 1, but got "
BAD_RNG = "^rng has to be None, a cdropout.Generator, a numpy.random.Generator .* but got "
NO_X = "^x has to be a NumPy array, or have DLPack or the buffer protocol, .* but got "
KIND = "^x has to be an array of float16, bfloat16, float32 or float64, but got "


# ---- every function, with one wrong argument --------------------------------------------------


def usual(function):
    def call(w, x=None, p=0.5, rng=None, out=None):
        x, rng = w.x if x is None else x, w.generator if rng is None else rng
        return function(x, p, True, rng=rng, out=w.out if out is None else out)

    return call


def copies(w, x=None, p=0.5, rng=None, out=None):
    x, rng = w.x if x is None else x, w.generator if rng is None else rng
    return cd.mc_dropout(x, p, 2, rng=rng, out=w.copies if out is None else out)


def fused(w, x=None, p=0.5, rng=None, out=None):
    x, rng = w.x if x is None else x, w.generator if rng is None else rng
    return cd.bias_dropout_add(x, w.bias, w.x, p, rng=rng, out=w.out if out is None else out)


FUNCTIONS = {
    "dropout": usual(cd.dropout),
    "dropout1d": lambda w, **given: usual(cd.dropout1d)(w, **flat(w, given)),
    "dropout2d": usual(cd.dropout2d),
    "dropout3d": usual(cd.dropout3d),
    "drop_path": usual(cd.drop_path),
    "alpha_dropout": usual(cd.alpha_dropout),
    "feature_alpha_dropout": usual(cd.feature_alpha_dropout),
    "mc_dropout": copies,
    "bias_dropout_add": fused,
}


def flat(w, given):
    """Arguments of three dimensions in place of four."""
    given = {"x": w.x, "out": w.out, **given}
    for name in ("x", "out"):
        if type(given[name]) is np.ndarray and given[name].shape == SHAPE:
            given[name] = given[name].reshape(6, 4, 5)
    return given


class Lying:
    """A number, as long as its dtype is not asked for."""

    dtype = property(lambda self: fail())
    __float__ = lambda self: 0.5  # noqa: E731


PROBABILITIES = {
    "str": ("0.5", TypeError, NO_P + "str$"),
    "nan": (float("nan"), ValueError, BAD_P + "nan$"),
    "above": (1.0000000000000002, ValueError, BAD_P + "1.0000000000000002$"),
    "below": (-5e-324, ValueError, BAD_P + "-5e-324$"),
    "__float__ raises": (Number(fail), ZeroDivisionError, "^not today$"),
    "__float__ is a str": (Number(lambda: "0.5"), TypeError, "__float__ returned non-float"),
    "__float__ is nan": (Number(lambda: float("nan")), ValueError, BAD_P + ".*Number object"),
    "dtype raises": (Lying(), ZeroDivisionError, "^not today$"),
    "ndim lies": (np.full((1, 1), 0.5), TypeError, NO_P + "ndarray$"),
}


class Exporter:
    """Has DLPack, of which either half does what it is told."""

    def __init__(self, capsule, device=lambda: (1, 0)):
        self.capsule, self.device = capsule, device

    def __dlpack__(self, **_):
        return self.capsule()

    def __dlpack_device__(self):
        return self.device()


class Interface:
    """Says where its memory lies; nobody is to believe it."""

    __array_interface__ = {"version": 3, "data": (8, False), "shape": SHAPE, "typestr": "<f4"}


class Masquerade:
    """Says that it is an ndarray."""

    __class__ = np.ndarray


def fail_array(*_, **__):
    raise AssertionError("nobody is to ask")


def released():
    view = memoryview(np.ones(3, np.float32))
    view.release()
    return view


def closed():
    memory = mmap.mmap(-1, 4096)
    memory.close()
    return memory


def used_capsule():
    capsule = np.ones(SHAPE, np.float32).__dlpack__()
    np.from_dlpack(Exporter(lambda: capsule))
    return Exporter(lambda: capsule)


INPUTS = {
    "list": ([1.0], TypeError, NO_X + "list$"),
    "int64": (np.ones(SHAPE, np.int64), TypeError, KIND + "int64$"),
    "object": (np.full(SHAPE, None), TypeError, KIND + "object$"),
    "float8": (np.ones(SHAPE, ml_dtypes.float8_e4m3fn), TypeError, KIND + "float8_e4m3fn$"),
    "__array__": (type("Array", (), {"__array__": fail_array})(), TypeError, NO_X + "Array$"),
    "__array_interface__": (Interface(), TypeError, NO_X + "Interface$"),
    "__class__ lies": (Masquerade(), TypeError, NO_X + "Masquerade$"),
    "released": (released(), TypeError, NO_X + "memoryview$"),
    "closed": (closed(), TypeError, NO_X + "mmap$"),
    "__dlpack__ raises": (Exporter(fail), ZeroDivisionError, "^not today$"),
    "__dlpack__ is None": (Exporter(lambda: None), ValueError, "PyCapsule"),
    "used capsule": (used_capsule(), ValueError, "PyCapsule"),
    "__dlpack_device__ raises": (Exporter(fail, fail), ZeroDivisionError, "^not today$"),
}


class Sequence(np.random.SeedSequence):
    def generate_state(self, *_):
        return []


RNGS = {
    "float": (1.5, TypeError, BAD_RNG + "float$"),
    "too large": (2**64, ValueError, r"^seed has to be in \[-2\*\*63, 2\*\*64\), but got 1844"),
    "class": (np.random.Generator, TypeError, BAD_RNG + "type$"),
    "__index__ raises": (Number(fail), ZeroDivisionError, "^not today$"),
    "__index__ is a float": (Number(lambda: 1.5), TypeError, BAD_RNG + "Number$"),
    "integers raises": (Rng(fail), ZeroDivisionError, "^not today$"),
    "integers is a str": (Rng(lambda: "1"), TypeError, "^seed has to be an int, but got str$"),
    "empty sequence": (Sequence(1), IndexError, "list index out of range"),
    "used up": ("used up", OverflowError, r"^this generator has handed out all its 2\*\*64 - 1 "),
}


def one_element(before):
    """Return out, which begins with x's last element, or ends with its first."""

    def make(w, size):
        return w.memory[419 if before else 301 - size :][:size]

    return make


OUTS = {
    "list": (lambda w, size: [0.0], TypeError, "^out has to be a NumPy array, but got list$"),
    "shape": (lambda w, size: w.memory[:7], ValueError, "^out has to have the shape of x"),
    "type": (
        lambda w, size: np.empty(size),
        ValueError,
        "^out has to have the type and byte order",
    ),
    "read-only": (lambda w, size: frozen(np.ones(size, "f4")), ValueError, "^out is read-only$"),
    "overlaps the last": (one_element(True), ValueError, OVERLAP),
    "overlaps the first": (one_element(False), ValueError, OVERLAP),
}


def frozen(array):
    array.flags.writeable = False
    return array


CASES = [
    pytest.param(name, argument, *case, id=f"{name}, {argument}: {kind}")
    for name in FUNCTIONS
    for argument, table in [("p", PROBABILITIES), ("x", INPUTS), ("rng", RNGS), ("out", OUTS)]
    for kind, case in table.items()
]


@pytest.mark.parametrize("name, argument, value, error, words", CASES)
def test_a_wrong_argument(unchanged, name, argument, value, error, words):
    if argument == "out":
        shape = (2, *SHAPE) if name == "mc_dropout" else SHAPE
        value = value(unchanged, 240 if name == "mc_dropout" else 120)
        if getattr(value, "size", 0) in (120, 240):
            value = value.reshape(shape)
    if argument == "rng" and value == "used up":
        value = cd.Generator(1)
        value.state = {"seed": 1, "calls": 2**64 - 1, "spawned": 0}
    assert_raises(error, words, FUNCTIONS[name], unchanged, **{argument: value})
    if isinstance(value, cd.Generator):
        assert value.calls == 2**64 - 1


def test_a_type_that_numpy_gives_no_number():
    """Types of NumPy's newer kind have the number -1; NumPy has one for its own tests."""
    core = getattr(np, "_core", None) or np.core
    kind = getattr(core._multiarray_umath, "_get_sfloat_dtype", None)
    if kind is None:
        pytest.skip("this NumPy has no such type")
    x = np.ones(3).view(kind()(1.0))
    assert x.dtype.num == -1
    with pytest.raises(TypeError, match=KIND):
        cd.dropout(x)

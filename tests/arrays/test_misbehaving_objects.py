"""Objects that change things while asked, wrong masks and states, cut pickles, environments."""

import os
import pickle
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from ..helpers.bad_calls import NO_P, OVERLAP, SHAPE, Number, Rng, assert_raises, fail

# ---- backward, and masks that are given -------------------------------------------------------


def forms(mask):
    return {"Mask": mask, "bits": mask.bits(), "bools": np.asarray(mask), "scale": mask.to_scale()}


@pytest.mark.parametrize("form", ["Mask", "bits", "bools", "scale"])
@pytest.mark.parametrize("first", [419, 181])
def test_out_overlaps_the_gradient_by_one_element(unchanged, form, first):
    given = forms(unchanged.mask)[form]
    out = unchanged.memory[first:][:120].reshape(SHAPE)
    assert_raises(ValueError, OVERLAP, cd.dropout_backward, unchanged.x, given, p=0.5, out=out)
    assert_raises(ValueError, OVERLAP, cd.dropout, unchanged.x, mask=given, out=out)
    assert_raises(ValueError, OVERLAP, unchanged.module.backward, unchanged.x, out=out)
    assert_raises(ValueError, OVERLAP, unchanged.mask.apply, unchanged.x, out)


GIVEN = {
    "p lies": (lambda w: {"mask": w.mask.bits(), "p": Number(fail)}, ZeroDivisionError, "not"),
    "p of a Mask": (lambda w: {"mask": w.mask, "p": 0.25}, ValueError, "^the mask has p=0.5, but"),
    "p is a str": (lambda w: {"mask": np.asarray(w.mask), "p": "1"}, TypeError, NO_P + "str$"),
    "no p": (lambda w: {"mask": w.mask.bits()}, ValueError, "packed bits does not say p; pass p="),
    "bits too few": (lambda w: {"mask": np.ones(14, np.uint8), "p": 0.5}, ValueError,
                     r"have the shape \(15,\), but got \(14,\)"),
    "bits too many": (lambda w: {"mask": np.ones(16, np.uint8), "p": 0.5}, ValueError,
                      r"have the shape \(15,\), but got \(16,\)"),
    "bools turned": (lambda w: {"mask": np.asarray(w.mask).T, "p": 0.5}, ValueError,
                     "^the mask has the shape"),
    "a masked array": (lambda w: {"mask": np.ma.ones(SHAPE, bool), "p": 0.5}, TypeError,
                       "^mask has to be a Mask or a NumPy array, but got MaskedArray$"),
    "int8": (lambda w: {"mask": np.ones(SHAPE, np.int8), "p": 0.5}, TypeError,
             "^mask has to be a Mask, or an array of bool, uint8 .* but got int8$"),
    "a memoryview": (lambda w: {"mask": memoryview(w.mask.bits()), "p": 0.5}, TypeError,
                     "^mask has to be a Mask or a NumPy array, but got memoryview$"),
    "a class": (lambda w: {"mask": cd.Mask}, TypeError, "but got type$"),
    "an empty Mask": (lambda w: {"mask": cd.Mask.__new__(cd.Mask)}, TypeError, "NoneType"),
}  # fmt: skip


@pytest.mark.parametrize("given, error, words", GIVEN.values(), ids=GIVEN)
def test_a_wrong_mask(unchanged, given, error, words):
    for destination in ({"out": unchanged.out}, {"inplace": True}, {}):
        assert_raises(
            error, words, cd.dropout_backward, unchanged.x, **given(unchanged), **destination
        )


# ---- other arguments --------------------------------------------------------------------------


def fused(w, **given):
    given = {"x": w.x, "bias": w.bias, "residual": w.x, "rng": w.generator, "out": w.out, **given}
    return cd.bias_dropout_add(given.pop("x"), given.pop("bias"), given.pop("residual"), **given)


def state(w, **given):
    w.generator.state = {"seed": 1, "calls": 2, "spawned": 3, **given}


class Keys(dict):
    """A dict with the right keys and nothing behind them."""

    def keys(self):
        return {"seed", "calls", "spawned"}


INT = "^each of broadcast_dims has to be an int, but got "
AXES = r"^broadcast_dims has to be in \[-4, 4\) for 4 dimensions, but got "
DIMS = {
    "None": (None, TypeError, INT + "NoneType$"),
    "str": ("01", TypeError, INT + "str$"),
    "generator": ((i for i in [0]), TypeError, INT + "generator$"),
    "array": (np.array([0, 1]), TypeError, INT + "ndarray$"),
    "nested": ((0, (1,)), TypeError, INT + "tuple$"),
    "huge": (10**30, ValueError, AXES + "1" + "0" * 30),
    "outside": ((0, 4), ValueError, AXES + "4$"),
    "twice": ([0, -4], ValueError, r"^broadcast_dims names dimension 0 twice: \(0, -4\)$"),
    "raises": ((Number(fail),), ZeroDivisionError, "^not today$"),
    "a float": ((0, Number(lambda: 0.0)), TypeError, INT + "Number$"),
}


@pytest.mark.parametrize("dims, error, words", DIMS.values(), ids=DIMS)
def test_wrong_axes(unchanged, dims, error, words):
    for kwargs in ({"out": unchanged.out}, {"inplace": True}, {"p": 0}, {"training": False}):
        assert_raises(
            error,
            words,
            cd.dropout,
            unchanged.x,
            rng=unchanged.generator,
            broadcast_dims=dims,
            **kwargs,
        )


OTHERS = {
    "bias of another type": (lambda w: fused(w, bias=np.ones(5)), TypeError, "^bias has to be of"),
    "bias too long": (lambda w: fused(w, bias=np.ones(6, "f4")), ValueError,
                      "^bias has to broadcast to the shape of x"),
    "bias of more dimensions": (lambda w: fused(w, bias=w.x[None]), ValueError, "^bias has to"),
    "bias is a list": (lambda w: fused(w, bias=[1.0]), TypeError, "^bias has to be a NumPy"),
    "bias is masked": (lambda w: fused(w, bias=np.ma.ones(5)), TypeError, "^bias is a masked"),
    "bias is out": (lambda w: fused(w, bias=w.memory[619:624]), ValueError, "^out overlaps bias"),
    "residual turned": (lambda w: fused(w, residual=w.x.T), ValueError, "^residual has to have"),
    "residual of halves": (lambda w: fused(w, residual=w.x.astype("f2")), TypeError,
                           "^residual has to be of the type of x, float32, but got float16$"),
    "residual and out share one element": (
        lambda w: fused(w, residual=w.memory[619:739].reshape(SHAPE)), ValueError,
        "^out overlaps bias, or partly .* has to be residual itself or must not overlap either$"),
    "bias_shape": (lambda w: cd.bias_dropout_add_backward(w.x, w.mask, (4,)), ValueError,
                   "^bias has to broadcast"),
    "bias_shape is an int": (lambda w: cd.bias_dropout_add_backward(w.x, w.mask, 5), TypeError,
                             "^bias_shape has to be a tuple of int, but got int$"),
    "bits as a fused mask": (lambda w: cd.bias_dropout_add_backward(w.x, w.mask.bits()), TypeError,
                             "^mask has to be a Mask, but got ndarray$"),
    "n is a float": (lambda w: cd.mc_dropout(w.x, n=2.0, rng=w.generator), TypeError,
                     "^n has to be an int, but got float$"),
    "n is negative": (lambda w: cd.mc_dropout(w.x, n=-1, rng=w.generator), ValueError,
                      "^n has to be at least 0, but got -1$"),
    "n is huge": (lambda w: cd.mc_dropout(w.x, n=2**62, rng=w.generator), ValueError,
                  "too (large|big)"),
    "a state without a key": (lambda w: setattr(w.generator, "state", {"seed": 1}), ValueError,
                              "^state has to be a dict with the keys seed, calls and spawned, but"),
    "a state that lies": (lambda w: setattr(w.generator, "state", Keys()), KeyError, "seed"),
    "a state of lists": (lambda w: setattr(w.generator, "state", [1, 2, 3]), ValueError, "^state"),
    "a bad seed": (lambda w: state(w, seed=0.0), TypeError, "^seed has to be an int, but got"),
    "bad calls": (lambda w: state(w, calls=-1), ValueError, r"^calls has to be in \[0, 2\*\*64\)"),
    "bad children": (lambda w: state(w, spawned=2**64), ValueError, "^spawned has to be in"),
    "calls that raise": (lambda w: state(w, calls=Number(fail)), ZeroDivisionError, "^not today$"),
    "children that are none": (lambda w: w.generator.spawn(-1), ValueError, "^n has to be in"),
    "half a child": (lambda w: w.generator.spawn(0.5), TypeError, "^n has to be an int, but got"),
    "a seed set": (lambda w: setattr(w.generator, "seed", 1), AttributeError, "seed"),
    "a seed for all": (lambda w: cd.manual_seed(None), TypeError, "^seed has to be an int, but"),
    "threads": (lambda w: cd.set_num_threads(Number(fail)), ZeroDivisionError, "^not today$"),
    "no threads": (lambda w: cd.set_num_threads(0), ValueError, "has to be at least 1, but got 0$"),
    "an index": (lambda w: w.mask[1.0], IndexError, "^a mask takes integers, slices"),
    "an index that raises": (lambda w: w.mask[Number(fail)], ZeroDivisionError, "^not today$"),
    "a slice that raises": (lambda w: w.mask[Number(fail):], ZeroDivisionError, "^not today$"),
    "a step of 0": (lambda w: w.mask[::0], ValueError, "^slice step cannot be zero$"),
    "a mask again": (lambda w: w.mask.__init__((2, 3), 0.1, 9, 2**64), ValueError, "^call has to"),
    "and again": (lambda w: w.mask.__init__((2, 3), 0.1, 9, start=2**64 - 1), ValueError, "reach"),
    "a length": (lambda w: cd.Mask((2, -1), 0.5), ValueError, "^shape has to hold lengths of at"),
    "a length that raises": (lambda w: cd.Mask((Number(fail),), 0.5), ZeroDivisionError, "not"),
    "a scale": (lambda w: cd.Mask(3, 0.5, scale=-1.0), ValueError, "^scale has to be positive"),
    "a scale that raises": (lambda w: cd.Mask(3, 0.5, scale=Number(fail)), ZeroDivisionError,
                             "^not today$"),
    "a mask's shape set": (lambda w: setattr(w.mask, "shape", (1,)), AttributeError, "shape"),
    "a shared mask": (lambda w: w.mask.__array__(copy=False), ValueError, "^a mask holds no"),
    "a scale of ints": (lambda w: w.mask.to_scale(int), TypeError, "^x has to be an array of"),
    "an empty module": (lambda w: cd.Dropout().backward(w.x), RuntimeError, "before forward"),
}  # fmt: skip


@pytest.mark.parametrize("call, error, words", OTHERS.values(), ids=OTHERS)
def test_another_wrong_argument(unchanged, call, error, words):
    assert_raises(error, words, call, unchanged)


# ---- what changes while it is asked -----------------------------------------------------------

sets_a_shape = pytest.mark.filterwarnings(
    "ignore:Setting the shape:DeprecationWarning"
)  # NumPy 2.5


CHANGED = "^an array of this call was changed while a seed was drawn from rng$"


@sets_a_shape
def test_a_shape_that_changes_while_the_seed_is_asked_for():
    """Neither array may be read by the other's strides."""
    base, generator = np.ones((4096, 2), np.float32), cd.Generator(5)
    for changed in ("x", "out"):
        x, out = base[:, :1], np.zeros((4096, 2), np.float32)[:, :1]

        def change(array=x if changed == "x" else out):
            array.shape = (64, 64)
            return 7

        assert_raises(ValueError, CHANGED, cd.dropout, x, rng=Rng(change), out=out)
        assert not out.any() and base.all()
    x = base[:, :1]
    out = np.zeros((4096, 1), np.float32)
    seed = Number(lambda: setattr(x, "shape", (64, 64)) or 7)
    assert_raises(ValueError, "^out has to have the shape of x", cd.dropout, x, rng=seed, out=out)
    assert not out.any() and generator.calls == 0


RESIZED = {  # calls on x and other arrays of its shape, (4096,), and the number of these
    "dropout": (lambda rng, x, out: cd.dropout(x, rng=rng, out=out), 1),
    "dropout in place": (lambda rng, x: cd.dropout(x, rng=rng, inplace=True), 0),
    "dropout of a view": (lambda rng, x, out: cd.dropout(x[1:], rng=rng, out=out[1:]), 1),
    "drop_path": (lambda rng, x, out: cd.drop_path(x, rng=rng, out=out), 1),
    "alpha_dropout": (lambda rng, x, out: cd.alpha_dropout(x, 0.5, True, rng=rng, out=out), 1),
    "alpha_dropout in place": (
        lambda rng, x: cd.alpha_dropout(x, 0.5, True, inplace=True, rng=rng),
        0,
    ),
    "feature_alpha_dropout": (
        lambda rng, x, out: cd.feature_alpha_dropout(
            x.reshape(64, 8, 8), 0.5, True, rng=rng, out=out.reshape(64, 8, 8)
        ),
        1,
    ),
    "mc_dropout": (lambda rng, x: cd.mc_dropout(x, n=3, rng=rng), 0),
    "bias_dropout_add": (
        lambda rng, x, bias, residual, out: cd.bias_dropout_add(
            x, bias, residual, rng=rng, out=out
        ),
        3,
    ),
}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("call, others", RESIZED.values(), ids=RESIZED)
def test_memory_that_goes_while_the_seed_is_asked_for(call, others, dtype):
    """NumPy lets an array shrink that others refer to, if it is told not to look."""
    for which in range(others + 1):
        arrays = [np.ones(4096, dtype) for _ in range(others + 1)]

        def shrink(array=arrays[which]):
            array.resize(4, refcheck=False)
            return 7

        assert_raises(ValueError, CHANGED, call, Rng(shrink), *arrays)
        assert all((array == 1).all() for array in arrays)


class Seeds(np.random.SeedSequence):
    """One of NumPy's, which acts when it is asked."""

    def generate_state(self, *_):
        self.act()
        return [7]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_memory_that_goes_while_a_seed_sequence_is_asked(dtype):
    x, out = np.ones(4096, dtype), np.ones(4096, dtype)
    seeds = Seeds(1)
    seeds.act = lambda: None
    y, mask = cd.dropout(x, rng=seeds, out=out, return_mask=True)
    assert y is out and mask == cd.Mask(4096, 0.5, 7)
    seeds.act = lambda: out.resize(4, refcheck=False)
    assert_raises(ValueError, CHANGED, cd.dropout, x, rng=seeds, out=out)


@pytest.mark.parametrize("name", ["p", "rng", "broadcast_dims"])
def test_memory_that_goes_while_an_argument_is_converted(name):
    """Arguments are converted before the arrays are read."""
    x, out = np.ones(4096, np.float32), np.ones(4096, np.float32)

    def shrink(array):
        array.resize(4, refcheck=False)
        return 0.5 if name == "p" else 0

    given = {"rng": 1, "return_mask": True}
    for array, refused in ((out, True), (x, False)):
        given[name] = Number(lambda array=array: shrink(array))
        if refused:
            words = "^out has to have the shape of x"
            assert_raises(ValueError, words, cd.dropout, x, **given, out=out)
            continue
        y, mask = cd.dropout(x, **given, out=out)
        assert y is out and mask.shape == (4,)
        np.testing.assert_array_equal(y, mask.to_scale())


def test_memory_that_goes_while_the_number_of_copies_is_converted():
    x = np.ones(4096, np.float32)
    n = Number(lambda: x.resize(4, refcheck=False) or 3)
    assert cd.mc_dropout(x, 0.5, n, rng=1).shape == (3, 4)


@sets_a_shape
def test_a_mask_that_changes_while_p_is_asked_for():
    """p is asked once, and before anything is looked at."""
    asked, kept = [], np.ones((4096, 1), bool)

    def change():
        asked.append(kept.shape)
        kept.shape = (1, 4096)
        return 0.5

    x, out = np.ones((4096, 1), np.float32), np.zeros((4096, 1), np.float32)
    words = r"^the mask has the shape \(1, 4096\), but x has \(4096, 1\)$"
    for call in (
        lambda p: cd.dropout_backward(x, kept, p=p, out=out),
        lambda p: cd.dropout(x, p, mask=kept, out=out),
    ):
        kept.shape = (4096, 1)
        assert_raises(ValueError, words, call, Number(change))
    assert len(asked) == 2 and not out.any()


def test_a_p_that_answers_otherwise_the_second_time():
    answers = iter([0.5, 2.0, 2.0])
    mask = cd.Mask(600, 0.5, 1)
    y = cd.dropout(np.ones(600, "f4"), Number(lambda: next(answers)), mask=mask.bits())
    np.testing.assert_array_equal(y, mask.to_scale())


@sets_a_shape
def test_an_input_that_changes_while_axes_are_asked_for():
    base = np.ones((64, 64, 2), np.float32)
    x, generator, out = base[..., 0], cd.Generator(1), np.zeros((64, 64), np.float32)
    axis = Number(lambda: setattr(x, "shape", (64, 8, 8)) or 0)
    words = "^out has to have the shape of x"
    assert_raises(ValueError, words, cd.dropout, x, rng=generator, broadcast_dims=axis, out=out)
    assert generator.calls == 0 and not out.any() and base.all()


# ---- pickles and the environment --------------------------------------------------------------

PICKLED = {
    "Mask": cd.Mask((3, 4), 0.3, 2**64 - 1, 7)[1:, ::2],
    "Generator": cd.Generator(5),
    "Dropout": cd.Dropout(0.5, rng=3),
}


CUT = EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("thing", PICKLED.values(), ids=PICKLED)
def test_a_cut_pickle(thing, protocol):
    whole = pickle.dumps(thing, protocol)
    before, default = repr(thing), cd.default_generator.state
    for length in range(len(whole)):
        with pytest.raises(
            (EOFError, ValueError, KeyError, AttributeError, pickle.UnpicklingError)
        ):
            pickle.loads(whole[:length])
    assert repr(pickle.loads(whole)) == before == repr(thing)
    assert cd.default_generator.state == default


PICKLES = {
    "Mask without numbers": (cd.Mask, (), None, TypeError, "takes at least 2 pos"),
    "Mask of p = 2": (cd.Mask, ((3,), 2.0), None, ValueError, "^dropout probability has to be"),
    "Mask over the end": (cd.Mask, ((3,), 0.5, 0, 0, 2**64 - 1), None, ValueError, "would reach"),
    "Generator of a str": (cd.Generator, ("1",), None, TypeError, "^seed has to be an int"),
    "state without keys": (cd.Generator, (1,), {"seed": 1}, ValueError, "^state has to be a dict"),
    "no state": (cd.Generator, (1,), "calls", ValueError, "^state has to be a dict"),
}


class Recipe:
    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts if self.parts[2] is not None else self.parts[:2]


@pytest.mark.parametrize("make, args, state, error, words", PICKLES.values(), ids=PICKLES)
def test_a_pickle_of_wrong_numbers(make, args, state, error, words):
    assert_raises(error, words, pickle.loads, pickle.dumps(Recipe(make, args, state)))


ISA = "CDROPOUT_ISA has to be one of baseline, avx2, avx512, but got "
COUNT = "CDROPOUT_NUM_THREADS has to be an int of at least 1, but got "
ENVIRONMENT = [
    ("CDROPOUT_ISA", "AVX3", ISA + "'AVX3'"),
    ("CDROPOUT_ISA", "../kernels", ISA + "'../kernels'"),
    ("CDROPOUT_NUM_THREADS", "0", COUNT + "'0'"),
    ("CDROPOUT_NUM_THREADS", "1_0", COUNT + "'1_0'"),
]
MORE = [("CDROPOUT_ISA", text, ISA + repr(text)) for text in (" avx2", "avx2,avx512", "\udcff")]
MORE += [
    ("CDROPOUT_NUM_THREADS", text, COUNT + repr(text))
    for text in ("-1", "two", "1.5", " 2", "0x2", "²", "+2")
]
MORE += [("CDROPOUT_NUM_THREADS", "9" * 5000, "4300 digits")]
ENVIRONMENT += [pytest.param(*case, marks=pytest.mark.slow) for case in MORE]


@pytest.mark.parametrize("name, text, words", ENVIRONMENT)
def test_a_wrong_environment(name, text, words):
    done = subprocess.run(
        [sys.executable, "-P", "-X", "utf8", "-c", "import cdropout"],
        capture_output=True, text=True, encoding="utf-8", errors="surrogateescape",
        env={**os.environ, name: text},
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and re.match("ValueError: .*" + re.escape(words), last)

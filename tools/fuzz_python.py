"""Fuzz the Python functions with atheris; `tools/sanitize.sh fuzz-python` runs this file.

A call may raise only documented exceptions, and must then change nothing. The results of dropout
and dropout_backward must be those of the reference implementation. AddressSanitizer and
UndefinedBehaviorSanitizer check the compiled modules at the same time.
"""

import math
import operator
import pickle
import sys
import warnings
from pathlib import Path

import atheris
import ml_dtypes
import numpy as np

import cdropout as cd

sys.path.append(str(Path(__file__).parents[1]))  # last, because cdropout/ in it is not built

from tests import reference  # noqa: E402

warnings.simplefilter("ignore")  # dropout2d warns about unusual numbers of dimensions
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
UNSUPPORTED = [np.int64, np.bool_, np.complex64, ">f4", object, "U3", np.uint8, [("a", "f4")]]
INVALID = [None, True, "0.5", b"", math.nan, math.inf, -1, 2, 1j, [], (), {}, ...]
INVALID += [1 << 64, -(1 << 63) - 1]
ERRORS = (TypeError, ValueError, RuntimeError, IndexError, OverflowError, BufferError)


class Choices:
    """A decoder of the fuzzer's bytes. Each method decodes and returns one value."""

    def __init__(self, data):
        self.data = atheris.FuzzedDataProvider(data)

    def number(self, low, high):
        return self.data.ConsumeIntInRange(low, high)

    def one_of(self, things):
        return things[self.number(0, len(things) - 1)]

    def rarely(self):
        return self.number(0, 15) == 15

    def p(self):
        if self.rarely():
            return self.one_of(INVALID)
        return self.one_of([0, 0.1, 0.5, 1, self.data.ConsumeProbability(), np.float32(0.25)])

    def seed(self):
        return self.one_of(INVALID) if self.rarely() else self.number(-(2**63), 2**64 - 1)

    def flag(self):
        return self.data.ConsumeBool()

    def shape(self):
        if self.rarely():
            return (self.number(0, 20000),)
        return tuple(self.number(0, 5) for _ in range(self.number(0, 5)))

    def index(self):
        def item():
            kind, a, b = self.number(0, 9), self.number(-10, 10), self.number(-10, 10)
            if kind < 6:
                return slice(a if kind % 2 else None, b if kind % 3 else None, self.number(-3, 3))
            return self.one_of([a, None, ..., a, self.one_of(INVALID)])

        return tuple(item() for _ in range(self.number(0, 4)))

    def array(self, shape=None, dtype=None):
        """Return an array of any layout: permuted, with gaps, reversed, broadcast or read-only."""
        shape = self.shape() if shape is None else shape
        dtype = dtype or (self.one_of(UNSUPPORTED) if self.rarely() else self.one_of(DTYPES))
        rng = np.random.default_rng(self.number(0, 255))
        steps = [self.one_of([1, 1, 1, -1, 2, -3]) for _ in shape]
        lengths = [length * abs(step) for length, step in zip(shape, steps, strict=True)]
        order = sorted(range(len(shape)), key=lambda _: self.number(0, 9))
        base = rng.standard_normal([lengths[axis] for axis in order]).astype(dtype)
        view = base.transpose(np.argsort(order)) if order else base
        view = view[(..., *(slice(None, None, step) for step in steps))]
        view = view[(..., *(slice(length) for length in shape))]
        if self.rarely():
            view = np.broadcast_to(view, (2, *view.shape))
        if self.rarely():
            view.flags.writeable = False
        return view


def content(array):
    """Return the elements of an array as bytes, or as text if they are objects."""
    return array.tobytes() if array.dtype != object else repr(array)


def attempt(generator, arrays, function, *arguments, **options):
    """Return the result of a call, or None if the call raised a documented error.

    Assert that a failed call changes neither the arrays nor the generator.
    """
    before = [content(array) for array in arrays], generator.state
    try:
        return function(*arguments, **options)
    except ERRORS as error:
        after = [content(array) for array in arrays], generator.state
        assert before == after, f"changed before {error!r}"
        return None


def assert_same(y, expected):
    """Assert that two arrays have the same dtype, shape and bytes; all NaNs count as equal."""
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape), f"{y!r}, not {expected!r}"
    with np.errstate(all="ignore"):
        y, expected = (
            np.where(np.isnan(array), np.nan, array).astype(array.dtype) for array in (y, expected)
        )
    assert y.tobytes() == expected.tobytes()


def fuzz_dropout(choose):
    x, p, generator = choose.array(), choose.p(), cd.Generator(choose.number(0, 2**64 - 1))
    other = choose.array(x.shape, x.dtype) if choose.flag() else choose.array()
    options = {
        "inplace": choose.rarely(),
        "broadcast_dims": choose.one_of([(), (), 0, (0, 1), -1, (1,), choose.one_of(INVALID)]),
        "out": choose.one_of([None, None, x, other, x[::-1] if x.ndim else x]),
    }
    given = x.copy()
    results = attempt(
        generator, [x, other], cd.dropout, x, p, rng=generator, return_mask=True, **options
    )
    if results:
        y, mask = results
        dims = np.atleast_1d(np.array(options["broadcast_dims"], int)).tolist()
        expected = reference.dropout(given, float(p), generator.seed, mask.call, dims)
        assert_same(y, expected)
        assert_same(cd.dropout_backward(given, mask), expected)
        assert pickle.loads(pickle.dumps(mask)) == mask


def fuzz_given_mask(choose):
    x, p = choose.array(), choose.p()
    n = math.prod(x.shape)
    packed = choose.flag()
    keep = choose.array((-(-n // 8),), np.uint8) if packed else choose.array(x.shape, np.bool_)
    mask, given = choose.one_of([keep, keep, choose.array(), choose.one_of(INVALID)]), x.copy()
    inplace, before = choose.rarely(), keep.copy()
    y = attempt(cd.Generator(0), [x, keep], cd.dropout_backward, x, mask, inplace, p=p)
    if y is not None and mask is keep:
        if packed:
            before = np.unpackbits(before, count=n, bitorder="little").reshape(x.shape) == 1
        before &= float(p) < 1  # p = 1 keeps no element of any mask
        assert_same(y, reference.apply(given, before, float(p)))


def fuzz_mask(choose):
    shape = choose.one_of([choose.shape(), choose.shape(), choose.one_of(INVALID)])
    numbers = [choose.p(), choose.seed(), choose.seed(), choose.number(0, 2**64 - 1)]
    generator = cd.Generator(0)
    mask = attempt(generator, [], cd.Mask, shape, *numbers)
    for _ in range(choose.number(0, 3)):
        if mask is not None:
            mask = attempt(generator, [], operator.getitem, mask, choose.index())
    if mask is None or mask.size > 1 << 20:
        return
    kept = np.asarray(mask)
    assert (np.packbits(kept.reshape(-1), bitorder="little") == mask.bits()).all()
    assert_same(mask.apply(np.ones(mask.shape, np.float32)), mask.to_scale())
    assert hash(pickle.loads(pickle.dumps(mask))) == hash(mask)


def fuzz_bias(choose):
    x, p, generator = choose.array(), choose.p(), cd.Generator(1)
    bias = choose.array(x.shape[choose.number(0, 5) :], x.dtype if choose.flag() else None)
    residual = choose.array(x.shape, x.dtype)
    out = choose.one_of([None, None, x, residual, choose.array()])
    options = {"rng": generator, "return_mask": True, "out": out}
    arrays = [x, bias, residual]
    results = attempt(generator, arrays, cd.bias_dropout_add, x, bias, residual, p, **options)
    if results:
        shape = choose.one_of([None, bias.shape, choose.one_of(INVALID)])
        attempt(generator, arrays, cd.bias_dropout_add_backward, *results, shape)


def fuzz_variants(choose):
    names = "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout drop_path"
    function, x = getattr(cd, choose.one_of(names.split())), choose.array()
    generator = cd.Generator(choose.number(0, 9))
    out = choose.one_of([None, None, x, choose.array(x.shape, x.dtype)])
    options = {"rng": generator, "inplace": choose.rarely(), "out": out}
    arrays = [x] if out is None else [x, out]
    attempt(generator, arrays, function, x, choose.p(), choose.flag(), **options)
    copies = choose.one_of([choose.number(-1, 5), choose.one_of(INVALID)])
    attempt(generator, arrays, cd.mc_dropout, x, choose.p(), copies, rng=generator, out=out)


def fuzz_modules(choose):
    kinds = [cd.Dropout2d, cd.AlphaDropout, cd.DropPath, cd.Dropout, cd.FeatureAlphaDropout]
    x, generator = choose.array(), cd.Generator(choose.number(0, 9))
    module = attempt(generator, [], choose.one_of(kinds), choose.p(), rng=generator)
    if module:
        module.train(choose.flag())
        attempt(generator, [x], module, x)
        attempt(generator, [x], module.backward, x)


def fuzz_generator(choose):
    x, rng = choose.array(), choose.one_of([choose.seed(), None, choose.one_of(INVALID)])
    generator = cd.Generator(5)
    attempt(cd.default_generator, [x], cd.dropout, x, choose.p(), rng=rng)
    keys = ["seed", "calls", "spawned", "else"][: choose.number(2, 4)]
    state = {key: choose.seed() for key in keys}
    attempt(generator, [], setattr, generator, "state", state)
    attempt(generator, [], generator.spawn, choose.one_of([choose.number(-1, 9), *INVALID[:6]]))
    assert pickle.loads(pickle.dumps(generator)).state == generator.state


TARGETS = [fuzz_dropout, fuzz_given_mask, fuzz_mask, fuzz_bias, fuzz_variants]
TARGETS += [fuzz_modules, fuzz_generator]


def test_one_input(data):
    choose = Choices(data)
    choose.one_of(TARGETS)(choose)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()

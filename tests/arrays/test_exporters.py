"""Objects with DLPack or the buffer protocol: read and written without a copy, or refused."""

import array
import ctypes
import re

import ml_dtypes
import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.requirements import import_or_skip

SEED = 42
TAKEN = re.escape("has to be a NumPy array, or have DLPack or the buffer protocol")
TYPES = "x has to be an array of float16, bfloat16, float32 or float64, but got "


class OnlyDLPack:
    """An exporter that has no other protocol."""

    def __init__(self, source):
        self.source = source

    def __dlpack__(self, **options):
        return self.source.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.source.__dlpack_device__()


def writable(exporter):
    """Return whether NumPy takes it as writable; some versions take DLPack as read-only."""
    return not hasattr(exporter, "__dlpack__") or np.from_dlpack(exporter).flags.writeable


def numbers(dtype, shape):
    return np.random.default_rng(3).standard_normal(shape).astype(dtype)


def as_array(exporter):
    """Return a NumPy array over the exporter's own memory."""
    if isinstance(exporter, OnlyDLPack):
        return exporter.source
    return np.asarray(exporter)


def bytes_as_floats():
    return memoryview(bytearray(numbers(np.float32, 600).tobytes())).cast("f")


def ctypes_table():
    table = (ctypes.c_double * 30 * 20)()
    np.asarray(table)[...] = numbers(np.float64, (20, 30))
    return table


EXPORTERS = {
    "array.array('f')": lambda: array.array("f", numbers(np.float32, 600).tolist()),
    "array.array('d')": lambda: array.array("d", numbers(np.float64, 600).tolist()),
    "memoryview": lambda: memoryview(numbers(np.float64, (20, 30))),
    "memoryview of float16": lambda: memoryview(numbers(np.float16, (20, 30))),
    "memoryview backwards": lambda: memoryview(numbers(np.float32, 600))[::-2],
    "memoryview of no dimensions": lambda: memoryview(numbers(np.float64, ())),
    "memoryview of a Fortran array": lambda: memoryview(numbers(np.float32, (20, 30)).T),
    "bytearray as floats": bytes_as_floats,
    "bytearray as a table": lambda: bytes_as_floats().cast("B").cast("f", (20, 30)),
    "ctypes": lambda: (ctypes.c_float * 5)(1, 2, 3, 4, 5),
    "ctypes table": ctypes_table,
    "DLPack": lambda: OnlyDLPack(numbers(np.float32, (20, 30))),
    "DLPack strided": lambda: OnlyDLPack(numbers(np.float64, (20, 30))[::2, ::-3]),
    "DLPack of float16": lambda: OnlyDLPack(numbers(np.float16, (20, 30))),
}
every_exporter = pytest.mark.parametrize("make", EXPORTERS.values(), ids=EXPORTERS)


@every_exporter
def test_read_without_a_copy(make):
    x = make()
    inside = as_array(x)
    assert np.shares_memory(inside, as_array(x))
    before = inside.copy()
    want = reference.dropout(inside, 0.3, SEED, 0)
    y, mask = cd.dropout(x, 0.3, rng=SEED, return_mask=True)
    np.testing.assert_array_equal(y, want, strict=True)
    assert type(y) is np.ndarray and mask.shape == inside.shape
    np.testing.assert_array_equal(mask.apply(x), want)
    np.testing.assert_array_equal(cd.dropout_backward(x, mask), want)
    np.testing.assert_array_equal(inside, before)
    if writable(x):
        y = cd.dropout(x, 0.3, rng=SEED, inplace=True)
        assert type(y) is np.ndarray and np.shares_memory(y, inside)
        np.testing.assert_array_equal(inside, want)  # what lies in x has changed


@every_exporter
def test_into_the_array_that_is_exported(make):
    x = make()
    inside = as_array(x)
    want = reference.dropout(inside, 0.3, SEED, 0)
    assert cd.dropout(x, 0.3, rng=SEED, out=inside) is inside
    np.testing.assert_array_equal(inside, want)


@pytest.mark.parametrize("wrap", [memoryview, OnlyDLPack])
def test_out_that_partly_overlaps_what_is_exported(wrap):
    memory = numbers(np.float32, 600)
    before = memory.copy()
    with pytest.raises(ValueError, match="out partly overlaps x"):
        cd.dropout(wrap(memory[1:]), 0.3, out=memory[:-1])
    np.testing.assert_array_equal(memory, before)


@every_exporter
def test_variants_take_them_too(make):
    for function, args in (
        (cd.drop_path, ()),
        (cd.alpha_dropout, (True,)),
        (cd.Dropout(0.3, rng=SEED), None),
    ):
        x = make()
        if args is None:
            y = function(x)
            want = reference.dropout(as_array(x), 0.3, SEED, 0)
        else:
            y = function(x, 0.3, *args, rng=SEED)
            want = function(as_array(x).copy(), 0.3, *args, rng=SEED)
        np.testing.assert_array_equal(y, want, strict=True)


ONLY_NUMPY = {name: make for name, make in EXPORTERS.items() if not name.startswith("DLPack")}
ONLY_DLPACK = [
    pytest.param(make, id=name) for name, make in EXPORTERS.items() if name not in ONLY_NUMPY
]
SPLIT = [*(pytest.param(make, id=name) for name, make in ONLY_NUMPY.items()), *ONLY_DLPACK]


@pytest.mark.parametrize("make", SPLIT)
def test_copies_for_monte_carlo(make):
    x = make()
    inside = as_array(x)
    want = reference.dropout(np.broadcast_to(inside, (3, *inside.shape)), 0.3, SEED, 0)
    np.testing.assert_array_equal(cd.mc_dropout(x, 0.3, 3, rng=SEED), want, strict=True)


@pytest.mark.parametrize("make", SPLIT)
def test_alpha_dropout_in_place(make):
    x = make()
    if not writable(x):
        pytest.skip("no DLPack producer can be written to")
    want = cd.alpha_dropout(as_array(x).copy(), 0.3, True, rng=SEED)
    y = cd.alpha_dropout(x, 0.3, True, True, rng=SEED)
    assert type(y) is np.ndarray and np.shares_memory(y, as_array(x))
    np.testing.assert_array_equal(as_array(x), want, strict=True)


def test_fused_operands():
    x, bias, residual = (numbers(np.float32, shape) for shape in ((20, 30), (30,), (20, 30)))
    want = cd.bias_dropout_add(x, bias, residual, 0.3, rng=SEED)
    for wrap in (memoryview, lambda a: (ctypes.c_float * a.size).from_buffer(a)):
        source, added = wrap(x.reshape(-1)), wrap(residual.reshape(-1))
        y = cd.bias_dropout_add(source, wrap(np.tile(bias, 20)), added, 0.3, rng=SEED)
        np.testing.assert_array_equal(y, want.reshape(-1))
    operands = OnlyDLPack(x), OnlyDLPack(bias), OnlyDLPack(residual)
    y, mask = cd.bias_dropout_add(*operands, 0.3, rng=SEED, return_mask=True)
    np.testing.assert_array_equal(y, want)
    gx, _, gresidual = cd.bias_dropout_add_backward(memoryview(x), mask)
    assert type(gresidual) is np.ndarray and np.shares_memory(gresidual, x)
    np.testing.assert_array_equal(gx, mask.apply(x))


# ---- PyTorch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_torch_tensors_are_read_and_written_in_place(dtype):
    torch = import_or_skip("torch")
    tensor = torch.from_numpy(numbers(dtype, (20, 30)))
    for x in (tensor, tensor.t(), tensor[::3, 1:]):
        before = x.clone()
        want = reference.dropout(x.numpy(), 0.3, SEED, 0)
        np.testing.assert_array_equal(cd.dropout(x, 0.3, rng=SEED), want, strict=True)
        assert torch.equal(x, before)
        if writable(x):
            assert type(cd.dropout(x, 0.3, rng=SEED, inplace=True)) is np.ndarray
            np.testing.assert_array_equal(x.numpy(), want)


def test_torch_tensors_that_are_refused():
    torch = import_or_skip("torch")
    with pytest.raises(BufferError, match="require gradient"):
        cd.dropout(torch.ones(3, requires_grad=True), 0.5)
    with pytest.raises(BufferError, match="meta"):
        cd.dropout(torch.ones(3, device="meta"), 0.5)
    with pytest.raises(TypeError, match=TYPES + "int32"):
        cd.dropout(torch.ones(3, dtype=torch.int32), 0.5)


def test_torch_tensors_that_numpy_cannot_read_are_refused_with_what_takes_them():
    torch = import_or_skip("torch")
    words = "^x, of type Tensor, cannot be read as a NumPy array; use cdropout.torch: "
    for x in (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, requires_grad=True)):
        with pytest.raises(BufferError, match=words):
            cd.dropout(x, 0.5)


# ---- what is refused --------------------------------------------------------------------------


class OtherDevice(OnlyDLPack):
    """A tensor that says it lies on CUDA's first device."""

    def __dlpack__(self, **options):
        capsule = self.source.__dlpack__()
        pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
            ("PyCapsule_GetPointer", ctypes.pythonapi)
        )(capsule, b"dltensor")
        # struct DLTensor { void* data; struct { int32_t type, id; } device; ... }
        ctypes.c_int32.from_address(pointer + ctypes.sizeof(ctypes.c_void_p)).value = 2
        return capsule

    def __dlpack_device__(self):
        return 2, 0


class Failing:
    """An exporter whose export fails."""

    def __init__(self, error):
        self.error = error

    def __dlpack__(self, **options):
        raise self.error

    def __dlpack_device__(self):
        return 1, 0


class NoCapsule(Failing):
    def __dlpack__(self, **options):
        return self.error


REFUSED = [
    ((1.0,), TypeError, TAKEN + ".* but got tuple"),
    (bytearray(8), TypeError, TYPES + "uint8"),
    (memoryview(bytes(8)).cast("i"), TypeError, TYPES + "int32"),
    (memoryview(bytes(8)).cast("?"), TypeError, TYPES + "bool"),
    (memoryview(bytes(8)).cast("c"), TypeError, TYPES + r"\|S1"),
    (array.array("q", [1]), TypeError, TYPES + "int64"),
    ((ctypes.c_float.__ctype_be__ * 3)(1, 2, 3), TypeError, "byte order, but got >f4"),
    ((ctypes.c_int * 3)(1, 2, 3), TypeError, TYPES + "int32"),
    (OnlyDLPack(np.zeros(3, np.complex64)), TypeError, TYPES + "complex64"),
    (OnlyDLPack(np.ones(3, bool)), TypeError, TYPES + "bool"),
    (Failing(BufferError("not today")), BufferError, "not today"),
    (Failing(ValueError("not so")), ValueError, "not so"),
]


@pytest.mark.parametrize("x, error, words", REFUSED, ids=lambda value: repr(value)[:30])
def test_what_is_refused(x, error, words):
    generator = cd.Generator(1)
    mask = cd.Mask((3,), 0.5)
    for call in (
        lambda: cd.dropout(x, 0.5, rng=generator),
        lambda: cd.dropout(x, 0.5, False),
        lambda: cd.dropout_backward(x, mask),
        lambda: mask.apply(x),
        lambda: cd.drop_path(x, 0.5, rng=generator),
        lambda: cd.alpha_dropout(x, 0.5, True, rng=generator),
        lambda: cd.mc_dropout(x, 0.5, 2, rng=generator),
        lambda: cd.bias_dropout_add(x, np.ones(3), np.ones(3), rng=generator),
    ):
        with pytest.raises(error, match=words):
            call()
    assert generator.calls == 0


def test_another_device_is_refused_by_name():
    with pytest.raises((TypeError, ValueError, BufferError), match="OtherDevice"):
        cd.dropout(OtherDevice(np.ones(3)), 0.5)


def test_another_device_is_refused():
    generator = cd.Generator(1)
    with pytest.raises((RuntimeError, BufferError), match="device"):
        cd.dropout(OtherDevice(np.ones(3)), 0.5, rng=generator)
    assert generator.calls == 0


def test_what_is_no_capsule_is_refused():
    with pytest.raises((TypeError, ValueError, BufferError), match="capsule|PyCapsule"):
        cd.dropout(NoCapsule(5), 0.5)


same_as_double = pytest.mark.skipif(
    ctypes.c_longdouble is ctypes.c_double, reason="long double is double here, which is taken"
)


@pytest.mark.parametrize(
    "kind", [pytest.param(ctypes.c_longdouble, marks=same_as_double), ctypes.c_void_p]
)
def test_a_buffer_that_numpy_cannot_read_is_refused_by_name(kind):
    with pytest.raises(TypeError, match="float16, bfloat16, float32 or float64"):
        cd.dropout((kind * 3)(), 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: memoryview(a.tobytes()).cast("f"),
        lambda a: memoryview(a).toreadonly(),
        lambda a: OnlyDLPack(read_only(a)),
    ],
    ids=["bytes", "memoryview", "DLPack"],
)
def test_read_only_memory_is_read_but_not_written(make):
    source = numbers(np.float32, 600)
    try:
        x = make(source.copy())
        y = cd.dropout(x, 0.3, rng=SEED)
    except BufferError:  # NumPy 1 does not export read-only arrays
        assert np.lib.NumpyVersion(np.__version__) < "2.1.0"
        return
    np.testing.assert_array_equal(y, reference.dropout(source, 0.3, SEED, 0))
    generator = cd.Generator(1)
    with pytest.raises(ValueError, match="x is read-only"):
        cd.dropout(x, 0.3, inplace=True, rng=generator)
    assert generator.calls == 0


def read_only(x):
    x.flags.writeable = False
    return x


# ---- odd places -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_any_number_of_dimensions_that_numpy_has(dtype):
    most = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    for shape in ((1,) * most, (2, 3) + (1,) * (most - 4) + (5, 2), (2,) * 5 + (1,) * (most - 5)):
        x = numbers(dtype, shape)
        dims = (0, most - 1)
        for view in (x, x.T, x[::-1]):
            want = reference.dropout(view, 0.3, SEED, 0)
            np.testing.assert_array_equal(cd.dropout(view, 0.3, rng=SEED), want, strict=True)
            want = reference.dropout(view, 0.3, SEED, 0, dims)
            y, mask = cd.dropout(view, 0.3, rng=SEED, broadcast_dims=dims, return_mask=True)
            np.testing.assert_array_equal(y, want)
            assert mask.ndim == most
        with pytest.raises(ValueError, match="dim"):
            cd.mc_dropout(x, 0.3, 2)


@pytest.mark.parametrize("offset", [1, 3, 6])
def test_floats_at_odd_bytes(offset):
    memory = bytearray(offset + 4 * 600)
    x = np.frombuffer(memory, np.float32, 600, offset)
    x[:] = numbers(np.float32, 600)
    want = reference.dropout(x, 0.3, SEED, 0)
    for view in (memoryview(memory)[offset:].cast("B").cast("f"), x):
        np.testing.assert_array_equal(cd.dropout(view, 0.3, rng=SEED), want)
    cd.dropout(memoryview(memory)[offset:].cast("f"), 0.3, inplace=True, rng=SEED)
    np.testing.assert_array_equal(x, want)
    assert memory[:offset] == bytes(offset)

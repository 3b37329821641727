"""Tests of arguments with DLPack or the buffer protocol: access without a copy, and errors."""

import array
import ctypes
import re

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.arrays import OnlyDLPack, every_dtype, normal
from ..helpers.requirements import import_or_skip

SEED = 42
NO_ARRAY = re.escape("has to be a NumPy array, or have DLPack or the buffer protocol")
BAD_DTYPE = "x has to be an array of float16, bfloat16, float32 or float64, but got "


def writable(exporter):
    """Return whether NumPy can write to the exporter.

    In some versions of NumPy, all arrays that `from_dlpack` returns are read-only.
    """
    return not hasattr(exporter, "__dlpack__") or np.from_dlpack(exporter).flags.writeable


def as_array(exporter):
    """Return a NumPy array that shares the exporter's memory."""
    if isinstance(exporter, OnlyDLPack):
        return exporter.source
    return np.asarray(exporter)


def bytes_as_floats():
    return memoryview(bytearray(normal(600, np.float32).tobytes())).cast("f")


def ctypes_table():
    table = (ctypes.c_double * 30 * 20)()
    np.asarray(table)[...] = normal((20, 30), np.float64)
    return table


EXPORTERS = {
    "array.array('f')": lambda: array.array("f", normal(600, np.float32).tolist()),
    "array.array('d')": lambda: array.array("d", normal(600, np.float64).tolist()),
    "memoryview": lambda: memoryview(normal((20, 30), np.float64)),
    "memoryview of float16": lambda: memoryview(normal((20, 30), np.float16)),
    "memoryview backwards": lambda: memoryview(normal(600, np.float32))[::-2],
    "memoryview of no dimensions": lambda: memoryview(normal((), np.float64)),
    "memoryview of a Fortran array": lambda: memoryview(normal((20, 30), np.float32).T),
    "bytearray as floats": bytes_as_floats,
    "bytearray as a table": lambda: bytes_as_floats().cast("B").cast("f", (20, 30)),
    "ctypes": lambda: (ctypes.c_float * 5)(1, 2, 3, 4, 5),
    "ctypes table": ctypes_table,
    "DLPack": lambda: OnlyDLPack(normal((20, 30), np.float32)),
    "DLPack strided": lambda: OnlyDLPack(normal((20, 30), np.float64)[::2, ::-3]),
    "DLPack of float16": lambda: OnlyDLPack(normal((20, 30), np.float16)),
}
every_exporter = pytest.mark.parametrize("make", EXPORTERS.values(), ids=EXPORTERS)


@every_exporter
def test_dropout_reads_and_writes_exporters_without_a_copy(make):
    x = make()
    source = as_array(x)
    assert np.shares_memory(source, as_array(x))
    before = source.copy()
    expected = reference.dropout(source, 0.3, SEED, 0)
    y, mask = cd.dropout(x, 0.3, rng=SEED, return_mask=True)
    np.testing.assert_array_equal(y, expected, strict=True)
    assert type(y) is np.ndarray and mask.shape == source.shape
    np.testing.assert_array_equal(mask.apply(x), expected)
    np.testing.assert_array_equal(cd.dropout_backward(x, mask), expected)
    np.testing.assert_array_equal(source, before)
    if writable(x):
        y = cd.dropout(x, 0.3, rng=SEED, inplace=True)
        assert type(y) is np.ndarray and np.shares_memory(y, source)
        np.testing.assert_array_equal(source, expected)


@every_exporter
def test_out_can_share_all_memory_of_x(make):
    x = make()
    source = as_array(x)
    expected = reference.dropout(source, 0.3, SEED, 0)
    assert cd.dropout(x, 0.3, rng=SEED, out=source) is source
    np.testing.assert_array_equal(source, expected)


@pytest.mark.parametrize("wrap", [memoryview, OnlyDLPack])
def test_out_must_not_partly_overlap_the_memory_of_x(wrap):
    memory = normal(600, np.float32)
    before = memory.copy()
    with pytest.raises(ValueError, match="out partly overlaps x"):
        cd.dropout(wrap(memory[1:]), 0.3, out=memory[:-1])
    np.testing.assert_array_equal(memory, before)


@every_exporter
def test_dropout_variants_accept_exporters(make):
    for function, args in (
        (cd.drop_path, ()),
        (cd.alpha_dropout, (True,)),
        (cd.Dropout(0.3, rng=SEED), None),
    ):
        x = make()
        if args is None:
            y = function(x)
            expected = reference.dropout(as_array(x), 0.3, SEED, 0)
        else:
            y = function(x, 0.3, *args, rng=SEED)
            expected = function(as_array(x).copy(), 0.3, *args, rng=SEED)
        np.testing.assert_array_equal(y, expected, strict=True)


@every_exporter
def test_mc_dropout_accepts_exporters(make):
    x = make()
    source = as_array(x)
    expected = reference.dropout(np.broadcast_to(source, (3, *source.shape)), 0.3, SEED, 0)
    np.testing.assert_array_equal(cd.mc_dropout(x, 0.3, 3, rng=SEED), expected, strict=True)


@every_exporter
def test_alpha_dropout_with_inplace_writes_to_exporters(make):
    x = make()
    if not writable(x):
        pytest.skip("this NumPy makes DLPack read-only")
    expected = cd.alpha_dropout(as_array(x).copy(), 0.3, True, rng=SEED)
    y = cd.alpha_dropout(x, 0.3, True, True, rng=SEED)
    assert type(y) is np.ndarray and np.shares_memory(y, as_array(x))
    np.testing.assert_array_equal(as_array(x), expected, strict=True)


def test_bias_dropout_add_accepts_exporters():
    x, bias, residual = (normal(shape, np.float32) for shape in ((20, 30), (30,), (20, 30)))
    expected = cd.bias_dropout_add(x, bias, residual, 0.3, rng=SEED)
    for wrap in (memoryview, lambda a: (ctypes.c_float * a.size).from_buffer(a)):
        source, added = wrap(x.reshape(-1)), wrap(residual.reshape(-1))
        y = cd.bias_dropout_add(source, wrap(np.tile(bias, 20)), added, 0.3, rng=SEED)
        np.testing.assert_array_equal(y, expected.reshape(-1))
    operands = OnlyDLPack(x), OnlyDLPack(bias), OnlyDLPack(residual)
    y, mask = cd.bias_dropout_add(*operands, 0.3, rng=SEED, return_mask=True)
    np.testing.assert_array_equal(y, expected)
    gx, _, gresidual = cd.bias_dropout_add_backward(memoryview(x), mask)
    assert type(gresidual) is np.ndarray and np.shares_memory(gresidual, x)
    np.testing.assert_array_equal(gx, mask.apply(x))


# ---- PyTorch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_dropout_reads_and_writes_torch_tensors_without_a_copy(dtype):
    torch = import_or_skip("torch")
    tensor = torch.from_numpy(normal((20, 30), dtype))
    for x in (tensor, tensor.t(), tensor[::3, 1:]):
        before = x.clone()
        expected = reference.dropout(x.numpy(), 0.3, SEED, 0)
        np.testing.assert_array_equal(cd.dropout(x, 0.3, rng=SEED), expected, strict=True)
        assert torch.equal(x, before)
        if writable(x):
            assert type(cd.dropout(x, 0.3, rng=SEED, inplace=True)) is np.ndarray
            np.testing.assert_array_equal(x.numpy(), expected)


def test_dropout_rejects_unsupported_torch_tensors():
    torch = import_or_skip("torch")
    with pytest.raises(BufferError, match="require gradient"):
        cd.dropout(torch.ones(3, requires_grad=True), 0.5)
    with pytest.raises(BufferError, match="meta"):
        cd.dropout(torch.ones(3, device="meta"), 0.5)
    with pytest.raises(TypeError, match=BAD_DTYPE + "int32"):
        cd.dropout(torch.ones(3, dtype=torch.int32), 0.5)


def test_message_for_tensors_that_numpy_cannot_read_recommends_cdropout_torch():
    torch = import_or_skip("torch")
    message = "^x, of type Tensor, cannot be read as a NumPy array; use cdropout.torch: "
    for x in (torch.ones(3, dtype=torch.bfloat16), torch.ones(3, requires_grad=True)):
        with pytest.raises(BufferError, match=message):
            cd.dropout(x, 0.5)


# ---- errors -----------------------------------------------------------------------------------


class OtherDevice(OnlyDLPack):
    """An exporter whose capsule and ``__dlpack_device__`` report the device CUDA 0."""

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


def test_message_for_an_exporter_on_another_device_contains_the_name_of_the_type():
    with pytest.raises((TypeError, ValueError, BufferError), match="OtherDevice"):
        cd.dropout(OtherDevice(np.ones(3)), 0.5)


def test_dropout_rejects_an_exporter_on_another_device():
    generator = cd.Generator(1)
    with pytest.raises((RuntimeError, BufferError), match="device"):
        cd.dropout(OtherDevice(np.ones(3)), 0.5, rng=generator)
    assert generator.calls == 0


longer_than_double = pytest.mark.skipif(
    ctypes.c_longdouble is ctypes.c_double, reason="needs a long double longer than double"
)


@pytest.mark.parametrize(
    "ctype", [pytest.param(ctypes.c_longdouble, marks=longer_than_double), ctypes.c_void_p]
)
def test_message_for_an_unsupported_buffer_lists_the_supported_dtypes(ctype):
    with pytest.raises(TypeError, match="float16, bfloat16, float32 or float64"):
        cd.dropout((ctype * 3)(), 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda a: memoryview(a.tobytes()).cast("f"),
        lambda a: memoryview(a).toreadonly(),
        lambda a: OnlyDLPack(read_only(a)),
    ],
    ids=["bytes", "memoryview", "DLPack"],
)
def test_dropout_reads_read_only_exporters_and_rejects_inplace(make):
    source = normal(600, np.float32)
    try:
        x = make(source.copy())
        y = cd.dropout(x, 0.3, rng=SEED)
    except BufferError:  # in NumPy before 2.1, DLPack does not support read-only arrays
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


# ---- axes and alignment -----------------------------------------------------------------------


@every_dtype
def test_dropout_accepts_arrays_with_the_maximum_ndim(dtype):
    max_ndim = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    for shape in (
        (1,) * max_ndim,
        (2, 3) + (1,) * (max_ndim - 4) + (5, 2),
        (2,) * 5 + (1,) * (max_ndim - 5),
    ):
        x = normal(shape, dtype)
        dims = (0, max_ndim - 1)
        for view in (x, x.T, x[::-1]):
            expected = reference.dropout(view, 0.3, SEED, 0)
            np.testing.assert_array_equal(cd.dropout(view, 0.3, rng=SEED), expected, strict=True)
            expected = reference.dropout(view, 0.3, SEED, 0, dims)
            y, mask = cd.dropout(view, 0.3, rng=SEED, broadcast_dims=dims, return_mask=True)
            np.testing.assert_array_equal(y, expected)
            assert mask.ndim == max_ndim
        with pytest.raises(ValueError, match="dim"):
            cd.mc_dropout(x, 0.3, 2)


@pytest.mark.parametrize("offset", [1, 3, 6])
def test_dropout_accepts_unaligned_buffers(offset):
    memory = bytearray(offset + 4 * 600)
    x = np.frombuffer(memory, np.float32, 600, offset)
    x[:] = normal(600, np.float32)
    expected = reference.dropout(x, 0.3, SEED, 0)
    for view in (memoryview(memory)[offset:].cast("B").cast("f"), x):
        np.testing.assert_array_equal(cd.dropout(view, 0.3, rng=SEED), expected)
    cd.dropout(memoryview(memory)[offset:].cast("f"), 0.3, inplace=True, rng=SEED)
    np.testing.assert_array_equal(x, expected)
    assert memory[:offset] == bytes(offset)

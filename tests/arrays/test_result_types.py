"""Tests of the types of results, and of array types and ndarray subclasses that are rejected."""

import array
import ctypes

import numpy as np
import pytest

import cdropout as cd

from ..helpers.arrays import OnlyDLPack, every_dtype, normal
from ..helpers.requirements import import_or_skip

SEED = 42
SHAPE = 2, 3, 4


FUNCTIONS = {
    "dropout": lambda x, **kwargs: cd.dropout(x, **kwargs),
    "dropout1d": lambda x, **kwargs: cd.dropout1d(x, **kwargs),
    "dropout2d": lambda x, **kwargs: cd.dropout2d(x, **kwargs),
    "dropout3d": lambda x, **kwargs: cd.dropout3d(x, **kwargs),
    "drop_path": lambda x, **kwargs: cd.drop_path(x, **kwargs),
    "alpha_dropout": lambda x, **kwargs: cd.alpha_dropout(x, **{"training": True, **kwargs}),
    "feature_alpha_dropout": lambda x, **kwargs: cd.feature_alpha_dropout(
        x, **{"training": True, **kwargs}
    ),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
SHAPES = {"dropout2d": (2, 3, 4, 5), "dropout3d": (2, 3, 4, 5, 2)}
MODES = {
    "training": {},
    "evaluation": {"training": False},
    "p = 0": {"p": 0},
    "p = 1": {"p": 1},
    "return_mask": {"return_mask": True},
}


# ---- exporters --------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_functions_export_x_once(name, mode):
    x = OnlyDLPack(normal(SHAPES.get(name, SHAPE)))
    FUNCTIONS[name](x, rng=SEED, **mode)
    assert x.exports == 1


def test_functions_export_each_argument_once():
    x = normal(SHAPE)
    mask = cd.Mask(x.shape, 0.5)
    for call, count in [
        (lambda x: cd.mc_dropout(x, 0.5, 3), 1),
        (lambda x: cd.mc_dropout(x, 0, 3), 1),
        (lambda x: cd.bias_dropout_add(x, x, x), 3),
        (lambda x: cd.bias_dropout_add(x, x, x, training=False), 3),
        (lambda x: cd.bias_dropout_add_backward(x, mask), 1),
        (lambda x: cd.dropout(x, mask=mask), 1),
        (lambda x: cd.dropout(x, mask=mask.bits()), 1),
        (lambda x: cd.dropout_backward(x, mask), 1),
        (lambda x: cd.dropout_backward(x, np.asarray(mask), p=0.5), 1),
        (mask.apply, 1),
        (cd.Dropout(0.5), 1),
        (cd.Dropout2d(0.5).eval(), 1),
        (cd.DropPath(0.5), 1),
        (cd.AlphaDropout(0.5), 1),
    ]:
        source = OnlyDLPack(x[:, :, :, None] if isinstance(call, cd.Dropout2d) else x)
        call(source)
        assert source.exports == count


def arrow_array(x):
    return import_or_skip("pyarrow").array(x.reshape(-1))


EXPORTERS = {
    "memoryview": memoryview,
    "bytearray": lambda x: memoryview(bytearray(x.tobytes())).cast("f"),
    "array.array": lambda x: array.array("f", x.reshape(-1).tolist()),
    "ctypes": lambda x: (ctypes.c_float * x.size)(*x.reshape(-1).tolist()),
    "DLPack": OnlyDLPack,
    "torch": lambda x: import_or_skip("torch").from_numpy(x),
    "JAX": lambda x: import_or_skip("jax.numpy").asarray(x),
    "Arrow": arrow_array,
}
ARROW_WARNING = "ignore:Exporting an unversioned DLPack capsule:DeprecationWarning"


def address(x):
    if isinstance(x, OnlyDLPack):
        x = x.source
    if hasattr(x, "unsafe_buffer_pointer"):
        return x.unsafe_buffer_pointer()
    if hasattr(x, "buffers"):
        return x.buffers()[1].address
    return np.asarray(x).__array_interface__["data"][0]


@pytest.mark.filterwarnings(ARROW_WARNING)
@pytest.mark.parametrize("make", EXPORTERS.values(), ids=EXPORTERS)
def test_evaluation_of_an_exporter_returns_a_view(make):
    x = make(normal(SHAPE))
    for kwargs in ({"training": False}, {"p": 0}, {"p": 1, "training": False}):
        y, mask = cd.dropout(x, return_mask=True, **kwargs)
        assert type(y) is np.ndarray and y.__array_interface__["data"][0] == address(x)
        assert mask == cd.Mask(y.shape, 0)
        np.testing.assert_array_equal(y.reshape(-1), normal(SHAPE).reshape(-1))
    assert type(cd.dropout(x, 0.5, rng=1)) is np.ndarray
    assert type(cd.Dropout(0.5).eval()(x)) is np.ndarray


NEED_AXES = {"dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"}


@pytest.mark.parametrize("make", EXPORTERS.values(), ids=EXPORTERS)
@every_function
@pytest.mark.filterwarnings(ARROW_WARNING)
def test_functions_return_arrays_for_exporters(name, make):
    x = make(normal(SHAPES.get(name, SHAPE)))
    if name in NEED_AXES and np.ndim(getattr(x, "source", x)) == 1:
        pytest.skip("this exporter has only one dimension")
    for kwargs in ({}, {"p": 1}):
        assert type(FUNCTIONS[name](x, rng=SEED, **kwargs)) is np.ndarray
    for kwargs in ({"training": False}, {"p": 0}):
        y = FUNCTIONS[name](x, **kwargs)
        assert type(y) is np.ndarray and y.__array_interface__["data"][0] == address(x)


@every_function
def test_inplace_with_an_exporter_returns_a_view(name):
    for kwargs in ({}, {"p": 1}, {"p": 0}, {"training": False}):
        x = normal(SHAPES.get(name, SHAPE))
        y = FUNCTIONS[name](memoryview(x), rng=SEED, inplace=True, **kwargs)
        expected = FUNCTIONS[name](normal(x.shape), rng=SEED, **kwargs)
        assert type(y) is np.ndarray and np.shares_memory(x, y)
        np.testing.assert_array_equal(x, expected)


@every_dtype
def test_dropout_of_scalars_returns_arrays(dtype):
    for kwargs in ({"rng": 1}, {"p": 0}, {"p": 1}, {"training": False}):
        y = cd.dropout(dtype(3), **kwargs)
        assert type(y) is np.ndarray and y.shape == () and y.dtype == dtype
        assert y in (0, 3, 6)


# ---- mc_dropout -------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0, 0.0, 1])
@pytest.mark.parametrize(
    "make",
    [np.copy, memoryview, OnlyDLPack, lambda x: x.T],
    ids=["ndarray", "memoryview", "DLPack", "transposed"],
)
def test_mc_dropout_returns_independent_copies(make, p):
    x = normal(SHAPE)
    for n in (1, 3):
        copies = cd.mc_dropout(make(x), p, n)
        assert copies.flags.writeable and not np.shares_memory(copies, x)
        for value, copy in enumerate(copies):
            copy[...] = value
        assert [np.unique(copy).tolist() for copy in copies] == [[value] for value in range(n)]
    np.testing.assert_array_equal(x, normal(SHAPE))


@pytest.mark.parametrize("p", [0, 0.0, 1])
def test_mc_dropout_returns_independent_tensors(p):
    torch = import_or_skip("torch")
    from cdropout.torch import mc_dropout

    tensor = torch.from_numpy(normal(SHAPE))
    for x in (tensor, tensor.transpose(0, 2)):
        for n in (1, 3):
            copies = mc_dropout(x, p, n)
            for value, copy in enumerate(copies):
                copy.fill_(value)
            assert [copy.unique().tolist() for copy in copies] == [[i] for i in range(n)]
    np.testing.assert_array_equal(tensor.numpy(), normal(SHAPE))


# ---- subclasses of ndarray --------------------------------------------------------------------


@pytest.fixture(params=["memmap", "recarray", "matrix"])
def subclass_array(request, tmp_path):
    """Return an array of an ndarray subclass that does not change the meaning of the elements."""
    x = normal((3, 4))
    if request.param == "memmap":
        y = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
        y[:] = x
        return y
    return x.view({"recarray": np.recarray, "matrix": np.matrix}[request.param])


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_functions_accept_memmap_recarray_and_matrix(subclass_array):
    """Training returns a new ndarray; evaluation, inplace and out return the given array."""
    x, mask = normal((3, 4)), cd.Mask((3, 4), 0.5, SEED)
    expected = cd.dropout(x, 0.5, rng=SEED)
    for name in ("dropout", "drop_path", "alpha_dropout", "feature_alpha_dropout"):
        y = FUNCTIONS[name](subclass_array, rng=SEED)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, FUNCTIONS[name](x, rng=SEED))
        for kwargs in ({"training": False}, {"p": 0}, {"p": 0, "inplace": True}):
            assert FUNCTIONS[name](subclass_array, **kwargs) is subclass_array
    for y in (mask.apply(subclass_array), cd.dropout_backward(subclass_array, mask)):
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, expected)
    assert cd.bias_dropout_add_backward(subclass_array, mask)[2] is subclass_array
    assert type(cd.mc_dropout(subclass_array, 0, 2)) is np.ndarray
    assert cd.dropout(x, 0.5, rng=SEED, out=subclass_array) is subclass_array
    np.testing.assert_array_equal(subclass_array, expected)
    subclass_array[...] = x
    assert cd.dropout(subclass_array, 0.5, rng=SEED, inplace=True) is subclass_array
    np.testing.assert_array_equal(subclass_array, expected)


def of_package(package, base=object, name="Fake"):
    """Return a class whose `__module__` is a module of the package."""
    return type(name, (base,), {"__module__": f"{package}.core"})


SUBCLASS = "x is of type Fake, a subclass of ndarray whose meaning the result would lose; pass "


@pytest.mark.parametrize(
    "package, advice",
    [("astropy", "x.value"), ("unyt", "x.value"), ("mine", r"np.asarray\(x\)")],
)
def test_functions_reject_other_subclasses_of_ndarray(package, advice):
    kind = of_package(package, np.ndarray)
    x, generator, mask = normal((3, 4, 5)), cd.Generator(1), cd.Mask((3, 4, 5), 0.5)
    subclass_array = x.view(kind)
    for kwargs in ({}, {"p": 0}, {"training": False}, {"inplace": True}):
        for function in FUNCTIONS.values():
            with pytest.raises(TypeError, match=f"^{SUBCLASS}{advice}$"):
                function(subclass_array, rng=generator, **kwargs)
    for call in (
        lambda: cd.mc_dropout(subclass_array),
        lambda: cd.dropout_backward(subclass_array, mask),
        lambda: mask.apply(subclass_array),
        lambda: cd.bias_dropout_add(subclass_array, x, x, rng=generator),
        lambda: cd.Dropout(0.5)(subclass_array),
    ):
        with pytest.raises(TypeError, match=f"^{SUBCLASS}{advice}$"):
            call()
    with pytest.raises(TypeError, match="^bias is of type Fake, .*; pass .*bias"):
        cd.bias_dropout_add(x, subclass_array, x, rng=generator)
    with pytest.raises(TypeError, match="^out has to be a NumPy array, but got Fake$"):
        cd.dropout(x, rng=generator, out=subclass_array)
    with pytest.raises(TypeError, match="^mask has to be a Mask or a NumPy array, but got Fake$"):
        cd.dropout(x, mask=subclass_array)
    assert generator.calls == 0


# ---- advice in messages -----------------------------------------------------------------------

ADVICE = {
    "autograd.numpy": "multiply x by mask.to_scale()",
    "dask.array": "use cdropout.dask",
    "keras.src": "use cdropout.keras",
    "pandas": "pass x.to_numpy()",
    "pint": "pass x.magnitude",
    "polars.series": "pass x.to_numpy()",
    "pyarrow": "pass x.to_numpy()",
    "scipy.sparse": "pass x.toarray()",
    "tensorflow.python": "use cdropout.tensorflow",
    "xarray.core": "pass x.data",
}
NO_ARRAY = "x has to be a NumPy array, or have DLPack or the buffer protocol, with elements of "


@pytest.mark.parametrize("package, advice", ADVICE.items())
def test_message_for_another_array_type_recommends_a_conversion(package, advice):
    kind = of_package(package)
    for x in (kind(), of_package("mine", kind)()):  # the second object is of a subclass
        with pytest.raises(TypeError) as raised:
            cd.dropout(x)
        assert str(raised.value).startswith(NO_ARRAY)
        assert str(raised.value).endswith(f" but got Fake; {advice}")


class Quantity:
    """A wrapper that, like pint's Quantity, forwards all attributes to an array."""

    __module__ = "pint.registry"

    def __init__(self, magnitude):
        self.magnitude = magnitude

    def __getattr__(self, name):
        return getattr(self.magnitude, name)


def test_dropout_rejects_wrappers_of_arrays():
    with pytest.raises(TypeError, match="but got Quantity; pass x.magnitude$"):
        cd.dropout(Quantity(normal(SHAPE)), training=False)


class Unreadable:
    """An object whose method `__dlpack__` raises the exception in the attribute `error`."""

    def __dlpack__(self, **options):
        raise self.error

    def __dlpack_device__(self):
        return 1, 0


@pytest.mark.parametrize(
    "package, advice",
    [("torch", "use cdropout.torch"), ("jax._src", "use cdropout.jax"),
     ("tensorflow.python", "use cdropout.tensorflow")],
)  # fmt: skip
@pytest.mark.parametrize(
    "error, kind", [(BufferError, BufferError), (ValueError, BufferError), (TypeError, TypeError)]
)
def test_message_for_an_unreadable_tensor_recommends_an_adapter(package, advice, error, kind):
    x = of_package(package, Unreadable)()
    x.error = error("no bfloat16")
    message = f"^x, of type Fake, cannot be read as a NumPy array; {advice}: no bfloat16$"
    with pytest.raises(kind, match=message) as raised:
        cd.dropout(x)
    assert raised.type is kind


def test_message_for_traced_or_bfloat16_jax_arrays_recommends_cdropout_jax():
    jax = import_or_skip("jax")
    message = "cannot be read as a NumPy array; use cdropout.jax: "
    x = jax.numpy.ones(3)
    for transform in (jax.jit, jax.vmap, lambda function: jax.grad(lambda x: function(x).sum())):
        with pytest.raises(TypeError, match=message):
            transform(cd.dropout)(x)
    with pytest.raises(BufferError, match=message):
        cd.dropout(x.astype("bfloat16"))


def test_messages_for_arrays_of_installed_packages_recommend_a_conversion():
    found = 0
    for package, make, advice in [
        ("pandas", lambda module: module.Series([1.0]), "pass x.to_numpy()"),
        ("pandas", lambda module: module.DataFrame([1.0]), "pass x.to_numpy()"),
        ("xarray", lambda module: module.DataArray([1.0]), "pass x.data"),
        ("polars", lambda module: module.Series([1.0]), "pass x.to_numpy()"),
        ("pint", lambda module: module.UnitRegistry().Quantity([1.0], "m"), "pass x.magnitude"),
        ("astropy.units", lambda module: module.Quantity([1.0], "m"), "pass x.value"),
        ("dask.array", lambda module: module.ones(3), "use cdropout.dask"),
        ("scipy.sparse", lambda module: module.eye(3), "pass x.toarray()"),
    ]:
        try:
            module = __import__(package, fromlist=["x"])
        except ImportError:
            continue
        with pytest.raises(TypeError) as raised:
            cd.dropout(make(module))
        assert str(raised.value).endswith(f"; {advice}")
        found += 1
    if not found:
        pytest.skip("none of these packages is installed")

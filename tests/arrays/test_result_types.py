"""Types of results: an ndarray for every exporter; arrays with their own meaning are refused."""

import array
import ctypes

import numpy as np
import pytest

import cdropout as cd

SEED = 42


class Counting:
    """An exporter that counts how often its memory is asked for."""

    def __init__(self, source):
        self.source = source
        self.asked = 0

    def __dlpack__(self, **options):
        self.asked += 1
        return self.source.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.source.__dlpack_device__()


def numbers(shape=(2, 3, 4)):
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


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
    "a mask back": {"return_mask": True},
}


# ---- exporters --------------------------------------------------------------------------------


@every_function
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_an_exporter_is_asked_once(name, mode):
    x = Counting(numbers(SHAPES.get(name, (2, 3, 4))))
    FUNCTIONS[name](x, rng=SEED, **mode)
    assert x.asked == 1


def test_an_exporter_is_asked_once_by_the_other_functions():
    x = numbers()
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
        source = Counting(x[:, :, :, None] if isinstance(call, cd.Dropout2d) else x)
        call(source)
        assert source.asked == count


def arrow(x):
    return pytest.importorskip("pyarrow").array(x.reshape(-1))


EXPORTERS = {
    "memoryview": memoryview,
    "bytearray": lambda x: memoryview(bytearray(x.tobytes())).cast("f"),
    "array.array": lambda x: array.array("f", x.reshape(-1).tolist()),
    "ctypes": lambda x: (ctypes.c_float * x.size)(*x.reshape(-1).tolist()),
    "DLPack": Counting,
    "torch": lambda x: pytest.importorskip("torch").from_numpy(x),
    "JAX": lambda x: pytest.importorskip("jax.numpy").asarray(x),
    "Arrow": arrow,
}
ARROW = "ignore:Exporting an unversioned DLPack capsule:DeprecationWarning"


def address(x):
    if isinstance(x, Counting):
        x = x.source
    if hasattr(x, "unsafe_buffer_pointer"):
        return x.unsafe_buffer_pointer()
    if hasattr(x, "buffers"):
        return x.buffers()[1].address
    return np.asarray(x).__array_interface__["data"][0]


@pytest.mark.filterwarnings(ARROW)
@pytest.mark.parametrize("make", EXPORTERS.values(), ids=EXPORTERS)
def test_exporters_give_arrays(make):
    x = make(numbers())
    for kwargs in ({"training": False}, {"p": 0}, {"p": 1, "training": False}):
        y, mask = cd.dropout(x, return_mask=True, **kwargs)
        assert type(y) is np.ndarray and y.__array_interface__["data"][0] == address(x)
        assert mask == cd.Mask(y.shape, 0)
        np.testing.assert_array_equal(y.reshape(-1), numbers().reshape(-1))
    assert type(cd.dropout(x, 0.5, rng=1)) is np.ndarray
    assert type(cd.Dropout(0.5).eval()(x)) is np.ndarray


@pytest.mark.parametrize("make", EXPORTERS.values(), ids=EXPORTERS)
@every_function
@pytest.mark.filterwarnings(ARROW)
def test_every_function_gives_arrays(name, make):
    x = make(numbers(SHAPES.get(name, (2, 3, 4))))
    if np.asarray(x if not isinstance(x, Counting) else x.source).ndim == 1 and name in FLAT:
        pytest.skip("this exporter has one dimension only")
    for kwargs in ({}, {"p": 1}):
        assert type(FUNCTIONS[name](x, rng=SEED, **kwargs)) is np.ndarray
    for kwargs in ({"training": False}, {"p": 0}):
        y = FUNCTIONS[name](x, **kwargs)
        assert type(y) is np.ndarray and y.__array_interface__["data"][0] == address(x)


FLAT = {"dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"}


@every_function
def test_in_place_exporters_give_arrays_over_their_memory(name):
    for kwargs in ({}, {"p": 1}, {"p": 0}, {"training": False}):
        x = numbers(SHAPES.get(name, (2, 3, 4)))
        y = FUNCTIONS[name](memoryview(x), rng=SEED, inplace=True, **kwargs)
        want = FUNCTIONS[name](numbers(x.shape), rng=SEED, **kwargs)
        assert type(y) is np.ndarray and np.shares_memory(x, y)
        np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_scalar_gives_an_array_in_both_modes(dtype):
    for kwargs in ({"rng": 1}, {"p": 0}, {"p": 1}, {"training": False}):
        y = cd.dropout(dtype(3), **kwargs)
        assert type(y) is np.ndarray and y.shape == () and y.dtype == dtype
        assert y in (0, 3, 6)


# ---- copies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0, 0.0, 1])
@pytest.mark.parametrize("make", [np.copy, memoryview, Counting, lambda x: x.T], ids=str)
def test_copies_for_monte_carlo_are_independent(make, p):
    x = numbers()
    for n in (1, 3):
        copies = cd.mc_dropout(make(x), p, n)
        assert copies.flags.writeable and not np.shares_memory(copies, x)
        for value, copy in enumerate(copies):
            copy[...] = value
        assert [np.unique(copy).tolist() for copy in copies] == [[value] for value in range(n)]
    np.testing.assert_array_equal(x, numbers())


@pytest.mark.parametrize("p", [0, 0.0, 1])
def test_copies_of_a_tensor_are_independent(p):
    torch = pytest.importorskip("torch")
    from cdropout.torch import mc_dropout

    tensor = torch.from_numpy(numbers())
    for x in (tensor, tensor.transpose(0, 2)):
        for n in (1, 3):
            copies = mc_dropout(x, p, n)
            for value, copy in enumerate(copies):
                copy.fill_(value)
            assert [copy.unique().tolist() for copy in copies] == [[i] for i in range(n)]
    np.testing.assert_array_equal(tensor.numpy(), numbers())


# ---- subclasses of ndarray --------------------------------------------------------------------


@pytest.fixture(params=["memmap", "recarray", "matrix"])
def plain(request, tmp_path):
    """Return an array of a subclass that adds no meaning to its elements."""
    x = numbers((3, 4))
    if request.param == "memmap":
        y = np.memmap(tmp_path / "x", np.float32, "w+", shape=x.shape)
        y[:] = x
        return y
    return x.view({"recarray": np.recarray, "matrix": np.matrix}[request.param])


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_plain_subclasses_are_taken(plain):
    """In training a plain array comes back; in evaluation, in place and as out the array itself."""
    x, mask = numbers((3, 4)), cd.Mask((3, 4), 0.5, SEED)
    want = cd.dropout(x, 0.5, rng=SEED)
    for name in ("dropout", "drop_path", "alpha_dropout", "feature_alpha_dropout"):
        y = FUNCTIONS[name](plain, rng=SEED)
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, FUNCTIONS[name](x, rng=SEED))
        for kwargs in ({"training": False}, {"p": 0}, {"p": 0, "inplace": True}):
            assert FUNCTIONS[name](plain, **kwargs) is plain
    for y in (mask.apply(plain), cd.dropout_backward(plain, mask)):
        assert type(y) is np.ndarray
        np.testing.assert_array_equal(y, want)
    assert cd.bias_dropout_add_backward(plain, mask)[2] is plain
    assert type(cd.mc_dropout(plain, 0, 2)) is np.ndarray
    assert cd.dropout(x, 0.5, rng=SEED, out=plain) is plain
    np.testing.assert_array_equal(plain, want)
    plain[...] = x
    assert cd.dropout(plain, 0.5, rng=SEED, inplace=True) is plain
    np.testing.assert_array_equal(plain, want)


def of_package(package, base=object, name="Fake"):
    """Return a class that says it is from a package."""
    return type(name, (base,), {"__module__": f"{package}.core"})


LOSES = "x is of type Fake, a subclass of ndarray whose meaning the result would lose; pass "


@pytest.mark.parametrize(
    "package, way",
    [("astropy", "x.value"), ("unyt", "x.value"), ("mine", r"np.asarray\(x\)")],
)
def test_other_subclasses_are_refused(package, way):
    kind = of_package(package, np.ndarray)
    x, generator, mask = numbers((3, 4, 5)), cd.Generator(1), cd.Mask((3, 4, 5), 0.5)
    given = x.view(kind)
    for kwargs in ({}, {"p": 0}, {"training": False}, {"inplace": True}):
        for function in FUNCTIONS.values():
            with pytest.raises(TypeError, match=f"^{LOSES}{way}$"):
                function(given, rng=generator, **kwargs)
    for call in (
        lambda: cd.mc_dropout(given),
        lambda: cd.dropout_backward(given, mask),
        lambda: mask.apply(given),
        lambda: cd.bias_dropout_add(given, x, x, rng=generator),
        lambda: cd.Dropout(0.5)(given),
    ):
        with pytest.raises(TypeError, match=f"^{LOSES}{way}$"):
            call()
    with pytest.raises(TypeError, match="^bias is of type Fake, .*; pass .*bias"):
        cd.bias_dropout_add(x, given, x, rng=generator)
    with pytest.raises(TypeError, match="^out has to be a NumPy array, but got Fake$"):
        cd.dropout(x, rng=generator, out=given)
    with pytest.raises(TypeError, match="^mask has to be a Mask or a NumPy array, but got Fake$"):
        cd.dropout(x, mask=given)
    assert generator.calls == 0


# ---- what to pass instead ---------------------------------------------------------------------

WAYS = {
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


@pytest.mark.parametrize("package, way", WAYS.items())
def test_the_message_names_what_to_pass(package, way):
    kind = of_package(package)
    for x in (kind(), of_package("mine", kind)()):  # and classes derived from it
        with pytest.raises(TypeError) as caught:
            cd.dropout(x)
        assert str(caught.value).startswith(NO_ARRAY)
        assert str(caught.value).endswith(f" but got Fake; {way}")


class Quantity:
    """A wrapper that hands on the attributes of what it holds, as pint's does."""

    __module__ = "pint.registry"

    def __init__(self, magnitude):
        self.magnitude = magnitude

    def __getattr__(self, name):
        return getattr(self.magnitude, name)


def test_a_wrapper_is_not_read_as_what_it_holds():
    with pytest.raises(TypeError, match="but got Quantity; pass x.magnitude$"):
        cd.dropout(Quantity(numbers()), training=False)


class Unreadable:
    def __dlpack__(self, **options):
        raise self.error

    def __dlpack_device__(self):
        return 1, 0


@pytest.mark.parametrize(
    "package, way",
    [("torch", "use cdropout.torch"), ("jax._src", "use cdropout.jax"),
     ("tensorflow.python", "use cdropout.tensorflow")],
)  # fmt: skip
@pytest.mark.parametrize(
    "error, kind", [(BufferError, BufferError), (ValueError, BufferError), (TypeError, TypeError)]
)
def test_the_message_for_a_tensor_that_cannot_be_read(package, way, error, kind):
    x = of_package(package, Unreadable)()
    x.error = error("no bfloat16")
    words = f"^x, of type Fake, cannot be read as a NumPy array; {way}: no bfloat16$"
    with pytest.raises(kind, match=words) as caught:
        cd.dropout(x)
    assert caught.type is kind


def test_the_message_for_what_jax_traces_or_numpy_lacks():
    jax = pytest.importorskip("jax")
    words = "cannot be read as a NumPy array; use cdropout.jax: "
    x = jax.numpy.ones(3)
    for transform in (jax.jit, jax.vmap, lambda function: jax.grad(lambda x: function(x).sum())):
        with pytest.raises(TypeError, match=words):
            transform(cd.dropout)(x)
    with pytest.raises(BufferError, match=words):
        cd.dropout(x.astype("bfloat16"))


def test_the_messages_for_real_objects():
    found = 0
    for package, make, way in [
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
        with pytest.raises(TypeError) as caught:
            cd.dropout(make(module))
        assert str(caught.value).endswith(f"; {way}")
        found += 1
    if not found:
        pytest.skip("none of these packages is installed")

"""alpha_dropout of tensors and of arrays, with one mask: equal to the bit in every way."""

import warnings

import numpy as np
import pytest

import cdropout as cd

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cdropout.torch")
ml_dtypes = pytest.importorskip("ml_dtypes")

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LAYOUTS = {
    "contiguous": lambda x: x,
    "permuted": lambda x: x.permute(2, 0, 3, 1),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: x[:, 1:, ::2, 1:],
    "expanded": lambda x: x[:, :, :1].expand(-1, -1, 9, -1),
    "far": lambda x: x.reshape(2, -1).t().reshape(-1, 2, 1, 1).expand(-1, 2, 2, 1),
}
NAMES = ["alpha_dropout", "feature_alpha_dropout"]


def numbers(dtype, *shape):
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    for i, value in enumerate([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e30, -1e30, 1e-30]):
        x.view(-1)[i::97] = value
    return x.to(dtype)


def bits(x):
    """The bits of a tensor or an array, with one NaN for all."""
    x = x.detach().resolve_conj() if isinstance(x, torch.Tensor) else torch.from_numpy(as_ints(x))
    if x.is_floating_point():
        x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
        x = x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize])
    return x


def as_ints(array):
    array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return np.ascontiguousarray(array).view(f"i{array.itemsize}")


def as_array(x):
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def expected(name, x, p, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow in a conversion
        return bits(getattr(cd, name)(as_array(x), p, True, rng=seed))


@pytest.mark.parametrize("p", [1e-300, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-9, 1 - 2**-53])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_p(dtype, name, p):
    x = numbers(dtype, 8, 9, 10, 11)
    y = getattr(ct, name)(x, p, True, generator=cd.Generator(7))
    assert torch.equal(bits(y), expected(name, x, p, 7))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout(dtype, name, layout, inplace):
    x = LAYOUTS[layout](numbers(dtype, 6, 20, 32, 30))
    before = expected(name, x, 0.3, 7)
    if inplace:
        x = x.clone() if layout in ("expanded", "far") else x
    y = getattr(ct, name)(x, 0.3, True, inplace, generator=cd.Generator(7))
    assert torch.equal(bits(y), before) and (y is x) == inplace
    if not inplace:
        assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_way_to_call_it(dtype, name):
    x = numbers(dtype, 5, 4, 300, 70)  # several work chunks
    function, form = getattr(ct, name), getattr(torch, name)
    torch.manual_seed(2)
    seed = torch.randint(2**63 - 1, ()).item()
    y = expected(name, x, 0.3, seed)

    def eager(x):
        return function(x, 0.3, True)

    def rerouted(x):
        with ct.accelerate():
            return form(x, 0.3, True)

    def rerouted_in_place(x):
        with ct.accelerate():
            return getattr(torch, name + "_")(x.clone(), 0.3, True)

    ways = {
        "eager": eager,
        "recorded": lambda x: function(x.clone().requires_grad_(), 0.3, True),
        "rerouted": rerouted,
        "rerouted in place": rerouted_in_place,
        "compiled": torch.compile(eager, backend="aot_eager", fullgraph=True),
        "vjp": lambda x: torch.func.vjp(eager, x)[0],
        "jvp": lambda x: torch.func.jvp(eager, (x,), (x,))[0],
        "functional": lambda x: torch.vmap(eager, randomness="same")(x[None])[0],
        "module": (ct.AlphaDropout if name == "alpha_dropout" else ct.FeatureAlphaDropout)(0.3),
    }
    for way, call in ways.items():
        torch.manual_seed(2)
        assert torch.equal(bits(call(x)), y), way
    torch.manual_seed(2)
    seed = torch.randint(2**63 - 1, (2,))[0].item()  # the first sample's names the mask
    torch.manual_seed(2)
    if name == "alpha_dropout":
        y = torch.vmap(eager, randomness="different")(x[:2])
        assert torch.equal(bits(y), expected(name, x[:2], 0.3, seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_arrays(dtype, name):
    x = torch.randn(5, 4, 30, 7, dtype=dtype)
    gy = numbers(dtype, 5, 4, 30, 7)
    _, mask = getattr(cd, name)(as_array(x), 0.3, True, rng=7, return_mask=True)
    gx = bits(cd.dropout_backward(as_array(gy), mask))

    def call(x):
        return getattr(ct, name)(x, 0.3, True, generator=cd.Generator(7))

    for create_graph in (False, True):
        leaf = x.clone().requires_grad_()
        (result,) = torch.autograd.grad(call(leaf), leaf, gy, create_graph=create_graph)
        assert torch.equal(bits(result), gx)
    leaf = x.clone().requires_grad_()
    y = getattr(ct, name)(leaf * 1, 0.3, True, True, generator=cd.Generator(7))
    assert torch.equal(bits(torch.autograd.grad(y, leaf, gy)[0]), gx)
    assert torch.equal(bits(torch.func.vjp(call, x)[1](gy)[0]), gx)
    assert torch.equal(bits(torch.func.jvp(call, (x,), (gy,))[1]), gx)


@pytest.mark.parametrize("name", NAMES)
def test_rates_that_a_graph_does_not_know(name):
    function = torch.compile(
        lambda x, p: getattr(ct, name)(x, p, True), backend="aot_eager", fullgraph=True
    )
    x = torch.randn(6, 7, 8)
    for p in (0.1, 0.3, 0.5):
        torch.manual_seed(2)
        y = function(x, p)
        torch.manual_seed(2)
        assert torch.equal(y, getattr(ct, name)(x, p, True))

"""Tests that alpha dropout of tensors is identical to that of NumPy arrays with the same mask."""

import warnings

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import DTYPES, LAYOUTS, next_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")
ml_dtypes = import_or_skip("ml_dtypes")

LAYOUTS = {
    **LAYOUTS,
    "large strides": lambda x: x.reshape(2, -1).t().reshape(-1, 2, 1, 1).expand(-1, 2, 2, 1),
}
NAMES = ["alpha_dropout", "feature_alpha_dropout"]


def special_values(dtype, *shape):
    """Return random numbers with NaNs, infinities, zeros, and very large and small numbers."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64)
    for i, value in enumerate([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e30, -1e30, 1e-30]):
        x.view(-1)[i::97] = value
    return x.to(dtype)


def bits(x):
    """Return the bits of a tensor or an array as a tensor; all NaNs have the same bits."""
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
        warnings.simplefilter("ignore")  # a conversion can overflow
        return bits(getattr(cd, name)(as_array(x), p, True, rng=seed))


@pytest.mark.parametrize("p", [1e-300, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-9, 1 - 2**-53])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_result_equals_numpy_for_every_p(dtype, name, p):
    x = special_values(dtype, 8, 9, 10, 11)
    y = getattr(ct, name)(x, p, True, generator=cd.Generator(7))
    assert torch.equal(bits(y), expected(name, x, p, 7))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_result_equals_numpy_for_every_layout(dtype, name, layout, inplace):
    x = LAYOUTS[layout](special_values(dtype, 6, 20, 32, 30))
    want = expected(name, x, 0.3, 7)
    if inplace and layout in ("expanded", "large strides"):
        x = x.clone()  # in-place calls require elements that do not overlap
    y = getattr(ct, name)(x, 0.3, True, inplace, generator=cd.Generator(7))
    assert torch.equal(bits(y), want) and (y is x) == inplace
    if not inplace:
        assert y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_entry_point_gives_the_same_result(dtype, name):
    x = special_values(dtype, 5, 4, 300, 70)  # large enough for several work chunks
    function, operator = getattr(ct, name), getattr(torch, name)
    torch.manual_seed(2)
    seed = next_seed()
    y = expected(name, x, 0.3, seed)

    def eager(x):
        return function(x, 0.3, True)

    def accelerated(x):
        with ct.accelerate():
            return operator(x, 0.3, True)

    def accelerated_in_place(x):
        with ct.accelerate():
            return getattr(torch, name + "_")(x.clone(), 0.3, True)

    calls = {
        "eager": eager,
        "autograd": lambda x: function(x.clone().requires_grad_(), 0.3, True),
        "accelerated": accelerated,
        "accelerated in place": accelerated_in_place,
        "compiled": torch.compile(eager, backend="aot_eager", fullgraph=True),
        "vjp": lambda x: torch.func.vjp(eager, x)[0],
        "jvp": lambda x: torch.func.jvp(eager, (x,), (x,))[0],
        "vmap": lambda x: torch.vmap(eager, randomness="same")(x[None])[0],
        "module": (ct.AlphaDropout if name == "alpha_dropout" else ct.FeatureAlphaDropout)(0.3),
    }
    for label, call in calls.items():
        torch.manual_seed(2)
        assert torch.equal(bits(call(x)), y), label
    torch.manual_seed(2)
    seed = torch.randint(2**63 - 1, (2,))[0].item()  # the seed that vmap uses
    torch.manual_seed(2)
    if name == "alpha_dropout":
        y = torch.vmap(eager, randomness="different")(x[:2])
        assert torch.equal(bits(y), expected(name, x[:2], 0.3, seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_equal_those_of_numpy(dtype, name):
    x = torch.randn(5, 4, 30, 7, dtype=dtype)
    gy = special_values(dtype, 5, 4, 30, 7)
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
def test_compiled_function_with_p_as_argument_equals_eager(name):
    function = torch.compile(
        lambda x, p: getattr(ct, name)(x, p, True), backend="aot_eager", fullgraph=True
    )
    x = torch.randn(6, 7, 8)
    for p in (0.1, 0.3, 0.5):
        torch.manual_seed(2)
        y = function(x, p)
        torch.manual_seed(2)
        assert torch.equal(y, getattr(ct, name)(x, p, True))

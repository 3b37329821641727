"""Tests of the functions: masks, statistics, layouts, types and errors, compared with PyTorch."""

import math
import warnings

import numpy as np
import pytest

import cdropout as cd

from .. import reference
from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import DTYPES, LAYOUTS, NothingDrawn, next_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

F = torch.nn.functional

LAYOUTS = {
    **LAYOUTS,
    "empty": lambda x: x[:, :, :0],
    "scalar": lambda x: x[0, 0, 0, 0],
}
SELU = 1.7580993408473766  # the limit of SELU(x) as x approaches -infinity is -SELU
CHANNELS = {"dropout1d": (4, 600, 3), "dropout2d": (4, 600, 3, 2), "dropout3d": (4, 600, 2, 1, 3)}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_is_independent_of_layout(dtype, layout, p):
    torch.manual_seed(3)
    x = LAYOUTS[layout](torch.randn(6, 5, 8, 7, dtype=dtype))
    seed = next_seed()
    y = ct.dropout(x, p)
    keep = torch.tensor(reference.broadcast_keep(tuple(x.shape), p, seed, 0))
    wide = x.double() if dtype == torch.float64 else x.float()
    scale = torch.tensor(1 / (1 - p), dtype=wide.dtype)
    assert torch.equal(y, torch.where(keep, wide * scale, 0).to(dtype))
    assert y.dtype == dtype and y.stride() == F.dropout(x, p).stride()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_statistics_and_gradients_match_pytorch(p):
    torch.manual_seed(1)
    x = torch.ones(400_000, dtype=torch.float64, requires_grad=True)
    for function in (ct.dropout, F.dropout):
        y = function(x, p)
        dropped = (y == 0).double().mean().item()
        assert abs(dropped - p) <= 5 * math.sqrt(p * (1 - p) / x.numel())
        (gx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(gx, y.detach())
    assert set(ct.dropout(x, p).detach().unique().tolist()) <= {0.0, 1 / (1 - p) if p < 1 else 0.0}


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("inplace", [False, True])
def test_all_elements_of_a_channel_share_one_draw(name, inplace):
    torch.manual_seed(2)
    x = torch.ones(CHANNELS[name])
    y = getattr(ct, name)(x, 0.3, True, inplace)
    assert (y is x) == inplace
    rows = y.flatten(2)
    assert torch.equal(rows, rows[:, :, :1].expand_as(rows))
    assert abs((rows[:, :, 0] == 0).double().mean() - 0.3) < 5 * math.sqrt(0.21 / 2400)


@pytest.mark.parametrize("name, shape", [("dropout1d", (500, 3)), ("dropout3d", (500, 1, 2, 3))])
def test_channel_dropout_without_batch_axis(name, shape):
    torch.manual_seed(2)
    rows = getattr(ct, name)(torch.ones(shape), 0.5).flatten(1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert 0.3 < (rows == 0).double().mean() < 0.7


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_dropout_preserves_mean_and_variance(name, dtype):
    half = dtype.itemsize == 2
    tolerance = 0.02 if half else 8e-6 if dtype == torch.float32 else 1e-12
    a = (0.8 * (1 + 0.2 * SELU**2)) ** -0.5
    for function in (getattr(ct, name), getattr(F, name)):
        torch.manual_seed(5)
        x = torch.randn(1000, 200, dtype=dtype)
        y = function(x, 0.2, True).double()
        assert abs(y.mean()) < 0.02 and abs(y.var() - 1) < 0.03
        dropped = y == y.flatten().mode().values
        assert half or abs(dropped.double().mean() - 0.2) < 5 * math.sqrt(0.16 / 200_000)
        kept = a * (x.double()[~dropped] + 0.2 * SELU)
        assert torch.allclose(y[~dropped], kept, rtol=tolerance, atol=tolerance)
        assert torch.allclose(y[dropped], torch.tensor(-0.8 * a * SELU).double(), 0.01)


def test_drop_path_mc_dropout_and_bias_dropout_add():
    torch.manual_seed(7)
    x = torch.ones(1000, 3)
    y = ct.drop_path(x, 0.5)
    assert set(y.unique().tolist()) == {0.0, 2.0} and torch.equal(y[:, 0], y[:, 2])
    assert set(ct.drop_path(x, 0.5, scale_by_keep=False).unique().tolist()) == {0.0, 1.0}
    for n, error, message in (
        (-1, ValueError, "at least 0, but got -1"),
        ("2", TypeError, "an int, but got str"),
    ):
        with pytest.raises(error, match=f"^n has to be {message}$"):
            ct.mc_dropout(x, 0.5, n)
    copies = ct.mc_dropout(x, 0.5, 4)
    assert copies.shape == (4, 1000, 3) and not torch.equal(copies[0], copies[1])
    bias, residual = torch.full((3,), 2.0), torch.full((1000, 3), 5.0)
    y = ct.bias_dropout_add(x, bias, residual, 0.5)
    assert set(y.unique().tolist()) == {5.0, 11.0}
    assert torch.equal(ct.bias_dropout_add(x, bias, residual, 0.5, False), x + bias + residual)
    assert torch.equal(x, torch.ones(1000, 3))


def test_mc_dropout_copies_share_no_memory_at_p_0():
    x = torch.ones(3)
    copies = ct.mc_dropout(x, 0.0, 2)
    copies[0] += 1
    assert torch.equal(copies[1], torch.ones(3)) and torch.equal(x, torch.ones(3))


def test_bias_dropout_add_promotes_types():
    x, third = torch.ones(1000, 3), torch.tensor(1 / 3, dtype=torch.float64)
    residual = third.expand(1000, 3).contiguous()
    y = ct.bias_dropout_add(x, x, residual, 0.5)
    assert y.dtype == torch.float64
    assert set(y.unique().tolist()) == {third.item(), third.item() + 4}


def test_drop_path_preserves_the_subclass_of_x():
    class Subclass(torch.Tensor):
        pass

    def ones():
        return torch.ones(1000, 3).as_subclass(Subclass)

    for options, kept in ({}, 2.0), ({"scale_by_keep": False}, 1.0), ({"inplace": True}, 2.0):
        x = ones()
        y = ct.drop_path(x, 0.5, **options)
        assert type(y) is Subclass and set(y.unique().tolist()) == {0.0, kept}
        assert torch.equal(y[:, 0], y[:, 2])
        assert (y is x) == ("inplace" in options)
        assert torch.equal(x, y if y is x else ones())
    assert not ct.drop_path(ones(), 1.0, scale_by_keep=False).any()


def test_dropped_elements_are_plus_zero():
    torch.manual_seed(0)
    x = torch.tensor([math.nan, math.inf, -math.inf, -1.0]).repeat(1000)
    y = ct.dropout(x, 0.5)
    zeros = y[y == 0]
    assert 1800 < len(zeros) < 2200 and not torch.signbit(zeros).any()
    assert y.isnan().sum() < 600 and torch.equal(ct.dropout(x, 1.0), torch.zeros(4000))


@pytest.mark.parametrize("p, training", [(0.0, True), (0.5, False), (1.0, True)])
def test_no_seed_is_drawn_if_no_mask_is_needed(p, training):
    x, state = torch.randn(5), torch.get_rng_state()
    y = ct.dropout(x, p, training)
    assert torch.equal(torch.get_rng_state(), state)
    assert y is x if p < 1 else not y.any()


def test_manual_seed_repeats_the_mask():
    x = torch.randn(100)
    torch.manual_seed(9)
    first, second = ct.dropout(x), ct.dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(9)
    with torch.random.fork_rng():
        assert torch.equal(ct.dropout(x), first)
    assert torch.equal(ct.dropout(x), first) and torch.equal(ct.dropout(x), second)


def test_generator_argument_determines_the_mask():
    x = torch.ones(64, 64)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(4)
    first = ct.dropout(x, generator=generator)
    assert torch.equal(first, ct.dropout(x, generator=torch.Generator().manual_seed(4)))
    assert not torch.equal(first, ct.dropout(x, generator=generator))
    generator = cd.Generator(2**64 - 3)
    for call in (0, 1):
        expected = cd.Mask((64, 64), 0.5, seed=2**64 - 3, call=call).apply(x.numpy())
        assert np.array_equal(ct.dropout(x, generator=generator), expected)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(
        TypeError, match="None, a torch.Generator or a cdropout.Generator, but got i"
    ):
        ct.dropout(x, generator=3)
    with pytest.raises(
        NotImplementedError, match="a Tensor of torch.float32 on meta, which is passed"
    ):
        ct.dropout(x.to("meta"), generator=generator)


UNUSUAL_INPUTS = {  # the function and an input that it passes to PyTorch because of its shape
    "dropout1d": (ct.dropout1d, torch.ones(2, 2, 2, 2)),
    "dropout2d": (ct.dropout2d, torch.ones(2, 2, 2)),
    "dropout3d": (ct.dropout3d, torch.ones(2, 2, 2)),
    "feature_alpha_dropout": (ct.feature_alpha_dropout, torch.ones(3)),
}


@pytest.mark.parametrize("p", [0.5, 0.0])
@pytest.mark.parametrize("name", UNUSUAL_INPUTS)
def test_mask_and_generator_are_not_supported_for_unusual_shapes(name, p):
    function, x = UNUSUAL_INPUTS[name]
    generator = cd.Generator(1)
    options = {"generator": generator, "mask": cd.Mask(tuple(x.shape), p)}
    for option, value in options.items():
        message = (
            rf"^{option}= is not supported for {x.dim()}D input, "
            rf"which is passed to torch\.nn\.functional\.{name}$"
        )
        with NothingDrawn(generator), pytest.raises(NotImplementedError, match=message):
            function(x, p, True, **{option: value})


@pytest.mark.filterwarnings("ignore:dropout[23]d")
@pytest.mark.parametrize("name", ["dropout2d", "dropout3d", "feature_alpha_dropout"])
def test_unusual_shapes_in_evaluation_mode_return_x(name):
    function, x = UNUSUAL_INPUTS[name]
    assert torch.equal(function(x, 0.5, False, generator=cd.Generator(1)), x)


TRANSFORMS = {
    "eager": lambda f: f,
    "vjp": lambda f: lambda x: torch.func.vjp(f, x)[0],
    "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[0],
    "vmap": lambda f: torch.vmap(f, randomness="same"),
    "functionalize": torch.func.functionalize,
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_call_numbers_can_exceed_int64(name):
    generator, transform = cd.Generator(3), TRANSFORMS[name]
    zeros = torch.zeros(6, 4)
    for function in (
        lambda x, **options: ct.dropout(x, 0.5, **options),
        lambda x, **options: ct.bias_dropout_add(x, zeros[0], zeros, 0.5, **options),
    ):
        x = torch.randn(2, 6, 4) if name == "vmap" else torch.randn(6, 4)
        generator.state = {"seed": 3, "calls": 2**63 + 1, "spawned": 0}
        y = transform(lambda x, f=function: f(x, generator=generator))(x)
        mask = cd.Mask((6, 4), 0.5, seed=3, call=2**63 + 1)
        assert torch.equal(y, transform(lambda x, f=function, m=mask: f(x, mask=m))(x))


# ---- in place -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout"])
def test_in_place_call_increments_the_version_of_x(name):
    x = torch.randn(50)
    before, version = x.clone(), x._version
    y = getattr(ct, name)(x, 0.5, True, True)
    assert y is x and not torch.equal(x, before) and x._version > version
    z = torch.randn(50, requires_grad=True)
    saved = z * 2
    product = saved * saved
    getattr(ct, name)(saved, 0.5, True, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1:], lambda x: x.t()])
def test_gradients_of_in_place_calls(view):
    x = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    y = x * 1
    z = ct.dropout(view(y), 0.5, True, True)
    z.sum().backward()
    expected = torch.zeros_like(x)
    view(expected).copy_((z != 0) * 2)
    assert torch.equal(x.grad, expected)


def test_in_place_errors_match_pytorch():
    leaf = torch.ones(9, requires_grad=True)
    with torch.no_grad():
        no_grad_view = leaf[2:]
    with torch.inference_mode():
        inference = torch.ones(4)
    invalid = {
        "a leaf Variable that requires grad": leaf,
        "a view of a leaf Variable": leaf[1:],
        "no_grad": no_grad_view,
        "refers to a single memory location": torch.ones(1).expand(5),
        "Inplace update to inference tensor": inference,
    }
    state = torch.get_rng_state()
    for message, x in invalid.items():
        for function in (ct.dropout, F.dropout):
            before = x.detach().clone()
            torch.set_rng_state(state)
            with pytest.raises(RuntimeError, match=message):
                function(x, 0.5, True, True)
            if function is ct.dropout:
                assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        assert ct.dropout(inference, 0.5, True, True) is inference


# ---- invalid input ------------------------------------------------------------------------------

UNSUPPORTED = {
    "integer": lambda: torch.arange(4),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_unsupported_tensors_raise_the_error_type_of_pytorch(kind):
    x = UNSUPPORTED[kind]()
    try:
        expected = F.dropout(x, 0.5)
    except RuntimeError as error:
        with pytest.raises(type(error), match="strided tensors of floating-point numbers, but got"):
            ct.dropout(x, 0.5)
    else:
        assert ct.dropout(x, 0.5).dtype == expected.dtype


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan, "a", None])
@pytest.mark.parametrize("name", ["dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout"])
def test_invalid_p_raises_the_error_of_pytorch(name, p):
    errors = []
    for module in (ct, F):
        with pytest.raises((ValueError, RuntimeError, TypeError)) as caught:
            getattr(module, name)(torch.ones(2, 2, 2, 2), p, True)
        errors.append((caught.type, str(caught.value)))
    if isinstance(p, float):
        assert errors[0] == errors[1]
        assert "dropout probability has to be between 0 and 1, but got" in errors[0][1]
    assert errors[0][0] is errors[1][0]


@pytest.mark.parametrize("training", ["yes", None, 1])
def test_training_that_is_not_a_bool_raises(training):
    with pytest.raises(TypeError, match="must be bool, not"):
        ct.dropout(torch.ones(3), 0.5, training)


def test_invalid_shapes_cause_the_errors_and_warnings_of_pytorch():
    with pytest.raises(RuntimeError, match="dropout1d: Expected 2D or 3D input, but received a 4D"):
        ct.dropout1d(torch.ones(1, 1, 1, 1))
    with pytest.raises(RuntimeError, match="Feature dropout requires at least 2 dimensions"):
        ct.feature_alpha_dropout(torch.ones(4), 0.5, True)
    with pytest.raises(TypeError, match="must be Tensor, not list"):
        ct.dropout([1.0])
    for name, shape in (("dropout2d", (2, 3, 4)), ("dropout2d", (2, 2)), ("dropout3d", (2, 2, 2))):
        messages = []
        for module in (ct, F):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert getattr(module, name)(torch.ones(shape), 0.5).shape == shape
            messages.append([str(warning.message) for warning in caught])
        assert messages[0] == messages[1] and messages[0]


def test_dropout_on_another_device_uses_pytorch():
    assert ct.dropout(torch.ones(3, device="meta"), 0.5).device.type == "meta"


def test_dropout_of_a_lazily_negated_tensor():
    imaginary = torch.arange(1.0, 1001.0)
    for inplace in (False, True):
        x = torch.complex(torch.ones(1000), imaginary).conj().imag
        assert x.is_neg()
        y = ct.dropout(x, 0.5, True, inplace)
        kept = y != 0
        assert 400 < kept.sum() < 600
        assert torch.equal(y[kept], -2 * imaginary[kept])


def test_dropout_calls_the_torch_function_of_a_subclass():
    called = []

    class Logged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            called.append(function.__name__)
            return super().__torch_function__(function, types, args, kwargs)

    x = torch.ones(3).as_subclass(Logged)
    assert type(ct.dropout(x, 0.5)) is Logged and "dropout" in called
    called.clear()
    torch.vmap(lambda _: ct.dropout(x, 0.5), randomness="same")(torch.ones(2))
    assert "dropout" in called

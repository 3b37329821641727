"""Tests of accelerate, enable and disable."""

import functools
import threading

import pytest

from ..helpers.requirements import import_or_skip

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

F, nn = torch.nn.functional, torch.nn
REFUSAL = "cannot decorate a generator function or a coroutine function"
NODE = "EagerDropoutBackward"  # the name of the autograd node of a result of cdropout


@pytest.fixture(autouse=True)
def disable_afterwards():
    yield
    ct.disable()


def node_of(y):
    return type(y.grad_fn).__name__


CALLS = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout_": lambda x: F.dropout(x * 1, 0.5, inplace=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "dropout2d": lambda x: F.dropout2d(x, 0.5),
    "dropout2d_": lambda x: torch.feature_dropout_(x * 1, 0.5, True),
    "dropout1d": lambda x: F.dropout1d(x.flatten(2), 0.5),
    "module": nn.Dropout(0.5),
    "alpha": lambda x: F.alpha_dropout(x, 0.5, True),
    "alpha_": lambda x: F.alpha_dropout(x * 1, 0.5, True, True),
    "feature_alpha": lambda x: F.feature_alpha_dropout(x, 0.5, True),
    "feature_alpha_": lambda x: torch.feature_alpha_dropout_(x * 1, 0.5, True),
    "native": lambda x: torch.native_dropout(x, 0.5, True)[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_accelerate_replaces_every_operator(name):
    function = CALLS[name]
    alpha_functions = {"alpha": ct.alpha_dropout, "feature_alpha": ct.feature_alpha_dropout}
    x = torch.ones(4, 30, 5, 3, requires_grad=True)
    torch.manual_seed(6)
    original = function(x)
    with ct.accelerate():
        torch.manual_seed(6)
        y = function(x)
    key = name.rstrip("_")
    torch.manual_seed(6)
    if key in alpha_functions:
        expected = alpha_functions[key](x, 0.5, True)
    else:
        expected = getattr(ct, key, ct.dropout)(x.flatten(2) if key == "dropout1d" else x, 0.5)
    assert torch.equal(y, expected) and not torch.equal(y, original)
    (gx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gx.reshape(y.shape) != 0, y == y.max())
    torch.manual_seed(6)
    assert torch.equal(function(x), original)
    with torch.inference_mode(), ct.accelerate():
        torch.manual_seed(6)
        assert torch.equal(function(torch.ones(4, 30, 5, 3)), y)


def count_accelerated(monkeypatch, function):
    """Call the function and return how often it called an operator that cdropout replaced."""
    from cdropout.torch import overrides

    calls = []
    runs_eagerly = overrides.runs_eagerly
    monkeypatch.setattr(overrides, "runs_eagerly", lambda x: calls.append(x) or runs_eagerly(x))
    function()
    return len(calls)


INDIRECT_CALLS = {
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "MultiheadAttention": lambda x: nn.MultiheadAttention(8, 2, dropout=0.5)(x[0], x[0], x[0]),
    "LSTM": lambda x: nn.LSTM(8, 8, num_layers=2, dropout=0.5)(x[0]),
    "GRU": lambda x: nn.GRU(8, 8, num_layers=2, dropout=0.5)(x[0]),
    "script": lambda x: torch.jit.script(nn.Dropout(0.5))(x),
}


@pytest.mark.parametrize("name", INDIRECT_CALLS)
def test_accelerate_replaces_dropout_within_modules(name, monkeypatch):
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    with ct.accelerate():
        assert count_accelerated(monkeypatch, lambda: INDIRECT_CALLS[name](x)) == 1


def test_accelerate_preserves_errors_and_special_cases():
    with ct.accelerate():
        assert F.dropout(torch.ones(3, device="meta")).device.type == "meta"
        for p, message in ((-1.0, "between 0 and 1, but got -1"), (float("nan"), "but got nan")):
            with pytest.raises((ValueError, RuntimeError), match=message):
                F.dropout(torch.ones(3), p)
        with pytest.raises(RuntimeError, match="at least 2 dimensions"):
            torch.feature_dropout(torch.ones(3), 0.5, True)
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
            F.dropout(torch.ones(3, requires_grad=True), inplace=True)
        x = torch.ones(3)
        assert F.dropout(x, 0.5, False) is x and F.dropout(x, 0.0) is x
        assert torch.equal(F.dropout(x, 1.0), torch.zeros(3))
        assert torch.vmap(F.dropout, randomness="different")(torch.ones(3, 4)).shape == (3, 4)
        y = torch.compile(F.dropout, backend="aot_eager", fullgraph=True)(torch.ones(1000))
        assert 350 < (y == 0).sum() < 650


def test_accelerate_and_enable_can_be_nested():
    x = torch.ones(9, requires_grad=True)

    def active():
        return node_of(F.dropout(x, 0.5)) == NODE

    with ct.accelerate():
        with ct.accelerate():
            assert active()
        assert active()
    assert not active()
    with pytest.raises(KeyError), ct.accelerate():
        raise KeyError
    assert not active()
    ct.enable()
    ct.enable()
    with ct.accelerate():
        ct.disable()
        assert active()
    assert not active()
    ct.enable()
    with ct.accelerate():
        pass
    assert active()
    ct.disable()
    assert not active() and ct.accelerate()(active)() and not active()


async def coroutine(x):
    return F.dropout(x)


async def asynchronous_generator(x):
    yield F.dropout(x)


def generator(x):
    yield F.dropout(x)


@pytest.mark.parametrize("function", [coroutine, asynchronous_generator, generator])
def test_accelerate_of_generator_functions_raises(function):
    for decorated in (function, functools.partial(function)):
        with pytest.raises(TypeError, match=REFUSAL):
            ct.accelerate()(decorated)


def wrapped(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)

    return call


class GeneratorCall:
    def __call__(self, x):
        yield F.dropout(x)


class CoroutineCall:
    async def __call__(self, x):
        return F.dropout(x)


@pytest.mark.parametrize("function", [coroutine, asynchronous_generator, generator])
def test_accelerate_of_wrapped_generator_functions_raises(function):
    for decorated in (staticmethod(function), classmethod(function), wrapped(function)):
        with pytest.raises(TypeError, match=REFUSAL):
            ct.accelerate()(decorated)
    decorated = ct.accelerate()(lambda x: function(x))
    with pytest.raises(TypeError, match=REFUSAL):
        decorated(torch.ones(3))


@pytest.mark.parametrize("kind", [GeneratorCall, CoroutineCall])
def test_accelerate_of_objects_whose_call_is_a_generator_function_raises(kind):
    with pytest.raises(TypeError, match=REFUSAL):
        ct.accelerate()(kind())


def test_accelerate_decorates_static_methods_and_callable_objects():
    class Model:
        @ct.accelerate()
        def __call__(self, x):
            return F.dropout(x)

        @staticmethod
        @ct.accelerate()
        def static(x):
            return F.dropout(x)

    x = torch.ones(9, requires_grad=True)
    for function in (Model(), Model.static, ct.accelerate()(functools.partial(F.dropout, p=0.5))):
        assert node_of(function(x)) == NODE


def test_accelerate_decorates_functions():
    @ct.accelerate()
    def run(x):
        """Drop."""
        return F.dropout(x)

    x = torch.ones(9, requires_grad=True)
    assert [node_of(run(x)) for _ in range(2)] == [NODE, NODE] != [node_of(F.dropout(x))] * 2
    assert run.__doc__ == "Drop."


def test_accelerate_in_several_threads():
    x, failures = torch.ones(64, requires_grad=True), []

    def work():
        for _ in range(200):
            with ct.accelerate():
                if node_of(F.dropout(x, 0.5)) != NODE:
                    failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and node_of(F.dropout(x, 0.5)) != NODE

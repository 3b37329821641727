"""cdropout.torch's modules, convert and revert, and accelerate."""

import copy
import functools
import importlib
import pickle
import threading

import pytest

import cdropout as cd

from ..helpers import subprocess_runner as children
from ..helpers.requirements import import_or_skip

torch = import_or_skip("torch")
import cdropout.torch as ct  # noqa: E402

F, nn = torch.nn.functional, torch.nn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

NAMES = [
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
]
SHAPES = {"Dropout1d": (5, 90, 3), "Dropout2d": (5, 90, 3, 2), "Dropout3d": (5, 90, 2, 3, 2)}
NODE = "EagerDropoutBackward"  # of a dropout that was computed here


@pytest.fixture(autouse=True)
def disabled_afterwards():
    yield
    ct.disable()


def node_of(y):
    return type(y.grad_fn).__name__


def test_without_pytorch_it_says_what_to_install():
    script = "import sys; sys.modules['torch'] = None; import cdropout.torch"
    _, _, errors = children.run(script)
    words = "ImportError: cdropout.torch needs PyTorch 2.13: run `pip install 'cdropout[torch]'`"
    assert errors.splitlines()[-1] == words


# ---- modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_module_is_pytorchs_in_all_but_who_computes(name):
    ours, theirs = getattr(ct, name)(0.25, True), getattr(nn, name)(0.25, True)
    assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs))
    assert ours.state_dict() == theirs.state_dict() and ours.__constants__ == theirs.__constants__
    x = torch.randn(SHAPES.get(name, (5, 90)))
    torch.manual_seed(2)
    y = ours(x.clone())
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.manual_seed(2)
        assert torch.equal(twin(x.clone()), y) and repr(twin) == repr(ours)
    assert not torch.equal(y, x) and y.shape == x.shape
    assert ours.eval()(x) is x and not ours.training


@pytest.mark.parametrize("name", NAMES)
def test_a_module_writes_where_pytorchs_does(name):
    for module in (getattr(ct, name)(0.5, True), getattr(nn, name)(0.5, True)):
        x = torch.ones(SHAPES.get(name, (5, 90)))
        assert (module(x) is x) == ("Alpha" not in name)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_is_checked_at_construction(p):
    with pytest.raises(ValueError, match="has to be between 0 and 1, but got"):
        ct.Dropout2d(p)
    with pytest.raises(TypeError, match="generator has to be None, a torch.Generator or a cd"):
        ct.Dropout(generator="default")


@pytest.mark.parametrize("kind", [cd.Generator, lambda seed: torch.Generator().manual_seed(seed)])
def test_a_module_with_a_generator_of_its_own(kind):
    x, state = torch.ones(500), torch.get_rng_state()
    module = ct.Dropout(0.5, generator=kind(3))
    y = module(x)
    assert torch.equal(ct.Dropout(0.5, generator=kind(3))(x), y)
    assert not torch.equal(module(x), y) and torch.equal(torch.get_rng_state(), state)


# ---- convert and revert -------------------------------------------------------------------------


class Special(nn.Dropout):
    pass


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), Special(0.5))
        self.again = self.first[1]
        self.listed = [self.again]
        self.deep = nn.ModuleDict({"a": nn.Sequential(nn.AlphaDropout(0.2), nn.Dropout3d())})
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1)
        self.plain = nn.MultiheadAttention(4, 2)


def test_convert_swaps_all_in_place_and_revert_undoes_it():
    model = Shared().eval()
    text, before = repr(model), dict(model.named_modules())
    done = ct.convert(model)
    assert done.swapped == ["first.1", "deep.a.0", "deep.a.1"]
    assert done.kept == {
        "first.2": "Special is a subclass of a dropout module",
        "attention": "MultiheadAttention calls dropout internally: use accelerate()",
    }
    assert repr(model) == text and dict(model.named_modules()) == before
    assert type(model.listed[0]) is ct.Dropout and not model.again.training
    assert type(model.deep["a"][0]) is ct.AlphaDropout and type(model.first[2]) is Special
    assert ct.convert(model).swapped == []
    torch.manual_seed(1)
    y = model.again.train()(torch.ones(50, requires_grad=True))
    assert node_of(y) == NODE
    assert ct.revert(model).swapped == done.swapped
    assert type(model.again) is nn.Dropout and ct.revert(model) == ([], {})


def test_convert_of_one_module_and_what_is_none():
    module = nn.Dropout2d()
    assert ct.convert(module) == ([""], {}) and type(module) is ct.Dropout2d
    model = nn.Sequential(ct.Dropout(generator=cd.Generator(1)))
    assert ct.revert(model).kept == {"0": "Dropout has a generator; PyTorch's modules have none"}
    for function in (ct.convert, ct.revert):
        with pytest.raises(TypeError, match="takes a torch.nn.Module, but got function"):
            function(F.dropout)


# ---- accelerate ---------------------------------------------------------------------------------

FORMS = {
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


@pytest.mark.parametrize("name", FORMS)
def test_accelerate_reroutes_every_form(name):
    function = FORMS[name]
    peer = {"alpha": ct.alpha_dropout, "feature_alpha": ct.feature_alpha_dropout}
    x = torch.ones(4, 30, 5, 3, requires_grad=True)
    torch.manual_seed(6)
    theirs = function(x)
    with ct.accelerate():
        torch.manual_seed(6)
        y = function(x)
    key = name.rstrip("_")
    torch.manual_seed(6)
    if key in peer:
        expected = peer[key](x, 0.5, True)
    else:
        expected = getattr(ct, key, ct.dropout)(x.flatten(2) if key == "dropout1d" else x, 0.5)
    assert torch.equal(y, expected) and not torch.equal(y, theirs)
    (gx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gx.reshape(y.shape) != 0, y == y.max())
    torch.manual_seed(6)
    assert torch.equal(function(x), theirs)
    with torch.inference_mode(), ct.accelerate():
        torch.manual_seed(6)
        assert torch.equal(function(torch.ones(4, 30, 5, 3)), y)


def count_of(monkeypatch, function):
    """How often dropout was computed here while the function ran."""
    from cdropout.torch import overrides

    calls = []
    ordinary = overrides.runs_eagerly
    monkeypatch.setattr(overrides, "runs_eagerly", lambda x: calls.append(x) or ordinary(x))
    function()
    return len(calls)


INSIDE = {
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "MultiheadAttention": lambda x: nn.MultiheadAttention(8, 2, dropout=0.5)(x[0], x[0], x[0]),
    "LSTM": lambda x: nn.LSTM(8, 8, num_layers=2, dropout=0.5)(x[0]),
    "GRU": lambda x: nn.GRU(8, 8, num_layers=2, dropout=0.5)(x[0]),
    "script": lambda x: torch.jit.script(nn.Dropout(0.5))(x),
}


@pytest.mark.parametrize("name", INSIDE)
def test_accelerate_reaches_inside(name, monkeypatch):
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    with ct.accelerate():
        assert count_of(monkeypatch, lambda: INSIDE[name](x)) == 1


def test_accelerate_leaves_the_rest_to_pytorch():
    with ct.accelerate():
        assert F.dropout(torch.ones(3, device="meta")).device.type == "meta"
        for bad, words in ((-1.0, "between 0 and 1, but got -1"), (float("nan"), "but got nan")):
            with pytest.raises((ValueError, RuntimeError), match=words):
                F.dropout(torch.ones(3), bad)
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


def test_accelerate_nests_ends_on_errors_and_leaves_enable_alone():
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


async def asynchronous(x):
    yield F.dropout(x)


def suspended(x):
    yield F.dropout(x)


@pytest.mark.parametrize("function", [coroutine, asynchronous, suspended])
def test_accelerate_refuses_to_decorate_what_runs_later(function):
    for decorated in (function, functools.partial(function)):
        with pytest.raises(TypeError, match="cannot decorate a generator function or a coroutine"):
            ct.accelerate()(decorated)


def wrapped(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)

    return call


class Suspended:
    def __call__(self, x):
        yield F.dropout(x)


class Asynchronous:
    async def __call__(self, x):
        return F.dropout(x)


@pytest.mark.parametrize("function", [coroutine, asynchronous, suspended])
def test_accelerate_sees_through_wrappers(function):
    for decorated in (staticmethod(function), classmethod(function), wrapped(function)):
        with pytest.raises(TypeError, match="cannot decorate a generator function or a coroutine"):
            ct.accelerate()(decorated)
    decorated = ct.accelerate()(lambda x: function(x))
    with pytest.raises(TypeError, match="cannot decorate a generator function or a coroutine"):
        decorated(torch.ones(3))


@pytest.mark.parametrize("kind", [Suspended, Asynchronous])
def test_accelerate_refuses_objects_whose_call_runs_later(kind):
    with pytest.raises(TypeError, match="cannot decorate a generator function or a coroutine"):
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


def test_accelerate_in_threads():
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


@pytest.mark.parametrize("version", ["2.9.1", "3.0.0a1+cpu"])
def test_other_versions_of_pytorch_are_refused(version, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(
        ImportError, match=f"2.13 and later versions below 3.0, but found {version[:3]}"
    ):
        importlib.reload(ct)

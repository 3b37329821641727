"""Tests of the modules, and of convert and revert."""

import copy
import pickle

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import MODULES, with_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

F, nn = torch.nn.functional, torch.nn


# ---- modules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_module_has_the_interface_of_pytorch(name):
    module, original = getattr(ct, name)(0.25, True), getattr(nn, name)(0.25, True)
    assert repr(module) == repr(original) and isinstance(module, type(original))
    assert module.state_dict() == original.state_dict()
    assert module.__constants__ == original.__constants__
    x = torch.randn(MODULES[name])
    torch.manual_seed(2)
    y = module(x.clone())
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.manual_seed(2)
        assert torch.equal(copied(x.clone()), y) and repr(copied) == repr(module)
    assert not torch.equal(y, x) and y.shape == x.shape
    assert module.eval()(x) is x and not module.training


@pytest.mark.parametrize("name", MODULES)
def test_inplace_matches_pytorch(name):
    for module in (getattr(ct, name)(0.5, True), getattr(nn, name)(0.5, True)):
        x = torch.ones(MODULES[name])
        assert (module(x) is x) == ("Alpha" not in name)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_module_arguments_are_checked_at_construction(p):
    with pytest.raises(ValueError, match="has to be between 0 and 1, but got"):
        ct.Dropout2d(p)
    with pytest.raises(TypeError, match="generator has to be None, a torch.Generator or a cd"):
        ct.Dropout(generator="default")


@pytest.mark.parametrize("kind", [cd.Generator, lambda seed: torch.Generator().manual_seed(seed)])
def test_module_draws_from_its_generator(kind):
    x, state = torch.ones(500), torch.get_rng_state()
    module = ct.Dropout(0.5, generator=kind(3))
    y = module(x)
    assert torch.equal(ct.Dropout(0.5, generator=kind(3))(x), y)
    assert not torch.equal(module(x), y) and torch.equal(torch.get_rng_state(), state)


# ---- convert and revert -------------------------------------------------------------------------


class Subclass(nn.Dropout):
    pass


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), Subclass(0.5))
        self.again = self.first[1]
        self.listed = [self.again]
        self.deep = nn.ModuleDict({"a": nn.Sequential(nn.AlphaDropout(0.2), nn.Dropout3d())})
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1)
        self.plain = nn.MultiheadAttention(4, 2)


def test_convert_and_revert():
    model = Model().eval()
    text, before = repr(model), dict(model.named_modules())
    swap = ct.convert(model)
    assert swap.swapped == ["first.1", "deep.a.0", "deep.a.1"]
    assert swap.kept == {
        "first.2": "Subclass is a subclass of a dropout module",
        "attention": "MultiheadAttention calls dropout internally: use accelerate()",
    }
    assert repr(model) == text and dict(model.named_modules()) == before
    assert type(model.listed[0]) is ct.Dropout and not model.again.training
    assert type(model.deep["a"][0]) is ct.AlphaDropout and type(model.first[2]) is Subclass
    assert ct.convert(model).swapped == []
    torch.manual_seed(1)
    y = model.again.train()(torch.ones(50, requires_grad=True))
    assert type(y.grad_fn).__name__ == "EagerDropoutBackward"
    assert ct.revert(model).swapped == swap.swapped
    assert type(model.again) is nn.Dropout and ct.revert(model) == ([], {})


def test_convert_accepts_one_module_and_refuses_functions():
    module = nn.Dropout2d()
    assert ct.convert(module) == ([""], {}) and type(module) is ct.Dropout2d
    model = nn.Sequential(ct.Dropout(generator=cd.Generator(1)))
    assert ct.revert(model).kept == {"0": "Dropout has a generator; torch's Dropout has none"}
    for function in (ct.convert, ct.revert):
        with pytest.raises(TypeError, match="takes a torch.nn.Module, but got function"):
            function(F.dropout)


def test_convert_and_revert_drop_path():
    class DropPath(nn.Module):  # has the name, module and attributes of timm's class
        __module__ = "timm.layers.drop"

        def __init__(self, drop_prob, scale_by_keep):
            super().__init__()
            self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    class StochasticDepth(nn.Module):
        __module__ = "torchvision.ops.stochastic_depth"

        def __init__(self, p, mode):
            super().__init__()
            self.p, self.mode = p, mode

    class DropBlock2d(nn.Module):
        pass

    classes = DropPath, StochasticDepth, StochasticDepth, DropBlock2d
    model = nn.Sequential(
        DropPath(0.25, False),
        StochasticDepth(0.5, "row"),
        StochasticDepth(0.5, "batch"),
        DropBlock2d(),
    )
    x = torch.ones(40, 3)
    assert ct.convert(model).swapped == ["0", "1"]
    assert repr(model[:2]) == (
        "Sequential(\n  (0): DropPath(drop_prob=0.250)\n  (1): StochasticDepth(p=0.5, mode=row)\n)"
    )
    assert set(with_seed(model[0], x).unique().tolist()) == {0, 1}
    expected = with_seed(lambda x: ct.drop_path(x, 0.5), x)
    for module in (model[1], pickle.loads(pickle.dumps(ct.DropPath(0.5)))):
        assert torch.equal(with_seed(module, x), expected)
    assert model[1].eval()(x) is x
    again = ct.convert(model)
    assert again.swapped == [] and again.kept == {
        "2": f"{StochasticDepth.__qualname__} may differ from cdropout.torch.DropPath",
        "3": f"{DropBlock2d.__qualname__} may differ from cdropout.torch.DropPath",
    }
    model[0].generator = cd.Generator(1)
    assert ct.revert(model) == (["1"], {"0": "DropPath has a generator; timm's DropPath has none"})
    model[0].generator = None
    assert ct.revert(model).swapped == ["0"]
    assert tuple(map(type, model)) == classes
    assert ct.revert(model) == ([], {})


def test_drop_path_module():
    x = torch.ones(300, 2)
    module = ct.DropPath(0.25, generator=cd.Generator(3))
    y = module(x)
    assert ct.revert(module) == ([], {"": "DropPath was not converted; PyTorch has no such module"})
    assert torch.equal(y, ct.drop_path(x, 0.25, generator=cd.Generator(3)))
    assert set(ct.DropPath(0.25, False)(x).unique().tolist()) == {0, 1}
    assert ct.DropPath()(x) is x and ct.DropPath(0.5).eval()(x) is x
    with pytest.raises(ValueError, match="has to be between 0 and 1, but got 2"):
        ct.DropPath(2)
    graph = torch.fx.symbolic_trace(nn.Sequential(ct.DropPath(0.5))).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "output"]
    with pytest.raises(NotImplementedError, match="a module with a generator cannot be scripted"):
        torch.jit.script(ct.DropPath(0.5, generator=cd.Generator(3)))


def test_convert_of_modules_of_timm_and_torchvision():
    torchvision = import_or_skip("torchvision")
    layers = import_or_skip("timm").layers
    model = nn.Sequential(
        layers.DropPath(0.5),
        torchvision.ops.StochasticDepth(0.5, "row"),
        torchvision.ops.StochasticDepth(0.5, "batch"),
        layers.DropBlock2d(0.5),
        torchvision.ops.DropBlock2d(0.5, 3),
    )
    text, classes, x = repr(model), list(map(type, model)), torch.ones(40, 3, 8, 8)
    with torch.random.fork_rng():
        means = [model[i](x).flatten(1).std(1).max().item() for i in (0, 1)]
    swap = ct.convert(model)
    assert swap.swapped == ["0", "1"] and list(swap.kept) == ["2", "3", "4"]
    assert repr(model) == text and means == [0, 0]
    for module in model[:2]:
        assert torch.equal(with_seed(module, x), with_seed(ct.drop_path, x))
    assert ct.revert(model).swapped == ["0", "1"] and list(map(type, model)) == classes


class Functional(nn.Module):
    """A module that calls the function `dropout` and has an attribute with the same name."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout = dropout

    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class Nested(nn.Module):
    def forward(self, x):
        return [F.scaled_dot_product_attention(y, y, y, dropout_p=0.5) for y in x]


def attend(module, x):
    return F.dropout(x, 0.5, module.training)


class InFunction(nn.Module):
    """A module that calls dropout in a function, like those of Hugging Face's transformers."""

    def forward(self, x):
        function = attend
        return function(self, x)


class Indirect(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        return self.dropout(x)


@pytest.mark.parametrize(
    "module, function",
    [
        (Functional(0.1), "torch.nn.functional.dropout"),
        (Nested(), "scaled_dot_product_attention"),
        (InFunction(), "torch.nn.functional.dropout"),
    ],
)
def test_convert_reports_calls_of_functions(module, function):
    model = nn.Sequential(nn.Dropout(), module)
    with pytest.warns(UserWarning, match=rf"changes modules only, but .* calls .*{function}: use"):
        swap = ct.convert(model)
    assert swap.swapped == ["0"]
    assert list(swap.kept) == ["1"] and swap.kept["1"].endswith(f"{function}: use accelerate()")


def test_convert_reports_each_class_once():
    model = nn.Sequential(InFunction(), Nested(), InFunction())
    with pytest.warns(UserWarning, match="changes modules only") as found:
        assert list(ct.convert(model).kept) == ["0", "1", "2"]
    (message,) = (str(each.message) for each in found)
    assert message.count("InFunction calls") == message.count("Nested calls") == 1


def test_convert_of_a_model_without_dropout_warns():
    for model in (nn.Linear(2, 2), nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.1))):
        with pytest.warns(UserWarning, match=r"found no dropout module .* use accelerate\(\)"):
            assert ct.convert(model).swapped == []
    assert ct.convert(Indirect()) == (["dropout"], {})


# ---- quantization -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per:UserWarning")
@pytest.mark.filterwarnings("ignore:.*reduce_range:UserWarning")
def test_quantization_of_a_converted_model_equals_that_of_the_original():
    quantization = torch.ao.quantization

    def quantize(training, convert):
        torch.manual_seed(1)
        model = nn.Sequential(
            quantization.QuantStub(), nn.Linear(4, 4), nn.Dropout(), nn.AlphaDropout(),
            quantization.DeQuantStub(),
        )  # fmt: skip
        if convert:
            assert ct.convert(model).swapped == ["2", "3"]
        model.train(training)
        if training:
            model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
            prepared = quantization.prepare_qat(model)
        else:
            model.qconfig = quantization.get_default_qconfig("fbgemm")
            prepared = quantization.prepare(model)
        prepared(torch.linspace(-1, 1, 32).reshape(8, 4))
        return repr(prepared), repr(quantization.convert(prepared.eval()))

    assert quantize(True, True) == quantize(True, False)
    assert quantize(False, True)[1] == quantize(False, False)[1]


@pytest.mark.filterwarnings("ignore:torch.ao.quantization:DeprecationWarning")
def test_quantization_aware_training_refuses_a_generator():
    quantization = torch.ao.quantization
    model = nn.Sequential(nn.Linear(4, 4), ct.Dropout(generator=cd.Generator(1)))
    model.qconfig = quantization.QConfig(nn.Identity, nn.Identity)
    with pytest.raises(NotImplementedError, match=r"a Dropout with a generator.*generator = None$"):
        quantization.prepare_qat(model)
    model[1].generator = None
    assert type(quantization.prepare_qat(model)[1]) is nn.Dropout

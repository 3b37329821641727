"""Tests of always_on, which keeps dropout active in models in evaluation mode."""

import copy
import functools
import re
import types

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

F, nn = torch.nn.functional, torch.nn


class Block(nn.Module):
    """A block with batch norm and a dropout module."""

    def __init__(self, drop):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(20), drop

    def forward(self, x):
        return self.drop(self.norm(x) + 1)


def attention(x):
    layer = nn.MultiheadAttention(20, 2, dropout=0.5, batch_first=True)
    return layer, lambda: layer(x, x, x)[0]


def attention_without_weights(x):
    layer = nn.MultiheadAttention(20, 2, dropout=0.5, batch_first=True)
    return layer, lambda: layer(x, x, x, need_weights=False)[0]


def recurrent(kind):
    def make(x):
        layer = kind(20, 5, num_layers=2, dropout=0.5)
        return layer, lambda: layer(x)[0]

    return make


def encoder(padded):
    def make(x):
        layer = nn.TransformerEncoderLayer(20, 2, 30, dropout=0.5, batch_first=True)
        model = nn.TransformerEncoder(layer, 2)
        padding = torch.zeros(x.shape[:2], dtype=torch.bool) if padded else None
        return model, lambda: model(x, src_key_padding_mask=padding)

    return make


def decoder(x):
    model = nn.TransformerDecoderLayer(20, 2, 30, dropout=0.5, batch_first=True)
    return model, lambda: model(x, x)


def scripted(x):
    model = torch.jit.script(nn.Sequential(nn.Linear(20, 20), nn.Dropout(0.5)))
    return model, lambda: model(x)


def block(kind):
    def make(x):
        model = Block(kind(0.5))
        return model, lambda: model(x[0])

    return make


MODELS = {
    "Dropout": block(nn.Dropout),
    "Dropout of cdropout": block(ct.Dropout),
    "DropPath of cdropout": block(ct.DropPath),
    "AlphaDropout": block(nn.AlphaDropout),
    "attention": attention,
    "attention without weights": attention_without_weights,
    "LSTM": recurrent(nn.LSTM),
    "GRU": recurrent(nn.GRU),
    "RNN": recurrent(nn.RNN),
    "encoder": encoder(False),
    "encoder with padding": encoder(True),
    "decoder": decoder,
    "scripted": scripted,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("function", [ct.always_on, cd.always_on])
@pytest.mark.parametrize("name", MODELS)
def test_dropout_is_active_only_within_the_context(name, function):
    model, call = MODELS[name](torch.randn(3, 6, 20))
    model.eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = call()
        with function(model):
            first, second = call(), call()
            assert not torch.equal(first, second)
        assert torch.equal(call(), expected)
        with pytest.raises(KeyError), function({"model": [model]}):
            assert not torch.equal(call(), call())
            raise KeyError
        assert torch.equal(call(), expected)
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():  # the statistics of batch norm are unchanged
        assert torch.equal(value, state[key])


def test_modes_before_the_context_return():
    model = nn.Sequential(Block(nn.Dropout()), nn.Dropout(), nn.LSTM(2, 2))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with ct.always_on(model, model[1]):
        assert model[1].training and model[0].norm.training
        with ct.always_on([model]):
            model.eval()
        assert model[1].training
        model.eval()
    assert [module.training for module in model.modules()] == before


def test_samples_have_the_distribution_of_dropout():
    model = nn.Sequential(nn.Dropout(0.25)).eval()
    with ct.always_on(model):
        samples = model(torch.ones(40_000))
    assert abs((samples == 0).double().mean() - 0.25) < 5 * (0.1875 / 40_000) ** 0.5


@ct.always_on(nn.Dropout())
def decorated():
    return 5


def test_always_on_as_a_decorator():
    assert decorated() == 5


@pytest.mark.parametrize("function", [ct.always_on, cd.always_on])
@pytest.mark.parametrize("thing", [5, None, "model", nn.Dropout])
def test_other_objects_are_refused(function, thing):
    drop = nn.Dropout().eval()
    message = f"requires modules and containers of modules, but got {type(thing).__name__}$"
    with pytest.raises(TypeError, match=message), function(drop, [thing]):
        raise AssertionError("the body was run")
    assert not drop.training


@pytest.mark.parametrize("also", [("Block",), nn.Dropout, None])
def test_also_has_to_be_a_tuple_of_classes(also):
    message = f"^also has to be a tuple of classes, but got {re.escape(repr(also))}$"
    with pytest.raises(TypeError, match=message):
        ct.always_on(nn.Dropout(), also=also).__enter__()


# ---- functional dropout -------------------------------------------------------------------------


def helper(x, module):
    return x if not module.training else x.bernoulli_(0.5)


def drop_path_of_others(x, drop_prob=0.0, training=False):
    return x * x.new_empty(len(x)).bernoulli_(1 - drop_prob) if training else x


class Functional(nn.Module):
    dropout = 0.5

    def forward(self, x):
        return F.dropout(x, self.dropout, self.training)


class WithKeyword(nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout2d(x, p=0.5, training=self.training)


class InMethod(nn.Module):
    def forward(self, x):
        return self.attend(x)

    def attend(self, x):
        p = 0.5 if self.training else 0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


class InLambda(nn.Module):
    def forward(self, x):
        return [(lambda x: F.dropout(x, 0.5, self.training))(part) for part in x]


class InFunction(nn.Module):
    def forward(self, x):
        return helper(x, self)


class DropPath(nn.Module):
    def forward(self, x):
        return drop_path_of_others(x, 0.5, self.training)


class Inherited(Functional):
    def forward(self, x):
        return super().forward(x) + 1


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return F.alpha_dropout(x, training=self.training)


class InProperty(nn.Module):
    @property
    def rate(self):
        return 0.5 if self.training else 0

    def forward(self, x):
        return F.dropout(x, self.rate)


class InPartial(Functional):
    """A module whose forward method was replaced as Hugging Face's accelerate replaces it."""

    def __init__(self):
        super().__init__()
        replacement = functools.partial(lambda module, x: module.old_forward(x), self)
        self.old_forward = self.forward
        self.forward = functools.update_wrapper(replacement, self.old_forward)


class InFunctionWithoutModule(nn.Module):
    def forward(self, x):
        return function_without_module(x, self)


function_without_module = types.FunctionType(helper.__code__, globals())
function_without_module.__module__ = None

FUNCTIONAL = [
    *(Functional, WithKeyword, InMethod, InLambda, InFunction, DropPath, Inherited, Decorated),
    *(InProperty, InPartial, InFunctionWithoutModule),
]


@pytest.mark.parametrize("kind", FUNCTIONAL)
def test_functional_dropout_is_reported(kind):
    model = nn.Sequential(nn.Dropout(), nn.ModuleDict({"a": kind()})).eval()
    message = rf"inactive.* reads self.training: {kind.__qualname__} \('1.a'\)\. .* as also=$"
    with pytest.warns(UserWarning, match=message) as caught, ct.always_on(model):
        assert not model[1]["a"].training
    assert len(caught) == 1 and caught[0].filename == __file__
    with ct.always_on(model, also=(kind,)):
        assert model[1]["a"].training and not model[1].training
    assert not model[1]["a"].training


def test_warning_lists_each_class_once():
    model = nn.Sequential(*[Functional() for _ in range(7)], DropPath()).eval()
    match = r"Functional \('0', '1', '2', '3', '4', ...\); DropPath \('7'\)"
    with pytest.warns(UserWarning, match=match) as caught, cd.always_on(model):
        pass
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"Functional \(the model itself\)"):
        ct.always_on(Functional()).__enter__()


class AlwaysActive(nn.Module):
    def forward(self, x):
        return F.dropout(x)


class WithModule(nn.Module):
    """A module that calls a dropout module, and tests `training` for another purpose."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        x = self.dropout(x)
        return x if self.training else x.relu()


@pytest.mark.parametrize("kind", [AlwaysActive, WithModule, nn.RReLU])
def test_other_modules_are_not_reported(kind):
    with ct.always_on(kind().eval()):  # pytest turns a warning into an error
        pass

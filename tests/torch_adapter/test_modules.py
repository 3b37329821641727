"""Tests of the modules, and of convert and revert."""

import copy
import pickle

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import MODULES

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


def test_convert_of_one_module_and_of_other_objects():
    module = nn.Dropout2d()
    assert ct.convert(module) == ([""], {}) and type(module) is ct.Dropout2d
    model = nn.Sequential(ct.Dropout(generator=cd.Generator(1)))
    assert ct.revert(model).kept == {"0": "Dropout has a generator; PyTorch's modules have none"}
    for function in (ct.convert, ct.revert):
        with pytest.raises(TypeError, match="takes a torch.nn.Module, but got function"):
            function(F.dropout)

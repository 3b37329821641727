"""Tests of dropout under modes that replace functions of PyTorch, and of imports under modes."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, unix_only
from ..helpers.subprocess_runner import run
from ..helpers.torch_calls import FUNCTIONS, NothingDrawn

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")


class ReplaceFunction(torch.overrides.TorchFunctionMode):
    """Mode that replaces one function of PyTorch."""

    def __init__(self, name, replacement):
        super().__init__()
        self.name, self.replacement = name, replacement

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == self.name:
            return self.replacement(*args)
        return function(*args, **(kwargs or {}))


class Tagged(torch.Tensor):
    pass


WRONG_RESULTS = {
    "another shape": lambda x, *_: torch.empty(3),
    "reversed axes": lambda x, *_: torch.empty(x.shape[::-1]),
    "fewer dimensions": lambda x, *_: torch.empty(()),
    "another type": lambda x, *_: torch.empty(x.shape, dtype=torch.int8),
    "another float": lambda x, *_: torch.empty(x.shape, dtype=torch.bfloat16),
    "another device": lambda x, *_: torch.empty(x.shape, device="meta"),
    "a subclass": lambda x, *_: torch.empty(x.shape, dtype=x.dtype).as_subclass(Tagged),
    "not a tensor": lambda x, *_: None,
    "x": lambda x, *_: x,
    "one element": lambda x, *_: torch.empty(1, dtype=x.dtype).expand(x.shape),
    "sparse": lambda x, *_: torch.empty(x.shape, dtype=x.dtype).to_sparse(),
}


@pytest.mark.parametrize("wrong", WRONG_RESULTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_result_of_empty_like_raises(name, wrong):
    for x in (torch.ones(20, 30, 4, 5), torch.ones(20, 30, 4, 5).permute(3, 2, 1, 0)):
        for grad in (False, True):
            generator = cd.Generator(1)
            with (
                NothingDrawn(generator),
                ReplaceFunction("empty_like", WRONG_RESULTS[wrong]),
                pytest.raises(
                    RuntimeError, match=r"torch.empty_like returned an? .* TorchFunctionM"
                ),
            ):
                FUNCTIONS[name](x.detach().requires_grad_(grad), 0.5, generator=generator)
            assert torch.equal(x, torch.ones_like(x))


def test_memory_order_of_empty_like_does_not_change_the_result():
    x = torch.ones(20, 30)
    with ReplaceFunction("empty_like", lambda x, *_: torch.empty(30, 20).t()):
        y = ct.dropout(x, 0.5, generator=cd.Generator(1))
    assert torch.equal(y, ct.dropout(x, 0.5, generator=cd.Generator(1)))


@pytest.mark.parametrize("wrong", [name for name in WRONG_RESULTS if name != "x"])
def test_wrong_result_of_to_raises(wrong):
    half = torch.ones(20, 30, dtype=torch.float16)
    mode = ReplaceFunction("to", WRONG_RESULTS[wrong])
    with NothingDrawn(), mode, pytest.raises(RuntimeError, match=r"torch.Tensor.to returned an? "):
        ct.alpha_dropout(half, 0.5, True)


@pytest.mark.parametrize(
    "wrong", [name for name in WRONG_RESULTS if name not in ("x", "not a tensor")]
)
def test_wrong_result_of_empty_raises(wrong, monkeypatch):
    x, result = torch.ones(20, 30, dtype=torch.float16), WRONG_RESULTS[wrong](torch.ones(20, 30))
    monkeypatch.setattr(torch, "empty", lambda *_, **options: result)
    with ct.accelerate(), NothingDrawn():
        with pytest.raises(RuntimeError, match=r"torch.empty returned an? "):
            torch.native_dropout(x, 0.5, True)


REPLACEMENTS = {
    "empty": lambda *_: torch.zeros((), dtype=torch.int8),
    "data_ptr": lambda *_: 8,
}


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_mode_does_not_affect_the_seed_buffer(name):
    def draw():
        with ReplaceFunction(name, REPLACEMENTS[name]):
            return ct.dropout(torch.ones(99), 0.5)

    with ThreadPoolExecutor(1) as pool:  # a new thread, because each thread has its own seed buffer
        torch.manual_seed(3)
        y = pool.submit(draw).result()
    torch.manual_seed(3)
    assert torch.equal(y, ct.dropout(torch.ones(99), 0.5))


IMPORTS = {
    "fake": "with torch._subclasses.FakeTensorMode(): import cdropout.torch as ct",
    "grad": "def f(x):\n    import cdropout.torch\n    return x.sum()\n"
    "torch.func.grad(f)(torch.ones(3))\nimport cdropout.torch as ct",
}


IMPORT_EACH = f"""
import os
import torch

for statements in {[*IMPORTS.values()]!r}:
    child = os.fork()
    if child == 0:
        exec(statements)
        y = ct.dropout(torch.ones(99), 0.5)
        assert set(y.tolist()) == {{0, 2}}
        os._exit(0)
    print(os.waitpid(child, 0)[1], end=" ")
"""


@unix_only
def test_import_under_a_mode_or_a_transform():
    assert run(IMPORT_EACH) == (0, "0 0", "")

"""cdropout.torch where a mode of PyTorch answers for the functions that allocate memory."""

from concurrent.futures import ThreadPoolExecutor

import pytest

import cdropout as cd

from ..helpers.requirements import unix_only
from ..helpers.subprocess_runner import run
from ..helpers.torch_calls import FUNCTIONS, Untouched

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cdropout.torch")


class Answer(torch.overrides.TorchFunctionMode):
    """Answers one function of PyTorch in its own way."""

    def __init__(self, name, answer):
        super().__init__()
        self.name, self.answer = name, answer

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == self.name:
            return self.answer(*args)
        return function(*args, **(kwargs or {}))


class Tagged(torch.Tensor):
    pass


ANSWERS = {
    "another shape": lambda x, *_: torch.empty(3),
    "the axes the other way round": lambda x, *_: torch.empty(x.shape[::-1]),
    "fewer dimensions": lambda x, *_: torch.empty(()),
    "another type": lambda x, *_: torch.empty(x.shape, dtype=torch.int8),
    "another float": lambda x, *_: torch.empty(x.shape, dtype=torch.bfloat16),
    "another device": lambda x, *_: torch.empty(x.shape, device="meta"),
    "a subclass": lambda x, *_: torch.empty(x.shape, dtype=x.dtype).as_subclass(Tagged),
    "no tensor": lambda x, *_: None,
    "x": lambda x, *_: x,
    "one element": lambda x, *_: torch.empty(1, dtype=x.dtype).expand(x.shape),
    "sparse": lambda x, *_: torch.empty(x.shape, dtype=x.dtype).to_sparse(),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mode_that_answers_for_empty_like(name, answer):
    for x in (torch.ones(20, 30, 4, 5), torch.ones(20, 30, 4, 5).permute(3, 2, 1, 0)):
        for grad in (False, True):
            generator = cd.Generator(1)
            with (
                Untouched(generator),
                Answer("empty_like", ANSWERS[answer]),
                pytest.raises(
                    RuntimeError, match=r"torch.empty_like returned an? .* TorchFunctionM"
                ),
            ):
                FUNCTIONS[name](x.detach().requires_grad_(grad), 0.5, generator=generator)
            assert torch.equal(x, torch.ones_like(x))


def test_a_mode_may_answer_with_another_memory_order():
    x = torch.ones(20, 30)
    with Answer("empty_like", lambda x, *_: torch.empty(30, 20).t()):
        y = ct.dropout(x, 0.5, generator=cd.Generator(1))
    assert torch.equal(y, ct.dropout(x, 0.5, generator=cd.Generator(1)))


@pytest.mark.parametrize("answer", [answer for answer in ANSWERS if answer != "x"])
def test_a_mode_that_answers_for_other_functions(answer):
    half = torch.ones(20, 30, dtype=torch.float16)
    mode = Answer("to", ANSWERS[answer])
    with Untouched(), mode, pytest.raises(RuntimeError, match=r"torch.Tensor.to returned an? "):
        ct.alpha_dropout(half, 0.5, True)


@pytest.mark.parametrize(
    "answer", [answer for answer in ANSWERS if answer not in ("x", "no tensor")]
)
def test_what_is_to_hold_the_mask_is_checked_too(answer, monkeypatch):
    x, wrong = torch.ones(20, 30, dtype=torch.float16), ANSWERS[answer](torch.ones(20, 30))
    monkeypatch.setattr(torch, "empty", lambda *_, **options: wrong)
    with ct.accelerate(), Untouched():
        with pytest.raises(RuntimeError, match=r"torch.empty returned an? "):
            torch.native_dropout(x, 0.5, True)


SEEDS = {
    "empty": lambda *_: torch.zeros((), dtype=torch.int8),
    "data_ptr": lambda *_: 8,
}


@pytest.mark.parametrize("name", SEEDS)
def test_a_mode_does_not_reach_the_tensor_of_seeds(name):
    def draw():
        with Answer(name, SEEDS[name]):
            return ct.dropout(torch.ones(99), 0.5)

    with ThreadPoolExecutor(1) as pool:  # each thread has a tensor of seeds of its own
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
def test_it_is_imported_where_a_mode_or_transform_is_active():
    assert run(IMPORT_EACH) == (0, "0 0", "")

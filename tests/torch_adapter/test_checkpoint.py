"""cdropout.torch where a forward pass is repeated or watched: checkpoints, dispatch modes."""

import functools

import pytest

import cdropout as cd

from ..helpers.requirements import unix_only
from ..helpers.subprocess_runner import run_with_torch
from ..helpers.torch_calls import CALLS, GENERATORS

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cdropout.torch")
F, nn = torch.nn.functional, torch.nn
checkpoint = torch.utils.checkpoint.checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

FUNCTIONS = {
    **{name: lambda x, rng, call=call: call(x, generator=rng) for name, call in CALLS.items()},
    "module": lambda x, rng: ct.Dropout(0.5, generator=rng)(x),
}
MATCH = (
    r"generator= cannot be drawn from during a backward pass, where a checkpoint needs the mask "
    r"of its first run: use checkpoint\(..., use_reentrant=False, "
    r"context_fn=cdropout.torch.checkpoint_context\(generator\)\); otherwise draw from PyTorch's "
    r"default generator"
)


def state_of(generator):
    return (
        generator.state if isinstance(generator, cd.Generator) else generator.get_state().tolist()
    )


def numbers():
    return torch.linspace(-1, 1, 4 * 5 * 6 * 7).reshape(4, 5, 6, 7).requires_grad_()


def block(function, generator):
    """The function between others whose backward needs what was computed."""
    return lambda x: function(x.sin(), generator).exp().square()


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_generator_in_a_plain_checkpoint_is_refused(name, kind, reentrant):
    generator, x = GENERATORS[kind](), numbers()
    y = checkpoint(block(FUNCTIONS[name], generator), x, use_reentrant=reentrant)
    state = state_of(generator)
    with pytest.raises(RuntimeError, match=MATCH):
        y.sum().backward()
    assert state_of(generator) == state and x.grad is None


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_checkpoint_context_replays_the_mask(name, kind):
    generator, x = GENERATORS[kind](), numbers()
    function = block(FUNCTIONS[name], generator)
    expected = function(x)
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    generator = GENERATORS[kind]()
    function = block(FUNCTIONS[name], generator)
    context = ct.checkpoint_context(generator)
    y = checkpoint(function, x, use_reentrant=False, context_fn=context)
    other = checkpoint(function, x, use_reentrant=False, context_fn=context)  # draws the next mask
    state = state_of(generator)
    assert torch.equal(y, expected) and not torch.equal(other, y)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], gradient)
        assert state_of(generator) == state
    (gx,) = torch.autograd.grad(other.sum(), x)
    assert not torch.equal(gx, gradient)


RESTORED = """
import os
import warnings
import torch
from torch.utils.checkpoint import checkpoint
import cdropout as cd
import cdropout.torch as ct

warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # since CPython 3.12

def replay(generator, x):
    context = ct.checkpoint_context(generator)
    drop = lambda x: ct.dropout(x, 0.5, generator=generator)
    checkpoint(drop, x, use_reentrant=False, context_fn=context).sum().backward()

def fail(generator, x):
    try:
        ct.bias_dropout_add(x, x, torch.ones(5), generator=generator)
    except RuntimeError as error:
        assert "must match the size" in str(error)

for restore in replay, fail:
    generator = cd.Generator()
    restore(generator, torch.ones(4, requires_grad=True))
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, str(generator.seed).encode())
        os._exit(0)
    os.wait()
    os.close(theirs)
    with open(ours) as pipe:
        print(int(pipe.read()) != generator.seed, end=" ")
"""


@unix_only
def test_a_restored_generator_without_a_seed_still_has_none():
    """Check that a forked child seeds it anew, in a process without JAX, which warns of forks."""
    assert run_with_torch(RESTORED) == (0, "True True", "")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("default", ["None", "default_generator"])
def test_a_checkpoint_replays_the_default_generator(default, name, reentrant):
    generator, x = None if default == "None" else torch.default_generator, numbers()
    function = block(FUNCTIONS[name], generator)
    results = []
    for call in (function, lambda x: checkpoint(function, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        y = call(x)
        torch.rand(7)  # the generator goes on
        results.append((y, *torch.autograd.grad(y.sum(), x)) if not reentrant else (y, grad(y, x)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


def grad(y, x):
    x.grad = None
    y.sum().backward()
    return x.grad


POLICIES = {
    "recompute": torch.utils.checkpoint.CheckpointPolicy.PREFER_RECOMPUTE,
    "save": torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE,
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [None, *GENERATORS])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_selective_checkpoint_replays_the_mask(name, kind, policy):
    def decide(context, op, *args, **kwargs):
        ours = op in (torch.ops.cdropout.dropout.default, torch.ops.aten.sin.default)
        return POLICIES[policy if ours else "recompute"]

    selective = functools.partial(
        torch.utils.checkpoint.create_selective_checkpoint_contexts, decide
    )
    x, results = numbers(), []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        generator = kind and GENERATORS[kind]()
        run = block(FUNCTIONS[name], generator)
        if checkpointed:
            context = ct.checkpoint_context(generator, context_fn=selective) if kind else selective
            run = functools.partial(checkpoint, run, use_reentrant=False, context_fn=context)
        y = run(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_contexts_nest():
    def run(checkpointed):
        one, other = (make() for make in GENERATORS.values())

        def within(function, x, *generators):
            if not checkpointed:
                return function(x)
            context = ct.checkpoint_context(*generators)
            return checkpoint(function, x, use_reentrant=False, context_fn=context)

        def inner(x):
            return ct.dropout(ct.dropout(x.exp(), 0.5, generator=other).sin(), 0.5).exp()

        def outer(x):
            y = ct.dropout(x.sin(), 0.5, generator=one).exp()
            return within(inner, y, other).square()

        torch.manual_seed(3)
        x = numbers()
        y = within(outer, x, one, other)
        return y, *torch.autograd.grad(y.sum(), x)

    for expected, found in zip(run(False), run(True), strict=True):
        assert torch.equal(found, expected)


def test_a_context_allows_its_own_generators_alone_and_ends_with_the_replay():
    one, other, x = cd.Generator(1), cd.Generator(1), numbers()
    y = checkpoint(
        block(
            lambda x, rng: ct.dropout(ct.dropout(x, 0.5, generator=one), 0.5, generator=rng), other
        ),
        x,
        use_reentrant=False,
        context_fn=ct.checkpoint_context(one),
    )
    state = one.state
    with pytest.raises(RuntimeError, match=MATCH):
        y.sum().backward()
    assert one.state == state
    x.register_hook(lambda g: ct.dropout(g, 0.5, generator=one))
    with pytest.raises(RuntimeError, match=MATCH):
        x.sum().backward()


def test_hooks_draw_from_the_default_generator():
    x = torch.ones(100, requires_grad=True)
    x.register_hook(lambda g: ct.dropout(g, 0.5))
    torch.manual_seed(3)
    x.sum().backward()
    torch.manual_seed(3)
    assert torch.equal(x.grad, ct.dropout(torch.ones(100), 0.5))


def test_p_1_draws_nothing_in_a_backward_pass():
    x = torch.ones(3, requires_grad=True)
    x.register_hook(lambda g: ct.dropout(g, 1.0, generator=cd.Generator(1)))
    x.sum().backward()
    assert x.grad.tolist() == [0, 0, 0]


def test_a_context_takes_generators():
    with pytest.raises(TypeError, match="takes torch.Generators and cdropout.Generators, but got"):
        ct.checkpoint_context(None)


# ---- dispatch modes -----------------------------------------------------------------------------

REROUTED = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout1d": lambda x: F.dropout1d(x[0], 0.3),
    "dropout2d": lambda x: F.dropout2d(x, 0.3),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.3, True),
    "native_dropout": lambda x: torch.native_dropout(x, 0.3, True)[0],
    "dropout in place": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "feature dropout in place": lambda x: F.dropout2d(x * 1, 0.3, inplace=True),
    "alpha_dropout in place": lambda x: F.alpha_dropout(x * 1, 0.3, True, True),
    "feature_alpha_dropout in place": lambda x: F.feature_alpha_dropout(x * 1, 0.3, True, True),
}


class Watching(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def flops():
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


@pytest.mark.parametrize("mode", [Watching, flops])
@pytest.mark.parametrize("grad", ["grad", "no_grad", "inference_mode"])
@pytest.mark.parametrize("name", REROUTED)
def test_a_dispatch_mode_never_changes_a_rerouted_mask(name, grad, mode):
    function, results = REROUTED[name], []
    with torch.enable_grad() if grad == "grad" else getattr(torch, grad)(), ct.accelerate():
        x = torch.linspace(-1, 1, 2520).reshape(4, 5, 6, 21).requires_grad_(grad == "grad")
        for watched in (False, True):
            torch.manual_seed(3)
            if watched:
                with mode():
                    y = function(x)
            else:
                y = function(x)
            gradients = torch.autograd.grad(y.sum(), x) if grad == "grad" else ()
            results.append((y, *gradients))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", REROUTED)
def test_a_selective_checkpoint_of_a_rerouted_function_replays_the_mask(name):
    selective = functools.partial(
        torch.utils.checkpoint.create_selective_checkpoint_contexts, [torch.ops.aten.sin.default]
    )
    x, results = numbers(), []
    with ct.accelerate():
        for run in (
            block(lambda x, _: REROUTED[name](x), None),
            functools.partial(
                checkpoint,
                block(lambda x, _: REROUTED[name](x), None),
                use_reentrant=False,
                context_fn=selective,
            ),
        ):
            torch.manual_seed(3)
            y = run(x)
            torch.rand(7)  # the generator goes on
            results.append((y, *torch.autograd.grad(y.sum(), x)))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)

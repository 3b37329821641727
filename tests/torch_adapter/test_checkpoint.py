"""Tests of checkpoints, and of accelerated functions under dispatch modes."""

import contextlib
import functools

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, unix_only
from ..helpers.subprocess_runner import run_with_torch
from ..helpers.torch_calls import CALLS, GENERATORS, assert_equal, ramp, with_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")
F, nn = torch.nn.functional, torch.nn

from cdropout.torch import overrides  # noqa: E402

checkpoint = torch.utils.checkpoint.checkpoint

FUNCTIONS = {
    **{name: lambda x, rng, call=call: call(x, generator=rng) for name, call in CALLS.items()},
    "module": lambda x, rng: ct.Dropout(0.5, generator=rng)(x),
}
MESSAGE = (
    r"generator= cannot be drawn from during a backward pass, where a checkpoint needs the mask "
    r"of its first run: use checkpoint\(..., use_reentrant=False, "
    r"context_fn=cdropout.torch.checkpoint_context\(generator\)\); otherwise draw from PyTorch's "
    r"default generator"
)


def state_of(generator):
    return (
        generator.state if isinstance(generator, cd.Generator) else generator.get_state().tolist()
    )


def leaf():
    return ramp(4, 5, 6, 7, dtype=torch.float32).requires_grad_()


def block(function, generator):
    """Return a function of x that calls `function` between operations that save tensors."""
    return lambda x: function(x.sin(), generator).exp().square()


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_generator_without_checkpoint_context_raises(name, kind, reentrant):
    generator, x = GENERATORS[kind](), leaf()
    y = checkpoint(block(FUNCTIONS[name], generator), x, use_reentrant=reentrant)
    state = state_of(generator)
    with pytest.raises(RuntimeError, match=MESSAGE):
        y.sum().backward()
    assert state_of(generator) == state and x.grad is None


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_checkpoint_context_repeats_the_mask(name, kind):
    generator, x = GENERATORS[kind](), leaf()
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


UNSEEDED = """
import os
import warnings
import torch
from torch.utils.checkpoint import checkpoint
import cdropout as cd
import cdropout.torch as ct

# CPython 3.12 and later versions warn if a process with several threads forks.
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)

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
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.write(write_end, str(generator.seed).encode())
        os._exit(0)
    os.wait()
    os.close(write_end)
    with open(read_end) as pipe:
        print(int(pipe.read()) != generator.seed, end=" ")
"""


@unix_only
def test_unseeded_generator_remains_unseeded_when_its_state_is_restored():
    """Check that an unseeded generator has another seed in a forked child.

    JAX warns about forks. Therefore, the script runs in a process that does not import JAX.
    """
    assert run_with_torch(UNSEEDED) == (0, "True True", "")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("default", ["None", "default_generator"])
def test_checkpoint_with_the_default_generator_repeats_the_mask(default, name, reentrant):
    generator, x = None if default == "None" else torch.default_generator, leaf()
    function = block(FUNCTIONS[name], generator)
    results = []
    for call in (function, lambda x: checkpoint(function, x, use_reentrant=reentrant)):
        y = with_seed(call, x)
        torch.rand(7)  # changes the state of the generator
        results.append((y, *torch.autograd.grad(y.sum(), x)) if not reentrant else (y, grad(y, x)))
    assert_equal(*results)


def grad(y, x):
    x.grad = None
    y.sum().backward()
    return x.grad


POLICIES = {
    "recompute": torch.utils.checkpoint.CheckpointPolicy.PREFER_RECOMPUTE,
    "save": torch.utils.checkpoint.CheckpointPolicy.MUST_SAVE,
}


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("backward", ["within", "outside"])
@pytest.mark.parametrize("forward", ["within", "outside"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_repeated_in_the_state_of_their_forward_pass(
    reentrant, forward, backward, compiles
):
    def function(x):
        return F.dropout(x.sin()).exp()

    function = torch.compile(function, backend="aot_eager") if compiles else function
    x = torch.ones(100, requires_grad=True)
    contexts = {"within": ct.accelerate(), "outside": contextlib.nullcontext()}
    with ct.accelerate():  # registers the kernels
        pass
    results = []
    for call in (function, lambda x: checkpoint(function, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        with contexts[forward]:
            y = call(x)
        with contexts[backward]:
            x.grad = None
            y.sum().backward()  # autograd.grad does not support reentrant checkpoints
        assert torch.equal(x.grad != 0, y != 1)
        results.append((y, x.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    assert not overrides._switch.repeated and not overrides._switch.active


@pytest.mark.parametrize("backward", ["within", "outside"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_functions_that_use_accelerate(reentrant, backward):
    def function(x):
        y = F.dropout(x.sin()).exp()
        with ct.accelerate():
            return F.dropout(y.sin()) + F.dropout(x.cos())

    x = torch.ones(100, requires_grad=True)
    gradients = []
    for call in (function, lambda x: checkpoint(function, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        y = call(x)
        x.grad = None
        with ct.accelerate() if backward == "within" else contextlib.nullcontext():
            y.sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert not overrides._switch.repeated and not overrides._switch.active


def test_an_error_in_a_repeated_forward_pass_restores_the_state():
    calls = []

    def function(x):
        calls.append(overrides._switch.active)
        if len(calls) == 2:
            raise KeyError("broken")
        return F.dropout(x.sin()).exp()

    x = torch.ones(100, requires_grad=True)
    with ct.accelerate():
        y = checkpoint(function, x, use_reentrant=False)
    with pytest.raises(KeyError, match="broken"):
        y.sum().backward()
    assert calls == [True, True] and not overrides._switch.active


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [None, *GENERATORS])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_selective_checkpoint_repeats_the_mask(name, kind, policy):
    def decide(context, op, *args, **kwargs):
        chosen = op in (torch.ops.cdropout.dropout.default, torch.ops.aten.sin.default)
        return POLICIES[policy if chosen else "recompute"]

    selective = functools.partial(
        torch.utils.checkpoint.create_selective_checkpoint_contexts, decide
    )
    x, results = leaf(), []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        generator = kind and GENERATORS[kind]()
        run = block(FUNCTIONS[name], generator)
        if checkpointed:
            context = ct.checkpoint_context(generator, context_fn=selective) if kind else selective
            run = functools.partial(checkpoint, run, use_reentrant=False, context_fn=context)
        y = run(x)
        results.append((y, *torch.autograd.grad(y.sum(), x)))
    assert_equal(*results)


def test_checkpoint_contexts_can_be_nested():
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
        x = leaf()
        y = within(outer, x, one, other)
        return y, *torch.autograd.grad(y.sum(), x)

    assert_equal(run(True), run(False))


def test_generator_outside_the_checkpoint_context_raises():
    one, other, x = cd.Generator(1), cd.Generator(1), leaf()
    y = checkpoint(
        block(
            lambda x, rng: ct.dropout(ct.dropout(x, 0.5, generator=one), 0.5, generator=rng), other
        ),
        x,
        use_reentrant=False,
        context_fn=ct.checkpoint_context(one),
    )
    state = one.state
    with pytest.raises(RuntimeError, match=MESSAGE):
        y.sum().backward()
    assert one.state == state
    x.register_hook(lambda g: ct.dropout(g, 0.5, generator=one))
    with pytest.raises(RuntimeError, match=MESSAGE):
        x.sum().backward()


def test_dropout_in_a_gradient_hook_draws_from_the_default_generator():
    x = torch.ones(100, requires_grad=True)
    x.register_hook(lambda g: ct.dropout(g, 0.5))
    torch.manual_seed(3)
    x.sum().backward()
    torch.manual_seed(3)
    assert torch.equal(x.grad, ct.dropout(torch.ones(100), 0.5))


def test_generator_in_a_gradient_hook_is_allowed_at_p_1():
    x = torch.ones(3, requires_grad=True)
    x.register_hook(lambda g: ct.dropout(g, 1.0, generator=cd.Generator(1)))
    x.sum().backward()
    assert x.grad.tolist() == [0, 0, 0]


def test_checkpoint_context_of_none_raises_type_error():
    with pytest.raises(TypeError, match="takes torch.Generators and cdropout.Generators, but got"):
        ct.checkpoint_context(None)


# ---- dispatch modes -----------------------------------------------------------------------------

ACCELERATED = {
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


class PassThroughMode(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def flop_counter():
    from torch.utils.flop_counter import FlopCounterMode

    return FlopCounterMode(display=False)


@pytest.mark.parametrize("mode", [PassThroughMode, flop_counter])
@pytest.mark.parametrize("grad", ["grad", "no_grad", "inference_mode"])
@pytest.mark.parametrize("name", ACCELERATED)
def test_dispatch_mode_does_not_change_the_accelerated_mask(name, grad, mode):
    function, results = ACCELERATED[name], []
    with torch.enable_grad() if grad == "grad" else getattr(torch, grad)(), ct.accelerate():
        x = torch.linspace(-1, 1, 2520).reshape(4, 5, 6, 21).requires_grad_(grad == "grad")
        for context in (contextlib.nullcontext, mode):
            with context():
                y = with_seed(function, x)
            gradients = torch.autograd.grad(y.sum(), x) if grad == "grad" else ()
            results.append((y, *gradients))
    assert_equal(*results)


@pytest.mark.parametrize("name", ACCELERATED)
def test_selective_checkpoint_of_accelerated_function_repeats_the_mask(name):
    selective = functools.partial(
        torch.utils.checkpoint.create_selective_checkpoint_contexts, [torch.ops.aten.sin.default]
    )
    x, results = leaf(), []
    function = block(lambda x, _: ACCELERATED[name](x), None)
    with ct.accelerate():
        for run in (
            function,
            lambda x: checkpoint(function, x, use_reentrant=False, context_fn=selective),
        ):
            y = with_seed(run, x)
            torch.rand(7)  # changes the state of the generator
            results.append((y, *torch.autograd.grad(y.sum(), x)))
    assert_equal(*results)

"""Tests of errors: a call that fails leaves tensors and generators unchanged."""

import signal

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, needs_memory_limit, unix_only
from ..helpers.subprocess_runner import run
from ..helpers.torch_calls import (
    DTYPES,
    FUNCTIONS,
    GENERATORS,
    OPERATORS,
    NothingDrawn,
    errors_from_graphs,
)

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")
F = torch.nn.functional

GENERATORS = {"default": lambda: None, **GENERATORS}


# ---- memory -------------------------------------------------------------------------------------

NO_MEMORY = "allocate memory|Storage size calculation overflowed|out of memory"


def huge(dtype=torch.float32):
    return torch.ones(1, dtype=dtype).expand(1 << 12, 1 << 12, 1 << 12, 1 << 12)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_failed_allocation_leaves_the_generator_unchanged(name, kind):
    generator = GENERATORS[kind]()
    for x in (huge(), huge(torch.bfloat16), huge().requires_grad_()):
        with NothingDrawn(generator), pytest.raises(RuntimeError, match=NO_MEMORY):
            FUNCTIONS[name](x, 0.5, generator=generator)
        with (
            NothingDrawn(generator),
            torch.autograd.forward_ad.dual_level(),
            pytest.raises(RuntimeError, match=NO_MEMORY),
        ):
            FUNCTIONS[name](x, 0.5, generator=generator)


@pytest.mark.parametrize("name", [name for name in OPERATORS if not name.endswith("_")])
def test_failed_allocation_in_accelerated_operator_leaves_the_generator_unchanged(name):
    for x in (huge(), huge().requires_grad_()):
        with ct.accelerate(), NothingDrawn(), pytest.raises(RuntimeError, match=NO_MEMORY):
            OPERATORS[name](x, 0.5)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_failed_allocation_under_vmap_leaves_the_generator_unchanged(randomness, kind):
    generator = GENERATORS[kind]()
    drop = torch.vmap(lambda x: ct.dropout(x, 0.5, generator=generator), randomness=randomness)
    with NothingDrawn(generator), pytest.raises(RuntimeError, match=NO_MEMORY):
        drop(huge().flatten(2)[:3])


MEMORY_LIMIT = """
import functools
import resource
import torch
import cdropout as cd
import cdropout.torch as ct
torch.set_num_threads(1)
n = 1 << 22
x, half = torch.ones(n), torch.ones(n // 2, 8, dtype=torch.bfloat16)
generator_1, generator_2 = cd.Generator(3), torch.Generator().manual_seed(3)
functions = (
    lambda generator: ct.dropout(x, generator=generator),
    lambda generator: ct.alpha_dropout(x, 0.5, True, generator=generator),
    # The next call converts half to float32, which allocates memory.
    lambda generator: ct.alpha_dropout(half, 0.5, True, True, generator=generator),
    lambda generator: ct.bias_dropout_add(x[:1], x[:1], x, generator=generator),
    lambda generator: ct.bias_dropout_add(x[:n // 2], x[:1], x[::2], generator=generator),
)
generators = None, generator_1, generator_2
calls = [functools.partial(f, generator) for generator in generators for f in functions]
def native():
    with ct.accelerate():
        torch.native_dropout(x, 0.5, True)
# The first calls import modules. Make these calls before the memory is limited.
ct.dropout(x[:99], generator=generator_1), native(), calls[0]()
calls.append(native)
def states():
    return [torch.get_rng_state(), generator_2.get_state(), torch.tensor(generator_1.calls)]
with open("/proc/self/statm") as status:
    used = int(status.read().split()[0]) * resource.getpagesize()
maximum = resource.getrlimit(resource.RLIMIT_AS)[1]
for free in (4 << 20, 18 << 20):  # bytes; an output of the size of x needs 16 MiB
    resource.setrlimit(resource.RLIMIT_AS, (used + free, maximum))
    for call in calls:
        before = states()
        try:
            call()
        except (RuntimeError, MemoryError) as error:
            assert "memory" in str(error), error
            unchanged = all(torch.equal(*pair) for pair in zip(before, states()))
            assert unchanged, (calls.index(call), free)
            failed = calls.index(call)
        else:
            assert free > 4 << 20, calls.index(call)
    resource.setrlimit(resource.RLIMIT_AS, (maximum, maximum))
    assert free > 4 << 20 or half.min() == 1
assert failed == len(calls) - 1, "the second output of native_dropout exceeds the memory"
print("done")
"""


@needs_memory_limit
def test_failed_allocation_at_a_memory_limit_leaves_the_generators_unchanged():
    status, out, errors = run(MEMORY_LIMIT, MALLOC_MMAP_THRESHOLD_="65536")
    assert (status, out) == (0, "done"), errors


# ---- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GENERATORS)
def test_invalid_residual_leaves_the_generator_unchanged(kind):
    generator = GENERATORS[kind]()
    x = torch.ones(3, 4)
    for residual, error in (
        (torch.ones(5), RuntimeError),
        (torch.ones(2, 4), RuntimeError),
        (torch.ones(3, 4, device="meta"), RuntimeError),
        ("one", TypeError),
        (huge(), RuntimeError),
    ):
        for y in (x, x.clone().requires_grad_()):
            with NothingDrawn(generator), pytest.raises(error):
                ct.bias_dropout_add(y, y[0], residual, 0.5, generator=generator)
    bias = ct.bias_dropout_add(x, x, torch.ones(2, 1, 1).double(), 0.5, generator=generator)
    assert bias.shape == (2, 3, 4) and bias.dtype == torch.float64


def with_fake_tensors(function):
    with torch._subclasses.FakeTensorMode():
        return function(torch.ones(4))


def with_make_fx(mode):
    make_fx = torch.fx.experimental.proxy_tensor.make_fx
    return lambda function: make_fx(function, tracing_mode=mode)(torch.ones(4))


TRANSFORMS = {  # each value calls the function f with a tensor of 4 elements
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(torch.ones(4)),
    "vjp": lambda f: torch.func.vjp(f, torch.ones(4)),
    "jvp": lambda f: torch.func.jvp(f, (torch.ones(4),), (torch.ones(4),)),
    "jacrev": lambda f: torch.func.jacrev(f)(torch.ones(4)),
    "vmap": lambda f: torch.vmap(f, randomness="different")(torch.ones(2, 4)),
    "functionalize": lambda f: torch.func.functionalize(f)(torch.ones(4)),
    "fake": with_fake_tensors,
    "make_fx": with_make_fx("real"),
    "make_fx of fake": with_make_fx("fake"),
    "make_fx of symbols": with_make_fx("symbolic"),
}


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_error_under_transforms_leaves_the_generator_unchanged(name, kind):
    generator = GENERATORS[kind]()
    if kind == "cdropout" and ("fake" in name or "make_fx" in name):
        pytest.skip("graphs refuse a cdropout.Generator")
    error = pytest.raises(RuntimeError, match="must match the size|broadcast")
    if kind == "torch" and "make_fx" in name:
        error = errors_from_graphs(error)
    with NothingDrawn(generator), error:
        TRANSFORMS[name](
            lambda x: ct.bias_dropout_add(x, torch.ones(4), torch.ones(5), 0.5, generator=generator)
        )


def exhausted_generator():
    generator = cd.Generator(1)
    generator.state = {"seed": 1, "calls": 2**64 - 1, "spawned": 0}
    return generator


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exhausted_generator_raises_and_leaves_x_unchanged(dtype, name, grad):
    base = torch.randn(4, 6, 5, 7, dtype=dtype, requires_grad=grad)
    for x in (base * 1, (base * 1)[1:], (base * 1).permute(3, 1, 0, 2)):
        before, version = x.detach().clone(), x._version
        with pytest.raises(OverflowError, match="all 2\\*\\*64 - 1 call numbers"):
            FUNCTIONS[name](x, 0.5, inplace=True, generator=exhausted_generator())
        assert torch.equal(x, before) and (grad or x._version == version)


# ---- signals ------------------------------------------------------------------------------------


class Stop(Exception):
    """Exception that the signal handler raises."""


@pytest.fixture
def alarm():
    def stop(*_):
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


SLOW_CALLS = {  # these calls are slow, because the channels are small
    "dropout2d": lambda x, generator: ct.dropout2d(x, 0.5, generator=generator),
    "in place": lambda x, generator: ct.dropout2d(x, 0.5, inplace=True, generator=generator),
    "autograd": lambda x, generator: ct.dropout2d(x.requires_grad_(), 0.5, generator=generator),
    "alpha": lambda x, generator: ct.feature_alpha_dropout(x, 0.5, True, generator=generator),
    "accelerated": lambda x, _: torch.feature_dropout(x, 0.5, True),
}


@unix_only
@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("name", SLOW_CALLS)
def test_interrupted_call_restores_the_generator(name, kind, alarm):
    generator = None if name == "accelerated" else GENERATORS[kind]()
    for channels in (1 << 22, 1 << 23, 1 << 24):  # a short call can end before the signal is sent
        x, nothing_drawn = torch.ones(channels, 2, 2, 2), NothingDrawn(generator)
        nothing_drawn.__enter__()
        with pytest.raises(Stop), ct.accelerate():
            alarm()
            SLOW_CALLS[name](x, generator)
            signal.pause()
        if nothing_drawn.is_true():
            return
    pytest.fail("no interrupted call restored the generator")


def test_restore_does_nothing_if_the_generator_was_used_after_the_call():
    from cdropout.torch._draw import restore, state_of

    for kind in GENERATORS.values():
        generator = kind()
        before = state_of(generator)
        first = ct.dropout(torch.ones(99), generator=generator)
        after = state_of(generator)
        ct.dropout(torch.ones(99), generator=generator)
        with NothingDrawn(generator):
            restore(generator, before, after)
        restore(generator, before, state_of(generator))
        assert torch.equal(ct.dropout(torch.ones(99), generator=generator), first)


# ---- overlapping elements -----------------------------------------------------------------------

OVERLAPPING = {
    "unfold": lambda: torch.arange(10.0).unfold(0, 3, 1),
    "windows": lambda: torch.arange(20.0).as_strided((4, 3, 2, 2), (2, 3, 1, 1)),
    "expanded": lambda: torch.ones(4, 1).expand(4, 3),
    "diagonals": lambda: torch.arange(9.0).as_strided((3, 3), (2, 2)),
}
REFUSAL = "refers to a single memory location|vmap: inplace"


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("name", OVERLAPPING)
def test_in_place_call_on_overlapping_elements_raises(name, p):
    generator = cd.Generator(1)
    x = OVERLAPPING[name]()
    before = x.clone()
    calls = [
        lambda: ct.dropout(x, p, inplace=True),
        lambda: ct.dropout(x, p, inplace=True, generator=generator),
        lambda: ct.alpha_dropout(x, p, True, True),
        lambda: ct.feature_alpha_dropout(x, p, True, True),
        lambda: ct.drop_path(x, p, inplace=True),
        lambda: torch.vmap(lambda x: ct.dropout(x, p, inplace=True), randomness="different")(x),
        lambda: ct.Dropout(p, inplace=True)(x),
        lambda: accelerated(lambda: F.dropout(x, p, inplace=True)),
        lambda: accelerated(lambda: torch.alpha_dropout_(x, p, True)),
    ]
    for call in calls:
        with NothingDrawn(generator), pytest.raises(RuntimeError, match=REFUSAL):
            call()
        assert torch.equal(x, before)
    assert ct.dropout(x, p).shape == x.shape  # calls that are not in place do not raise


def accelerated(call):
    with ct.accelerate():
        return call()


@pytest.mark.parametrize(
    "view", [lambda x: x[:, 1::2], lambda x: x.t()[::3], lambda x: x[::2, :1].expand(-1, 1)]
)
def test_in_place_call_writes_to_a_view_with_gaps(view):
    x = torch.ones(60, 40)
    y = view(x)
    expected = cd.Mask(tuple(y.shape), 0.5, seed=4).to_scale()
    assert ct.dropout(y, 0.5, inplace=True, generator=cd.Generator(4)) is y
    assert (y.numpy() == expected).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dropout_of_tensors_with_more_dimensions_than_numpy_supports(name):
    x = torch.randn([1] * 33 + [6] + [1] * 33 + [5, 4])
    flat = x.reshape(6, 1, 5, 4)
    if name in ("dropout", "alpha_dropout"):
        for y, z in ((x, flat), (x.transpose(-1, -2), flat.transpose(-1, -2))):
            for inplace in (False, True):
                expected = FUNCTIONS[name](z.clone(), 0.5, generator=cd.Generator(2))
                result = FUNCTIONS[name](y.clone(), 0.5, inplace=inplace, generator=cd.Generator(2))
                assert torch.equal(result.reshape(expected.shape), expected)
    elif name in ("feature_alpha_dropout", "drop_path"):
        y = FUNCTIONS[name](x, 0.5, generator=cd.Generator(2))
        assert y.shape == x.shape and y.stride() == x.stride()
        moved = x.movedim(33, 0).transpose(-1, -2)
        y = FUNCTIONS[name](moved, 0.5, generator=cd.Generator(2))
        expected = FUNCTIONS[name](flat.transpose(-1, -2), 0.5, generator=cd.Generator(2))
        assert torch.equal(y.reshape(expected.shape), expected)


# ---- vmap ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("name", [*FUNCTIONS, "bias_dropout_add"])
def test_vmap_over_input_that_the_function_does_not_use(name, randomness):
    x, others = torch.randn(60, 50, 2, 2), torch.ones(40)

    def function(_):
        if name == "bias_dropout_add":
            return ct.bias_dropout_add(x, x[0], x, 0.5)
        return FUNCTIONS[name](x, 0.5)

    y = torch.vmap(function, randomness=randomness)(others)
    assert y.shape == (40, *x.shape)
    assert len(y.flatten(1).unique(dim=0)) == (1 if randomness == "same" else 40)


@pytest.mark.parametrize("batched", [(0, None, None), (None, 0, None), (None, None, 0)])
def test_vmap_of_bias_dropout_add(batched):
    x = [torch.randn(40, 3, 4) if axis == 0 else torch.randn(3, 4) for axis in batched]
    function = torch.vmap(
        lambda x, bias, residual: ct.bias_dropout_add(x, bias, residual, 0.5) - residual,
        batched,
        randomness="different",
    )
    y = function(*x)
    total = (2 * (x[0] + x[1])).expand(40, 3, 4)
    assert torch.allclose(y, torch.where(y.abs() < 1e-6, 0, total), atol=1e-5)
    assert 100 < (y.abs() < 1e-6).sum() < 380


def test_in_place_call_on_unbatched_tensor_under_vmap_raises():
    x = torch.ones(30)
    drop = torch.vmap(lambda _: ct.dropout(x, 0.5, inplace=True), randomness="different")
    with NothingDrawn(), pytest.raises(RuntimeError, match="vmap: inplace"):
        drop(torch.ones(4))
    assert torch.equal(x, torch.ones(30))

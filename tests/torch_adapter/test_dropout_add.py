"""Tests that compare bias_dropout_add in one pass with the three separate operations."""

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, slow
from ..helpers.torch_calls import DTYPES, GENERATORS, NothingDrawn, targets, with_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")
implementation = import_or_skip("cdropout.torch.dropout_add")

FORWARD = torch.ops.cdropout.bias_dropout_add.default
BACKWARD = torch.ops.cdropout.bias_dropout_add_backward.default
ONE_PASS = {  # shapes of input and bias
    "columns": ((3, 5, 70), (70,)),
    "rows of several groups": ((40, 513), (513,)),
    "tiles of several rows": ((300, 1000), (1000,)),
    "parts of rows": ((2, 65_539), (65_539,)),
    "two dimensions": ((4, 6, 50), (6, 50)),
    "leading ones": ((4, 6, 50), (1, 1, 50)),
    "full": ((6, 7), (6, 7)),
    "no bias": ((31, 33), None),
    "scalar": ((), None),
}
SEPARATE = {  # shapes of input, bias and residual
    "bias of rows": ((4, 6, 50), (6, 1), (4, 6, 50)),
    "scalar bias": ((4, 50), (), (4, 50)),
    "one column": ((40, 1), (1,), (40, 1)),
    "larger bias": ((50,), (4, 50), (4, 50)),
    "smaller residual": ((4, 50), (50,), (50,)),
    "larger residual": ((4, 50), (50,), (3, 4, 50)),
    "residual without bias": ((4, 50), None, (50,)),
}


def three_operations(x, bias, residual, p=0.3, **options):
    return residual + ct.dropout(x if bias is None else x + bias, p, **options)


def one_call(x, bias, residual, p=0.3, **options):
    return ct.bias_dropout_add(x, bias, residual, p, **options)


def operands(shape, bias, residual, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    return [
        None
        if size is None
        else torch.randn(size, dtype=dtype, generator=generator).requires_grad_()
        for size in (shape, bias, residual)
    ]


def with_gradients(function, inputs, **options):
    y = function(*inputs, **options)
    gy = torch.linspace(0.5, 1, y.numel()).reshape(y.shape).to(y.dtype)
    given = [x for x in inputs if x is not None]
    return [y, *torch.autograd.grad(y, given, gy)]


def assert_same_gradients(actual, expected):
    """Assert that results and gradients are equal, except for rounding of the bias gradient."""
    for result, other in zip(actual, expected, strict=True):
        if result.shape == actual[0].shape:
            assert torch.equal(result, other)
        torch.testing.assert_close(result, other)


@pytest.fixture
def passes(monkeypatch):
    """Return a list to which each call of a one-pass function appends the function's name."""
    seen = []
    for name in ("add_in_one_pass", "differentiate_in_one_pass"):
        original = getattr(implementation, name)

        def spy(*args, name=name, original=original):
            seen.append(name)
            return original(*args)

        monkeypatch.setattr(implementation, name, spy)
    return seen


# ---- eager mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ONE_PASS)
def test_one_pass_equals_three_operations(case, dtype, passes):
    shape, bias = ONE_PASS[case]
    inputs = operands(shape, bias, shape, dtype)
    result = with_seed(with_gradients, one_call, inputs)
    summed = bias is not None and bias != shape
    assert passes == ["add_in_one_pass"] + ["differentiate_in_one_pass"] * summed
    assert_same_gradients(result, with_seed(with_gradients, three_operations, inputs))


@pytest.mark.parametrize("case", SEPARATE)
def test_other_broadcasts_use_three_operations(case, passes):
    inputs = operands(*SEPARATE[case])
    result = with_seed(with_gradients, one_call, inputs)
    assert passes == []
    for actual, other in zip(
        result, with_seed(with_gradients, three_operations, inputs), strict=True
    ):
        assert torch.equal(actual, other)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, bias, residual: (x, bias, residual.double()),
        lambda x, bias, residual: (x, bias.bfloat16(), residual),
        lambda x, bias, residual: (x[:, ::2], bias[::2], residual[:, ::2]),
        lambda x, bias, residual: (x[:, :4], bias.repeat(2)[::10], residual[:, :4].contiguous()),
        lambda x, bias, residual: (x.T, bias[:8], residual.T),
    ],
)
def test_other_types_and_layouts_use_three_operations(change, passes):
    inputs = change(torch.randn(8, 20), torch.randn(20), torch.randn(8, 20))
    result = with_seed(one_call, *inputs)
    assert passes == []
    assert torch.equal(result, with_seed(three_operations, *inputs))


@pytest.mark.parametrize("p, training", [(0, True), (1, True), (0.3, False)])
def test_special_probabilities(p, training):
    inputs = operands((30, 20), (20,), (30, 20))
    with NothingDrawn():
        result = with_gradients(one_call, inputs, p=p, training=training)
        expected = with_gradients(three_operations, inputs, p=p, training=training)
    assert_same_gradients(result, expected)
    nan = torch.full((30, 20), torch.nan)
    if p == 1:
        residual = -torch.zeros(30, 20)
        y = one_call(nan, inputs[1], residual, 1)
        assert torch.equal(y, residual) and not torch.signbit(y).any()  # -0.0 + 0.0 is +0.0


def test_absent_bias_changes_no_sign():
    x = residual = -torch.zeros(40, 30)
    kept = cd.Mask((40, 30), 0)
    assert torch.signbit(one_call(x, None, residual, 0.5, mask=kept)).all()


@pytest.mark.parametrize("kind", GENERATORS)
def test_generator_determines_the_mask(kind):
    inputs = operands((30, 20), (20,), (30, 20))
    first, second = GENERATORS[kind](), GENERATORS[kind]()
    for _ in range(2):
        y = one_call(*inputs, generator=first)
        assert torch.equal(y, three_operations(*inputs, generator=second))


@pytest.mark.parametrize(
    "mask",
    [
        cd.Mask((30, 20), 0.3, seed=4),
        cd.Mask((30, 20), 0.3, seed=4, start=77, scale=0.5),
        cd.Mask((40, 30), 0.3, seed=4)[5:35, 3:23],
        cd.Mask((30, 20), 1),
        cd.Mask((30, 20), 0.3, strides=(1, 0)),
    ],
)
def test_given_mask(mask):
    inputs = operands((30, 20), (20,), (30, 20))
    result = with_gradients(one_call, inputs, p=0.5, mask=mask)
    assert_same_gradients(result, with_gradients(three_operations, inputs, p=0.5, mask=mask))
    for wrong, message in (
        ({"mask": mask, "generator": cd.Generator(1)}, "mask= cannot be combined with generator"),
        ({"mask": cd.Mask((2, 3), 0.5)}, "the mask has the shape"),
        ({"mask": mask, "p": 0.25}, "but p=0.25 was given"),
    ):
        with pytest.raises(ValueError, match=message):
            one_call(*inputs, **{"p": 0.5, **wrong})


@pytest.mark.parametrize("needed", range(1, 8))
def test_only_the_needed_gradients_are_computed(needed):
    inputs = operands((30, 20), (20,), (30, 20))
    for i, x in enumerate(inputs):
        x.requires_grad_(bool(needed >> i & 1))
    results = []
    for function in (one_call, three_operations):
        for x in inputs:
            x.grad = None
        with_seed(function, *inputs).square().sum().backward()
        results.append([x.grad for x in inputs])
    for grad, other in zip(*results, strict=True):
        assert (grad is None) == (other is None)
        if grad is not None:
            torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("shape, columns", [((2500, 100), 100), ((3, 70_001), 70_001)])
def test_gradient_of_the_bias_is_independent_of_threads(shape, columns):
    inputs = operands(shape, (columns,), shape)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(with_seed(with_gradients, one_call, inputs))
    finally:
        torch.set_num_threads(before)
    _y, gx, gbias, _ = results[0]
    assert torch.equal(gbias, gx.double().sum(0).float())
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("shape", [(2, 3), *slow((4, 5))])
def test_second_derivatives_and_forward_mode(shape):
    inputs = operands(shape, shape[1:], shape, torch.float64)
    mask = cd.Mask(shape, 0.3, seed=2)

    def function(*inputs):
        return ct.bias_dropout_add(*[x.sin() for x in inputs], mask=mask).exp()

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_batched_gradients_equal_single_gradients():
    inputs = operands((4, 5), (5,), (4, 5), torch.float64)
    y = with_seed(one_call, *inputs)
    gy = torch.randn(3, 4, 5, dtype=torch.float64)
    batched = torch.autograd.grad(y, inputs, gy, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        single = torch.autograd.grad(y, inputs, gy[i], retain_graph=True)
        for result, other in zip(batched, single, strict=True):
            torch.testing.assert_close(result[i], other)


def test_result_that_a_function_mode_replaced_is_refused():
    class Replace(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.empty_like:
                return torch.empty(1)
            return function(*args, **(kwargs or {}))

    inputs = [x.detach() for x in operands((30, 20), (20,), (30, 20))]
    with NothingDrawn(), pytest.raises(RuntimeError, match="torch.empty_like returned"), Replace():
        one_call(*inputs)


# ---- operators ----------------------------------------------------------------------------------


def compiled_graphs(function, inputs, dynamic=None):
    """Return the results of the compiled function, and the targets of each compiled graph."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs = []

    def record(graph, _inputs):
        graphs.append(targets(graph))
        return make_boxed_func(graph)

    torch._dynamo.reset()
    compiled = torch.compile(
        function, fullgraph=True, backend=aot_autograd(fw_compiler=record), dynamic=dynamic
    )
    return with_seed(with_gradients, compiled, inputs), graphs


@pytest.mark.parametrize("dynamic", [False, *slow(True)])
@pytest.mark.parametrize("case", ["leading ones", *slow("columns", "full", "no bias")])
@pytest.mark.parametrize("dtype", [torch.float32, *slow(torch.bfloat16)])
def test_compiled_graph_contains_one_operator(case, dynamic, dtype):
    shape, bias = ONE_PASS[case]
    inputs = operands(shape, bias, shape, dtype)
    results, (forward, backward) = compiled_graphs(one_call, inputs, dynamic)
    assert forward.count(FORWARD) == 1 and torch.ops.aten.add.Tensor not in forward
    if bias is None:
        assert torch.ops.cdropout.dropout.default in backward
    else:
        assert backward.count(BACKWARD) == 1 and torch.ops.aten.sum.dim_IntList not in backward
    assert_same_gradients(results, with_seed(with_gradients, one_call, inputs))


@pytest.mark.slow
def test_compiled_graph_of_another_broadcast_contains_the_operations():
    inputs = operands(*SEPARATE["bias of rows"])
    results, (forward, _) = compiled_graphs(one_call, inputs)
    assert FORWARD not in forward and torch.ops.cdropout.dropout.default in forward
    assert_same_gradients(results, with_seed(with_gradients, one_call, inputs))


@pytest.mark.slow
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias):
    x = torch.randn(4, 5, requires_grad=True)
    bias = torch.randn(5, requires_grad=True) if bias else None
    arguments = x, bias, torch.randn(4, 5, requires_grad=True), torch.tensor(5), 2, 0.3
    assert set(torch.library.opcheck(FORWARD, arguments).values()) == {"SUCCESS"}
    arguments = x, torch.tensor(5), 2, 0.3, (5,)
    assert set(torch.library.opcheck(BACKWARD, arguments).values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.parametrize("batched", [(0, 0, 0), (0, None, 0), (None, 0, None), (1, None, 1)])
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_within_a_compiled_graph(batched, randomness):
    inputs = [
        torch.randn(*((4, 3, 5) if axis == 1 else (3, 4, 5) if axis == 0 else (4, 5)))
        for axis in batched
    ]
    inputs[1] = torch.randn(3, 5) if batched[1] == 0 else torch.randn(5)

    def run(*inputs):
        return torch.vmap(one_call, batched, randomness=randomness)(*inputs)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_seed(compiled, *inputs), with_seed(run, *inputs))


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_transforms_within_a_compiled_graph(transform):
    x, bias, residual = (x.detach() for x in operands((4, 5), (5,), (4, 5)))

    def loss(bias):
        return one_call(x, bias, residual).exp().sum()

    def run(bias):
        if transform == "jvp":
            return torch.func.jvp(loss, (bias,), (bias,))[1]
        return torch.func.grad(loss)(bias)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_seed(compiled, bias), with_seed(run, bias))

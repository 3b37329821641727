"""Tests of the optimizations of compiled graphs. They are slow because they compile."""

import math
import re

import pytest

from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import DTYPES, LAYOUTS, needs_compiler, with_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

pytestmark = [pytest.mark.slow, needs_compiler]
SHAPE = 3, 5, 7, 11


@pytest.fixture(autouse=True)
def without_caches():
    from torch._functorch import config
    from torch._inductor import config as inductor_config

    torch._dynamo.reset()
    with config.patch(enable_autograd_cache=False), inductor_config.patch(fx_graph_cache=False):
        yield


def results_of(function, x):
    """Return the result of a function and the gradient of x, with the same seed each time."""
    y = with_seed(function, x)
    generator = torch.Generator().manual_seed(2)
    gy = torch.randint(-9, 9, y.shape, dtype=y.dtype, generator=generator)  # sums are exact
    return y, *torch.autograd.grad(y, x, gy)


def assert_equal_bits(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(a.signbit() & ~a.isnan(), b.signbit() & ~b.isnan())


def operators_of(function, x, **options):
    """Compare a compiled function with eager mode. Return the operators called in each pass."""
    from torch._inductor.utils import run_and_get_code

    before = x.clone()
    x = x.detach().requires_grad_()
    compiled = torch.compile(function, fullgraph=True, **options)
    results, codes = run_and_get_code(results_of, compiled, x)
    expected = results_of(function, x)
    assert_equal_bits(results, expected)
    assert results[0].stride() == expected[0].stride()
    assert_equal_bits(results_of(compiled, x), results)
    assert_equal_bits([x.detach()], [before])
    return [re.findall(r"torch\.ops\.cdropout\.(\w+)\.default\(", code) for code in codes]


# ---- dropout in place ---------------------------------------------------------------------------


def broadcast(x):
    return x[:, :1].neg().expand(x.shape)


@pytest.mark.parametrize(
    "name, dynamic",
    [("dropout", False), ("dropout", True), ("dropout2d", True), ("alpha_dropout", False)],
)
def test_dropout_writes_to_the_memory_of_a_temporary_tensor(name, dynamic):
    function = getattr(ct, name)
    training = (True,) if name == "alpha_dropout" else ()
    passes = operators_of(
        lambda x: function(x.neg(), 0.5, *training) * 2, torch.randn(SHAPE), dynamic=dynamic
    )
    assert passes == [["dropout_"], ["dropout_"]]


CASES = {  # functions whose forward pass must not write to the input of dropout
    "input": lambda x: ct.dropout(x, 0.5) * 2,
    "view of the input": lambda x: ct.dropout(x.permute(1, 0, 3, 2), 0.5) * 2,
    "used later": lambda x: ct.dropout(y := x.neg(), 0.5) * y.permute(0, 1, 2, 3),
    "returned": lambda x: torch.stack([ct.dropout(y := x.neg(), 0.5), y]),
    "broadcast": lambda x: ct.dropout(broadcast(x), 0.5) * 2,
    "part": lambda x: ct.dropout(x.neg()[:, 1:3], 0.5) * 2,
}


@pytest.mark.parametrize("name", CASES)
def test_dropout_does_not_write_to_memory_that_is_needed(name):
    forward, _ = operators_of(CASES[name], torch.randn(SHAPE))
    assert forward == ["dropout"]


def overwrite(x, y, new):
    x.copy_(new)
    return y


@pytest.mark.parametrize(
    "function",
    [
        lambda x: overwrite(x, ct.dropout(x, 0.5), torch.zeros_like(x)),
        lambda x: overwrite(x, ct.dropout(x.flatten(), 0.5), x + 1),
        lambda x: overwrite(x, y := ct.dropout(x, 0.5), y * 2),
        lambda x: ct.dropout(x, 0.5, inplace=True),
        lambda x: ct.dropout(x[1:], 0.5, inplace=True),
    ],
)
def test_inputs_that_are_overwritten(function):
    inputs = [torch.ones(SHAPE) for _ in range(2)]
    results = [
        with_seed(run, x)
        for run, x in zip((function, torch.compile(function, fullgraph=True)), inputs, strict=True)
    ]
    assert_equal_bits(results[:1] + inputs[:1], results[1:] + inputs[1:])


@pytest.mark.parametrize("shape", [SHAPE, SHAPE[2:]])
def test_earlier_uses_of_the_input_of_dropout(shape):
    def function(x):
        ordered = x.sort(0)[0]
        other = ordered * 2 + 1
        return ct.dropout(ordered, 0.5) + other

    operators_of(function, torch.randn(shape))


def branch(x):
    return ct.dropout(x.sin(), 0.5)


@pytest.mark.parametrize("function", [branch, lambda x: branch(x).neg()])
def test_dropout_in_a_branch_of_cond(function):
    def choose(x):
        return torch.cond(x.sum() > 0, function, torch.neg, (x,))

    x = torch.ones(SHAPE)
    assert_equal_bits(
        [with_seed(torch.compile(choose, fullgraph=True), x)], [with_seed(function, x)]
    )


def test_strides_that_depend_on_data():
    def function(x):
        return ct.dropout(x.nonzero().T.float(), 0.5) * 2

    x = torch.randn(SHAPE)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        y = with_seed(torch.compile(function, fullgraph=True), x)
    assert_equal_bits([y], [with_seed(function, x)])


@pytest.mark.parametrize(
    "dtype, layout",
    [(dtype, "contiguous") for dtype in DTYPES] + [(torch.float32, layout) for layout in LAYOUTS],
)
def test_compiled_layers_equal_eager(dtype, layout):
    x = LAYOUTS[layout](torch.randn(SHAPE, dtype=dtype))

    def function(x):
        y = ct.dropout(ct.dropout(x.neg(), 0.3).relu(), 0.3)
        return ct.dropout2d(y, 0.4).neg() + y

    operators_of(function, x)


# ---- gradients of dropout after ReLU ------------------------------------------------------------


@pytest.mark.parametrize(
    "name, dtype",
    [("dropout", dtype) for dtype in DTYPES]
    + [(name, torch.float32) for name in ("dropout1d", "dropout2d", "drop_path")],
)
def test_gradient_after_relu_needs_no_mask(name, dtype):
    x = torch.randn(SHAPE[: 3 if name == "dropout1d" else 4], dtype=dtype)
    x.view(-1)[:6] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45], dtype=dtype)
    passes = operators_of(lambda x: getattr(ct, name)(x.neg().relu(), 0.3).neg(), x)
    assert passes == [["dropout_"], []]


OTHERS = {  # functions to which the optimization does not apply
    "p = 1": lambda x: ct.dropout(x.neg().relu(), 1.0) * 2,
    "two masks": lambda x: ct.dropout(y := x.neg().relu(), 0.5) + ct.dropout(y, 0.5),
    "residual": lambda x: ct.dropout(y := x.neg().relu(), 0.5) + y,
    "view": lambda x: ct.dropout(x.neg().relu().flatten(), 0.5) * 2,
    "where": lambda x: torch.where(x <= 0, 0.0, ct.dropout(x.neg(), 0.5)) * 2,
    "other constant": lambda x: torch.where(x.relu() <= 0, 3.0, ct.dropout(x.neg(), 0.5)) * 2,
    "alpha_dropout": lambda x: ct.alpha_dropout(x.neg().relu(), 0.5, True) * 2,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_gradients_equal_eager_mode(name):
    operators_of(OTHERS[name], torch.randn(SHAPE))


# ---- AOTInductor --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_package_of_aotinductor_equals_eager_mode(tmp_path):
    class Model(torch.nn.Module):
        def forward(self, x):
            return ct.dropout(ct.dropout2d(x.neg(), 0.3).relu(), 0.3).neg()

    x = torch.randn(SHAPE)
    program = torch.export.export(Model(), (x,))
    path = str(tmp_path / "model.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=path)
    package = torch._inductor.aoti_load_package(path)
    y = with_seed(package, x)
    assert_equal_bits([y], [with_seed(Model(), x)])
    assert not torch.equal(package(x), y)

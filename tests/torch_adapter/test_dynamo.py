"""Tests of accelerate and enable with torch.compile."""

import copy
import threading
from functools import partial

import pytest

from ..helpers.requirements import import_or_skip, slow
from ..helpers.subprocess_runner import run, run_with_torch
from ..helpers.torch_calls import OPERATORS, needs_compiler, targets, with_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

F, nn = torch.nn.functional, torch.nn
DROPOUT = torch.ops.cdropout.dropout.default


@pytest.fixture(autouse=True)
def reset():
    torch._dynamo.reset()
    yield
    ct.disable()


def compile_and_record(function, graphs, **options):
    """Compile a function with a backend that appends each forward graph to `graphs`."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def record(graph_module, inputs):
        graphs.append(graph_module)
        return make_boxed_func(graph_module)

    backend = aot_autograd(fw_compiler=record, bw_compiler=lambda g, _: make_boxed_func(g))
    return torch.compile(function, fullgraph=True, backend=backend, **options)


# ---- compiled code equals eager code ------------------------------------------------------------


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)


def create_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.3, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODELS = {  # a function that returns the model, and the shape of its input
    "MLP": (lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.Linear(16, 8)), (4, 8)),
    "in place": (lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3, inplace=True)), (4, 8)),
    "alpha": (lambda: nn.Sequential(nn.Linear(8, 16), nn.AlphaDropout(0.3)), (4, 8)),
    "channels": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(), nn.FeatureAlphaDropout(0.2)),
        (4, 3, 8, 8),
    ),
    "attention": (lambda: nn.Sequential(nn.Linear(8, 8), Attention()), (2, 3, 5, 8)),
    "LSTM": (lambda: nn.LSTM(8, 8, num_layers=2, dropout=0.5), (4, 5, 8)),
    "TransformerEncoder": (create_encoder, (4, 5, 8)),
}


def gradients_of(function, model, x):
    """Return the first result of the function and the gradients of the parameters."""
    y = with_seed(function, x)
    y = y[0] if isinstance(y, tuple) else y
    return y, *torch.autograd.grad(y.square().sum(), list(model.parameters()))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "backend, dynamic",
    [
        ("aot_eager", None),
        pytest.param("aot_eager", True, marks=pytest.mark.slow),
        pytest.param("inductor", None, marks=[pytest.mark.slow, needs_compiler]),
    ],
)
@pytest.mark.parametrize(
    "name", [name if name in ("MLP", "attention") else slow(name)[0] for name in MODELS]
)
def test_compiled_model_equals_eager(name, backend, dynamic, first):
    """`first` states whether cdropout is enabled when the model is first compiled."""
    create, shape = MODELS[name]
    model = create()
    # PyTorch does not compile recurrent networks
    compiled = torch.compile(model, fullgraph=name != "LSTM", backend=backend, dynamic=dynamic)
    x, results = torch.randn(shape), {}
    for active in (first, not first, first, not first):
        ct.enable() if active else ct.disable()
        result = gradients_of(compiled, model, x)
        if active:
            torch.testing.assert_close(result, gradients_of(model, model, x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(result, results.setdefault(active, result))
    assert not torch.allclose(results[True][0], results[False][0])


@pytest.mark.parametrize("mode", ["enable_grad", *slow("no_grad", "inference_mode")])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_in_the_graph(name, mode):
    if (name, mode) == ("native_dropout", "inference_mode"):
        pytest.skip("PyTorch calls no kernel of native_dropout when it traces in inference mode")
    graphs, function = [], lambda x: OPERATORS[name](x * 2, 0.5)
    compiled = compile_and_record(function, graphs)
    with getattr(torch, mode)():
        x = torch.ones(4, 30, 5, 3, requires_grad=mode == "enable_grad")
        original = with_seed(compiled, x)
        with ct.accelerate():
            assert torch.equal(with_seed(compiled, x), with_seed(function, x))
        assert torch.equal(with_seed(compiled, x), original)
    assert [DROPOUT in targets(graph) for graph in graphs] == [False, True]


def test_native_dropout_in_a_graph_returns_the_mask():
    x = torch.rand(1000).requires_grad_()
    compiled = compile_and_record(lambda x: torch.native_dropout(x, 0.5, True), [])
    with ct.accelerate():
        y, keep = with_seed(compiled, x)
        assert torch.equal(y, with_seed(F.dropout, x))
        assert torch.equal(compiled(x)[1], compiled(x)[1]) is False
    assert keep.dtype == torch.bool and torch.equal(keep, y != 0) and not keep.requires_grad
    (gx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gx, 2 * keep)


def test_model_in_evaluation_mode_is_compiled_without_dropout():
    graphs, x = [], torch.ones(50)
    compiled = compile_and_record(nn.Sequential(nn.Dropout(), nn.ReLU()).eval(), graphs)
    with ct.accelerate():
        assert torch.equal(compiled(x), x)
    assert DROPOUT not in targets(graphs[0])


def test_vmap_in_a_compiled_function_uses_pytorch():
    graphs, x = [], torch.ones(20, 50)
    compiled = compile_and_record(torch.vmap(F.dropout, randomness="different"), graphs)
    with ct.accelerate():
        assert len(compiled(x).unique(dim=0)) == 20
    assert DROPOUT not in targets(graphs[0])


def test_exported_program_contains_the_dropout_of_pytorch():
    x = torch.ones(200)
    with ct.accelerate():
        program = torch.export.export(nn.Sequential(nn.ReLU(), nn.Dropout()), (x,), strict=False)
        assert torch.ops.aten.dropout.default in targets(program.graph_module)
        assert torch.equal(with_seed(program.module(), x), with_seed(F.dropout, x))
    assert not torch.equal(with_seed(program.module(), x), with_seed(ct.dropout, x))


# ---- the switch and compiled functions ----------------------------------------------------------


def with_context(x):
    with ct.accelerate():
        return F.dropout(x)


def with_enable(x):
    ct.enable()
    y = F.dropout(x)
    ct.disable()
    return y


@pytest.mark.parametrize("function", [with_context, with_enable, ct.accelerate()(F.dropout)])
def test_change_of_the_switch_within_a_compiled_function(function):
    x = torch.ones(50)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="accelerate|_Acceleration"):
        torch.compile(copy.copy(function), fullgraph=True, backend="aot_eager")(x)
    compiled = torch.compile(function, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(with_seed(compiled, x), with_seed(ct.dropout, x))
    assert not torch.equal(with_seed(F.dropout, x), with_seed(ct.dropout, x))


def test_message_of_fullgraph_says_where_to_change_the_switch():
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call them outside of the compiled fu"):
        torch.compile(with_enable, fullgraph=True, backend="aot_eager")(torch.ones(50))


@pytest.mark.slow
def test_other_threads_may_change_the_switch_during_a_compilation():
    stop = threading.Event()

    def change():
        while not stop.wait(0.001):
            with ct.accelerate():
                stop.wait(0.001)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for i in range(20):
            torch._dynamo.reset()
            compiled = compile_and_record(lambda x, i=i: F.dropout(x) + i, [])
            for _ in range(20):
                assert compiled(torch.ones(9)).shape == (9,)
    finally:
        stop.set()
        thread.join()


def test_function_compiled_before_the_import_is_compiled_again():
    script = """
import torch
function = torch.compile(lambda x: torch.dropout(x, 0.5, True), backend="aot_eager")
x = torch.ones(100)
torch.manual_seed(1)
before = function(x)
import cdropout.torch as ct
for active in (True, False):
    ct.enable() if active else ct.disable()
    torch.manual_seed(1)
    y = function(x)
    torch.manual_seed(1)
    print(torch.equal(y, ct.dropout(x)), torch.equal(y, before))
"""
    assert run_with_torch(script) == (0, "True False\nFalse True", "")


# ---- the switch is off --------------------------------------------------------------------------

REPORT = """
import torch
import torch.nn.functional as F

OPERATORS = {
    "dropout": lambda x: F.dropout(x * 2),
    "dropout_": lambda x: F.dropout(x * 2, inplace=True),
    "feature_dropout": lambda x: F.dropout2d(x * 2),
    "alpha_dropout": lambda x: F.alpha_dropout(x * 2, 0.5, True),
    "feature_alpha_dropout_": lambda x: torch.feature_alpha_dropout_(x * 2, 0.5, True),
    "native_dropout": lambda x: torch.native_dropout(x * 2, 0.5, True)[0],
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}
MODES = torch.enable_grad, torch.no_grad, torch.inference_mode


def report():
    for name, function in OPERATORS.items():
        for mode in MODES:
            if (name, mode) == ("attention", torch.inference_mode):
                continue
            with mode():
                x = torch.ones(2, 3, 5, 4, requires_grad=mode is torch.enable_grad)
                torch.manual_seed(1)
                print(name, mode.__name__, function(x).tolist())
                show_compiled(function, x)

"""
SHOW_GRAPH = """
from torch._dynamo.backends.common import aot_autograd

def show_compiled(function, x):
    def show(graph_module, inputs):
        print(graph_module.code)
        return graph_module.forward

    torch._dynamo.reset()
    torch.manual_seed(1)
    backend = aot_autograd(fw_compiler=show)
    print(torch.compile(function, fullgraph=True, backend=backend)(x).tolist())

"""
SHOW_CODE = """
import re
MODES = torch.enable_grad,  # only one mode, because compilation takes long
NAMES = "dropout", "alpha_dropout", "attention"
OPERATORS = {name: OPERATORS[name] for name in NAMES}
from torch._inductor.utils import run_and_get_code

def show_compiled(function, x):
    torch._dynamo.reset()
    torch.manual_seed(1)
    y, codes = run_and_get_code(torch.compile(function, fullgraph=True), x)
    print(y.tolist(), *[re.sub(r"# AOT ID.*|/tmp/\\S+|c\\w{51}", "", code) for code in codes])

"""
USES = {  # the code that runs before the report
    "imported": "import cdropout.torch",
    "used": "import cdropout.torch as ct\nwith ct.accelerate(): F.dropout(torch.ones(9))",
    "compiled inside": """
import contextlib, io
import cdropout.torch as ct
with ct.accelerate(), contextlib.redirect_stdout(io.StringIO()): report()""",
    "compiled outside and inside": """
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()): report()
import cdropout.torch as ct
with ct.accelerate(), contextlib.redirect_stdout(io.StringIO()): report()""",
}


def assert_nothing_changes(run, show, use):
    outputs = [run(f"{REPORT}{show}{lines}\nreport()") for lines in ("", use)]
    assert outputs[0][0] == 0 and len(outputs[0][1]) > 1000, outputs[0]
    assert outputs[0][:2] == outputs[1][:2], outputs[1][2]


@pytest.mark.parametrize("use", ["used", *slow(*[use for use in USES if use != "used"])])
def test_masks_and_graphs_outside_are_those_without_the_package(use):
    assert_nothing_changes(run_with_torch, SHOW_GRAPH, USES[use])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("use", ["used", "compiled outside and inside"])
def test_code_of_inductor_outside_is_the_code_without_the_package(use):
    without_caches = partial(run, TORCHINDUCTOR_FORCE_DISABLE_CACHES="1")
    assert_nothing_changes(without_caches, SHOW_CODE, USES[use])


# ---- caches on the disk -------------------------------------------------------------------------

CACHED_MODEL = """
import os
import torch
if os.environ["SWITCH"] != "none":
    import cdropout.torch as ct
    ct.enable()
    if os.environ["SWITCH"] == "off":
        ct.disable()
model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout(0.5))
x = torch.ones(50, requires_grad=True)
torch.manual_seed(1)
y = torch.compile(model, fullgraph=True)(x)
print(y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist())
torch.manual_seed(1)
print(model(x).tolist() == y.tolist())
print(dict(torch._dynamo.utils.counters["aot_autograd"]).get("autograd_cache_hit", 0))
"""


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("order", [("on", "off"), ("off", "on"), ("none", "on"), ("on", "none")])
def test_processes_with_one_cache_directory(order, tmp_path):
    values = []
    for hits in (0, 1):
        results = []
        for switch in order:
            status, output, errors = run(
                CACHED_MODEL, SWITCH=switch, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)
            )
            assert status == 0, errors
            results.append(output.splitlines())
            assert results[-1][1:] == [str(switch == "on"), str(hits)]
        assert results[0][0] != results[1][0]
        values.append([lines[0] for lines in results])
    assert values[0] == values[1]


@pytest.mark.parametrize("backend", ["eager", *slow("inductor")])
def test_guards_can_be_stored_by_the_precompile_cache(backend, tmp_path):
    script = f"""
import torch
import cdropout.torch as ct
torch._dynamo.config.caching_precompile = True
function = torch.compile(lambda x: torch.dropout(x, 0.5, True), backend={backend!r})
x = torch.ones(100)
for active in (False, True, False):
    ct.enable() if active else ct.disable()
    torch.manual_seed(1)
    y = function(x)
    torch.manual_seed(1)
    print(torch.equal(y, ct.dropout(x)))
"""
    status, output, errors = run(script, TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert status == 0, errors
    assert output.split() == ["False", "True", "False"]

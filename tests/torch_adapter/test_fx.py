"""Tests of dropout in torch.fx and TorchScript."""

import copy
import pickle

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import CALLS, GENERATORS, MODULES, targets, with_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")
F, fx, nn = torch.nn.functional, torch.fx, torch.nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning"),
]

# ---- torch.fx -----------------------------------------------------------------------------------


class Model(nn.Module):
    """Model that uses a dropout module twice, and a copy of this module in a nested module."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop
        self.nested = nn.Sequential(nn.Identity(), nn.Sequential(copy.deepcopy(drop)), drop)

    def forward(self, x):
        return self.nested(self.drop(x))


@pytest.mark.parametrize("name", MODULES)
def test_fx_records_a_module_as_one_node(name):
    model = Model(getattr(nn, name)(0.5))
    ct.convert(model)
    x = torch.randn(MODULES[name])
    traced = fx.symbolic_trace(model.eval())
    for graph_module in (traced, fx.symbolic_trace(traced), pickle.loads(pickle.dumps(traced))):
        modules = [node.target for node in graph_module.graph.nodes if node.op == "call_module"]
        assert modules == ["drop", "nested.0", "nested.1.0", "drop"]
        assert type(graph_module.drop) is getattr(ct, name)
        assert graph_module.eval()(x) is x
        y = with_seed(graph_module.train(), x)
        assert torch.equal(y, with_seed(model.train(), x)) and not torch.equal(y, x)


def test_fx_records_the_generator_of_a_module():
    model = nn.Sequential(ct.Dropout(0.5, generator=cd.Generator(1)))
    y = fx.symbolic_trace(model)(torch.ones(100))
    assert torch.equal(y, ct.dropout(torch.ones(100), 0.5, generator=cd.Generator(1)))


def test_fx_runs_hooks_of_a_module_once():
    model = nn.Sequential(ct.Dropout(0.5).eval())
    model[0].register_forward_hook(lambda module, args, y: y * 3)
    x = torch.ones(9)
    assert torch.equal(fx.symbolic_trace(model)(x), 3 * x)


@pytest.mark.parametrize("register", ["forward_hook", "forward_pre_hook"])
def test_fx_runs_global_hooks_once(register):
    def triple(module, args, *result):
        return (result or args)[0] * 3 if type(module) is ct.Dropout else None

    model, x = nn.Sequential(ct.Dropout(0.5).eval()), torch.ones(9)
    handle = getattr(nn.modules.module, f"register_module_{register}")(triple)
    try:
        assert torch.equal(fx.symbolic_trace(model)(x), 3 * x)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", CALLS)
def test_fx_records_a_function_in_a_hook_of_a_module(name):
    function = CALLS[name]
    model, x = nn.Sequential(ct.Dropout(0.0)), torch.ones(4, 5, 6, 7)
    model[0].register_forward_hook(lambda module, args, y: function(y))
    expected = with_seed(model, x)
    traced = fx.symbolic_trace(model)
    assert getattr(ct, "dropout" if name == "in place" else name) in targets(traced)
    assert torch.equal(with_seed(traced, x), expected)


def test_fx_traces_into_a_root_that_is_a_dropout_module():
    traced, x = fx.symbolic_trace(ct.Dropout(0.5)), torch.ones(99)
    assert ct.dropout in targets(traced)
    assert torch.equal(with_seed(traced, x), with_seed(ct.dropout, x))


def test_fx_records_a_function_for_a_tracer_without_modules():
    graph = fx.Graph()
    x = fx.Proxy(graph.placeholder("x"), fx.proxy.GraphAppendingTracer(graph))
    graph.output(ct.Dropout(0.5)(x).node)
    assert ct.dropout in [node.target for node in graph.nodes]


def test_fx_traces_into_subclasses():
    class Doubled(ct.Dropout):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(0.5))
    traced, x = fx.symbolic_trace(model), torch.ones(100)
    assert ct.dropout in targets(traced)
    assert torch.equal(with_seed(traced, x), with_seed(model, x))


@pytest.mark.parametrize("name", CALLS)
def test_fx_records_a_function_as_one_node(name):
    function = CALLS[name]
    traced = fx.symbolic_trace(lambda x: function(x))
    x = torch.randn(4, 5, 6, 7)
    expected = with_seed(function, x)
    for graph_module in (traced, fx.symbolic_trace(traced), pickle.loads(pickle.dumps(traced))):
        assert getattr(ct, "dropout" if name == "in place" else name) in targets(graph_module)
        assert torch.equal(with_seed(graph_module, x), expected)
    has_module = name not in ("drop_path", "mc_dropout", "bias_dropout_add")
    instead = "use a module, or draw from" if has_module else "draw from"
    match = f"in a torch.fx graph by a function: {instead} PyTorch's default generator"
    with pytest.raises(NotImplementedError, match=match):
        fx.symbolic_trace(lambda x: function(x, generator=cd.Generator(1)))


def test_fx_records_a_function_in_evaluation():
    traced = fx.symbolic_trace(lambda x: ct.dropout(x, 0.5, False))
    x = torch.ones(3)
    assert traced(x) is x and ct.dropout in targets(traced)


def test_fx_optimization_removes_dropout():
    from torch.fx.experimental.optimization import remove_dropout

    model = nn.Sequential(nn.Linear(4, 4), ct.Dropout(0.5), nn.Sequential(ct.Dropout(0.5)))
    x = torch.randn(3, 4)
    removed = remove_dropout(model)
    assert not [name for name in targets(removed) if name in ("1", "2.0")]
    assert torch.equal(removed(x), model[0](x))


@pytest.mark.parametrize("aware", [False, True])
def test_fx_quantization_of_a_converted_model(aware):
    quantization = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qat_qconfig_mapping, get_default_qconfig_mapping

    mapping = (get_default_qat_qconfig_mapping if aware else get_default_qconfig_mapping)("fbgemm")
    prepare = quantization.prepare_qat_fx if aware else quantization.prepare_fx
    x, results = torch.linspace(-1, 1, 32).reshape(4, 8), []
    for convert in (ct.convert, ct.revert):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)).train(aware)
        convert(model)
        prepared = prepare(model, mapping, (x,)).eval()
        prepared(x)
        results.append(quantization.convert_fx(prepared)(x))
    torch.testing.assert_close(*results, atol=0.1, rtol=0)


# ---- TorchScript --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", GENERATORS)
def test_torch_jit_trace_with_a_generator_raises(name, kind):
    function, generator = CALLS[name], GENERATORS[kind]()
    with pytest.raises(NotImplementedError, match="cannot be used while traced by torch.jit.trace"):
        torch.jit.trace(
            lambda x: function(x, generator=generator), torch.ones(4, 5, 6, 7), check_trace=False
        )


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", GENERATORS)
def test_torch_jit_script_of_a_module_with_a_generator_raises(name, kind):
    model = nn.Sequential(getattr(ct, name)(0.5, generator=GENERATORS[kind]()))
    with pytest.raises(NotImplementedError, match="with a generator cannot be scripted by torch.j"):
        torch.jit.script(model)


def scripted_dropout(x: torch.Tensor) -> torch.Tensor:
    return ct.dropout(x, 0.5, True)


def scripted_generator(x: torch.Tensor) -> torch.Tensor:
    return ct.dropout(x, 0.5, generator=None)


def scripted_drop_path(x: torch.Tensor) -> torch.Tensor:
    return ct.drop_path(x, 0.5)


def scripted_mc_dropout(x: torch.Tensor) -> torch.Tensor:
    return ct.mc_dropout(x, 0.5)


def scripted_bias_dropout_add(x: torch.Tensor) -> torch.Tensor:
    return ct.bias_dropout_add(x, x, x, 0.5)


def test_scripted_functions_call_pytorch_functions():
    x = torch.ones(100)
    assert torch.equal(
        with_seed(torch.jit.script(scripted_dropout), x), with_seed(F.dropout, x, 0.5)
    )
    names = ["dropout", "dropout1d", "dropout2d", "dropout3d"]
    for name in [*names, "alpha_dropout", "feature_alpha_dropout"]:
        assert "aten::" in str(torch.jit.script(getattr(ct, name)).inlined_graph)
    with pytest.raises(RuntimeError, match="Keyword argument generator unknown"):
        torch.jit.script(scripted_generator)
    for function in (scripted_drop_path, scripted_mc_dropout, scripted_bias_dropout_add):
        with pytest.raises(NotImplementedError, match="cannot be scripted by torch.jit.script"):
            torch.jit.script(function)

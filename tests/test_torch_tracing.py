"""cdropout.torch in recorded programs: torch.fx, the partitioner, make_fx, scripts, functionalize."""

import copy
import pickle
import shutil

import pytest

import cdropout as cd

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cdropout.torch")
F, fx, nn = torch.nn.functional, torch.fx, torch.nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
]

MODULES = {
    "Dropout": (5, 90),
    "Dropout1d": (5, 90, 3),
    "Dropout2d": (5, 90, 3, 2),
    "Dropout3d": (5, 90, 2, 3, 2),
    "AlphaDropout": (5, 90),
    "FeatureAlphaDropout": (5, 90, 3),
}
FUNCTIONS = {
    "dropout": lambda x, **generator: ct.dropout(x, 0.5, **generator),
    "dropout1d": lambda x, **generator: ct.dropout1d(x[0], 0.5, **generator),
    "dropout2d": lambda x, **generator: ct.dropout2d(x, 0.5, **generator),
    "dropout3d": lambda x, **generator: ct.dropout3d(x, 0.5, **generator),
    "alpha_dropout": lambda x, **generator: ct.alpha_dropout(x, 0.5, True, **generator),
    "feature_alpha_dropout": lambda x, **g: ct.feature_alpha_dropout(x, 0.5, True, **g),
    "drop_path": lambda x, **g: ct.drop_path(x, 0.5, scale_by_keep=False, **g),
    "mc_dropout": lambda x, **generator: ct.mc_dropout(x, 0.5, 3, **generator),
    "bias_dropout_add": lambda x, **g: ct.bias_dropout_add(x, x[0], x, 0.5, **g),
    "in place": lambda x, **generator: ct.dropout(x * 1, 0.5, inplace=True, **generator),
}
OURS = torch.ops.cdropout.dropout.default


def seeded(function, *args):
    torch.manual_seed(3)
    return function(*args)


def targets(graph_module):
    return [node.target for node in graph_module.graph.nodes]


# ---- torch.fx -----------------------------------------------------------------------------------


class Shared(nn.Module):
    """One dropout module in two places, and another one in a nested module."""

    def __init__(self, drop):
        super().__init__()
        self.drop = drop
        self.nested = nn.Sequential(nn.Identity(), nn.Sequential(copy.deepcopy(drop)), drop)

    def forward(self, x):
        return self.nested(self.drop(x))


@pytest.mark.parametrize("name", MODULES)
def test_fx_records_a_module_as_one_node(name):
    model = Shared(getattr(nn, name)(0.5))
    ct.convert(model)
    x = torch.randn(MODULES[name])
    traced = fx.symbolic_trace(model.eval())
    for graph_module in (traced, fx.symbolic_trace(traced), pickle.loads(pickle.dumps(traced))):
        modules = [node.target for node in graph_module.graph.nodes if node.op == "call_module"]
        assert modules == ["drop", "nested.0", "nested.1.0", "drop"]
        assert type(graph_module.drop) is getattr(ct, name)
        assert graph_module.eval()(x) is x
        y = seeded(graph_module.train(), x)
        assert torch.equal(y, seeded(model.train(), x)) and not torch.equal(y, x)


def test_fx_records_the_generator_of_a_module():
    model = nn.Sequential(ct.Dropout(0.5, generator=cd.Generator(1)))
    y = fx.symbolic_trace(model)(torch.ones(100))
    assert torch.equal(y, ct.dropout(torch.ones(100), 0.5, generator=cd.Generator(1)))


def test_fx_runs_hooks_once():
    model = nn.Sequential(ct.Dropout(0.5).eval())
    model[0].register_forward_hook(lambda module, args, y: y * 3)
    x = torch.ones(9)
    assert torch.equal(fx.symbolic_trace(model)(x), 3 * x)


def test_fx_traces_into_subclasses():
    class Doubled(ct.Dropout):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(0.5))
    traced, x = fx.symbolic_trace(model), torch.ones(100)
    assert ct.dropout in targets(traced)
    assert torch.equal(seeded(traced, x), seeded(model, x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fx_records_a_function_as_itself(name):
    function = FUNCTIONS[name]
    traced = fx.symbolic_trace(lambda x: function(x))
    x = torch.randn(4, 5, 6, 7)
    expected = seeded(function, x)
    for graph_module in (traced, fx.symbolic_trace(traced), pickle.loads(pickle.dumps(traced))):
        assert getattr(ct, "dropout" if name == "in place" else name) in targets(graph_module)
        assert torch.equal(seeded(graph_module, x), expected)
    with pytest.raises(NotImplementedError, match="cannot be recorded in a torch.fx graph by a fu"):
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


def test_fx_quantization():
    quantization = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    results = []
    for convert in (ct.convert, ct.revert):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)).eval()
        convert(model)
        x = torch.linspace(-1, 1, 32).reshape(4, 8)
        mapping = get_default_qconfig_mapping("fbgemm")
        prepared = quantization.prepare_fx(model, mapping, (x,))
        prepared(x)
        results.append(quantization.convert_fx(prepared)(x))
    torch.testing.assert_close(*results, atol=0.1, rtol=0)


# ---- the partitioner ----------------------------------------------------------------------------

CHAINS = {
    "one layer": lambda x: ct.dropout(x, 0.5) * 2,
    "within": lambda x: ct.dropout(x.sin(), 0.5).cos(),
    "two layers": lambda x: ct.dropout(ct.dropout(x.sin(), 0.5).exp(), 0.5).cos(),
    "shared axes": lambda x: ct.dropout2d(x.sin(), 0.5).exp(),
    "in place": lambda x: ct.dropout(x.sin() * 2, 0.5, inplace=True).exp(),
    "alpha_dropout": lambda x: ct.alpha_dropout(x.sin(), 0.5, True).exp(),
    "feature_alpha_dropout": lambda x: ct.feature_alpha_dropout(x.sin(), 0.5, True).exp(),
    "drop_path": lambda x: ct.drop_path(x.sin(), 0.5).exp(),
    "mc_dropout": lambda x: ct.mc_dropout(x.sin(), 0.5, 2).exp(),
    "bias_dropout_add": lambda x: ct.bias_dropout_add(x.sin(), x[0], x.cos(), 0.5).exp(),
    "vmap": lambda x: torch.vmap(lambda x: ct.dropout(x.sin(), 0.5).exp(), randomness="same")(x),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(
        lambda x: ct.dropout(x.sin(), 0.5).exp(), x, use_reentrant=False
    ).cos(),
}
PARTITION = "aot_eager_decomp_partition"


def assert_compiled_is_eager(function, backend, dynamic=None):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    x = torch.randn(8, 6, 5, 5, requires_grad=True)
    results = []
    for run in (function, compiled):
        y = seeded(run, x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("budget", [1, 0.9, 0.5, 0.1, 0])
@pytest.mark.parametrize("name", CHAINS)
def test_a_memory_budget_never_draws_another_mask(name, budget):
    with torch._functorch.config.patch(activation_memory_budget=budget):
        assert_compiled_is_eager(CHAINS[name], PARTITION)


@pytest.mark.parametrize("dynamic", [False, True])
def test_aggressive_recomputation_never_draws_another_mask(dynamic):
    with torch._functorch.config.patch(aggressive_recomputation=True):
        assert_compiled_is_eager(CHAINS["two layers"], PARTITION, dynamic)


@pytest.mark.skipif(shutil.which("c++") is None, reason="PyTorch compiles C++")
@pytest.mark.parametrize("budget", [0.5, 0])
def test_a_memory_budget_in_machine_code_never_draws_another_mask(budget):
    with torch._functorch.config.patch(activation_memory_budget=budget):
        assert_compiled_is_eager(CHAINS["two layers"], "inductor")


def test_a_memory_budget_of_a_region():
    def region(budget):
        def function(x):
            with torch.autograd.graph.region_activation_memory_budget(budget):
                return ct.dropout(x.sin(), 0.5).exp()

        return function

    x = torch.randn(40, 50, requires_grad=True)
    y = torch.compile(region(0.1), fullgraph=True, backend=PARTITION)(x)
    (gx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gx != 0, y != 1)
    torch._dynamo.reset()  # or the budget becomes a symbol
    with pytest.raises(RuntimeError, match=r"budget\(0\) saves nothing: use a small positive bud"):
        torch.compile(region(0.0), fullgraph=True, backend=PARTITION)(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_within_a_compiled_graph(name):
    function, x = FUNCTIONS[name], torch.randn(4, 5, 6, 7)

    def loss(x):
        return function(x.sin()).exp().sum()

    torch._dynamo.reset()
    for run in (
        torch.func.grad(loss),
        lambda x: torch.func.jvp(loss, (x,), (x,))[1],
    ):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(seeded(compiled, x), seeded(run, x))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_within_a_compiled_graph(randomness):
    def rows(x):
        return torch.vmap(lambda x: ct.dropout(x, 0.5) * 2, randomness=randomness)(x)

    x = torch.ones(20, 50)
    y = seeded(torch.compile(rows, fullgraph=True, backend=PARTITION), x)
    assert len(y.unique(dim=0)) == (1 if randomness == "same" else 20)
    assert torch.equal(y, seeded(rows, x))


def test_opcheck_of_the_saved_seed():
    report = torch.library.opcheck(torch.ops.cdropout.saved_seed.default, (torch.tensor(5),))
    assert set(report.values()) == {"SUCCESS"}
    seeds = torch.arange(3)
    assert torch.equal(torch.vmap(torch.ops.cdropout.saved_seed)(seeds), seeds)


# ---- make_fx, aot_function ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_make_fx_records_our_operator(name, mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    function, x = FUNCTIONS[name], torch.randn(4, 5, 6, 7)
    traced = make_fx(lambda x: function(x), tracing_mode=mode)(x)
    assert OURS in targets(traced)
    expected = seeded(function, x)
    assert torch.equal(seeded(traced, x), expected)
    with pytest.raises(NotImplementedError, match="cdropout.Generator cannot be used while traced"):
        make_fx(lambda x: function(x, generator=cd.Generator(1)), tracing_mode=mode)(x)
    generator = torch.Generator().manual_seed(3)
    traced = make_fx(lambda x: function(x, generator=generator), tracing_mode=mode)(x)
    generator.manual_seed(3)
    assert torch.equal(traced(x), expected)


@pytest.mark.parametrize("budget", [1, 0.5, 0])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_aot_function_records_our_operator(name, budget):
    from functorch.compile import (
        aot_function,
        make_boxed_func,
        min_cut_rematerialization_partition,
    )

    function, graphs = FUNCTIONS[name], []

    def compiler(graph_module, inputs):
        graphs.append(graph_module)
        return make_boxed_func(graph_module)

    x = torch.randn(4, 5, 6, 7, requires_grad=True)
    traced = aot_function(
        lambda x: function(x.sin()).exp(),
        fw_compiler=compiler,
        partition_fn=min_cut_rematerialization_partition,
    )
    with torch._functorch.config.patch(activation_memory_budget=budget):
        y = seeded(traced, x)
        (gx,) = torch.autograd.grad(y.sum(), x)
    assert OURS in targets(graphs[0])
    expected = seeded(function, x.sin()).exp()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gx, torch.autograd.grad(expected.sum(), x)[0])
    with pytest.raises(NotImplementedError, match="cdropout.Generator cannot be used while traced"):
        aot_function(lambda x: function(x, generator=cd.Generator(1)), fw_compiler=compiler)(x)


def test_fake_tensors_without_their_mode_are_left_to_pytorch():
    with torch._subclasses.FakeTensorMode():
        x = torch.ones(3, 4)
    assert ct.dropout(x).shape == (3, 4)


# ---- generator= in graphs -----------------------------------------------------------------------

GENERATORS = {"torch": lambda: torch.Generator().manual_seed(3), "cdropout": lambda: cd.Generator(3)}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_breaks_a_compiled_graph(kind):
    generator, x = GENERATORS[kind](), torch.ones(200)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: ct.dropout(x * 2, 0.5, generator=generator) * 3, backend="aot_eager"
    )
    found = torch.stack([compiled(x) for _ in range(2)])
    generator = GENERATORS[kind]()
    expected = [ct.dropout(x * 2, 0.5, generator=generator) * 3 for _ in range(2)]
    assert torch.equal(found, torch.stack(expected)) and not torch.equal(*expected)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("strict", [True, False])
def test_a_generator_in_a_whole_graph(kind, strict):
    module, x = ct.Dropout(0.5, generator=GENERATORS[kind]()), torch.ones(200)
    match = r"generator= cannot be used with fullgraph=True or in a strict export"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
        torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    if strict:
        with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
            torch.export.export(module, (x,), strict=True)
    elif kind == "cdropout":
        with pytest.raises(NotImplementedError, match="its seed would become a constant of the gra"):
            torch.export.export(module, (x,), strict=False)
    else:
        exported = torch.export.export(module, (x,), strict=False).module()
        y = [exported(x) for _ in range(2)]
        assert not torch.equal(*y) and set(y[0].tolist()) == {0, 2}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_in_a_traced_script(name, kind):
    function, generator = FUNCTIONS[name], GENERATORS[kind]()
    with pytest.raises(NotImplementedError, match="cannot be used while traced by torch.jit.trace"):
        torch.jit.trace(
            lambda x: function(x, generator=generator), torch.ones(4, 5, 6, 7), check_trace=False
        )


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("kind", GENERATORS)
def test_a_module_with_a_generator_is_not_scripted(name, kind):
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


def test_scripted_functions_are_pytorchs_own():
    x = torch.ones(100)
    assert torch.equal(seeded(torch.jit.script(scripted_dropout), x), seeded(F.dropout, x, 0.5))
    names = ["dropout", "dropout1d", "dropout2d", "dropout3d"]
    for name in [*names, "alpha_dropout", "feature_alpha_dropout"]:
        assert "aten::" in str(torch.jit.script(getattr(ct, name)).inlined_graph)
    with pytest.raises(RuntimeError, match="Keyword argument generator unknown"):
        torch.jit.script(scripted_generator)
    for function in (scripted_drop_path, scripted_mc_dropout, scripted_bias_dropout_add):
        with pytest.raises(NotImplementedError, match="cannot be scripted by torch.jit.script"):
            torch.jit.script(function)


# ---- torch.func.functionalize -------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functionalize(name):
    from torch.func import functionalize, grad

    function, x = FUNCTIONS[name], torch.randn(4, 5, 6, 7)

    def loss(x):
        return function(x.sin()).exp().sum()

    assert torch.equal(seeded(functionalize(function), x), seeded(function, x))
    expected = seeded(grad(loss), x)
    assert torch.equal(seeded(grad(functionalize(loss)), x), expected)
    assert torch.equal(seeded(functionalize(grad(loss)), x), expected)
    x.requires_grad_()
    y = seeded(functionalize(loss), x)
    torch.testing.assert_close(torch.autograd.grad(y, x)[0], expected)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_functionalize_and_vmap(randomness):
    from torch.func import functionalize, vmap

    x = torch.ones(20, 50)
    for rows in (
        vmap(functionalize(ct.dropout), randomness=randomness),
        functionalize(vmap(ct.dropout, randomness=randomness)),
    ):
        y = rows(x)
        assert set(y.unique().tolist()) == {0, 2}
        assert len(y.unique(dim=0)) == (1 if randomness == "same" else 20)

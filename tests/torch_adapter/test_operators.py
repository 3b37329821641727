"""Tests of the operators in graphs: partitioner, make_fx, aot_function, functionalize."""

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, slow
from ..helpers.torch_calls import (
    CALLS,
    GENERATORS,
    errors_from_graphs,
    needs_compiler,
    targets,
    with_seed,
)

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

F = torch.nn.functional
DROPOUT = torch.ops.cdropout.dropout.default
OPERATORS = {"bias_dropout_add": torch.ops.cdropout.bias_dropout_add.default}


# ---- the partitioner ----------------------------------------------------------------------------

CHAINS = {
    "one layer": lambda x: ct.dropout(x, 0.5) * 2,
    "between functions": lambda x: ct.dropout(x.sin(), 0.5).cos(),
    "two layers": lambda x: ct.dropout(ct.dropout(x.sin(), 0.5).exp(), 0.5).cos(),
    "broadcast axes": lambda x: ct.dropout2d(x.sin(), 0.5).exp(),
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


def assert_compiled_equals_eager(function, backend, dynamic=None):
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)
    x = torch.randn(8, 6, 5, 5, requires_grad=True)
    results = []
    for run in (function, compiled):
        y = with_seed(run, x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(*results[::-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name, budget",
    [
        pytest.param(name, budget, marks=[pytest.mark.slow] * (name != "two layers" and budget > 0))
        for name in CHAINS
        for budget in (1, 0.9, 0.5, 0.1, 0)
    ],
)
def test_memory_budget_does_not_change_the_mask(name, budget):
    with torch._functorch.config.patch(activation_memory_budget=budget):
        assert_compiled_equals_eager(CHAINS[name], PARTITION)


@pytest.mark.parametrize("dynamic", [False, True])
def test_aggressive_recomputation_does_not_change_the_mask(dynamic):
    with torch._functorch.config.patch(aggressive_recomputation=True):
        assert_compiled_equals_eager(CHAINS["two layers"], PARTITION, dynamic)


@needs_compiler
@pytest.mark.parametrize("budget", [0.5, 0])
def test_memory_budget_does_not_change_the_mask_in_machine_code_of_inductor(budget):
    with torch._functorch.config.patch(activation_memory_budget=budget):
        assert_compiled_equals_eager(CHAINS["two layers"], "inductor")


@pytest.mark.skipif(
    not hasattr(torch.autograd.graph, "region_activation_memory_budget"), reason="not in PyTorch"
)
def test_memory_budget_of_a_region():
    def region(budget):
        def function(x):
            with torch.autograd.graph.region_activation_memory_budget(budget):
                return ct.dropout(x.sin(), 0.5).exp()

        return function

    x = torch.randn(40, 50, requires_grad=True)
    y = torch.compile(region(0.1), fullgraph=True, backend=PARTITION)(x)
    (gx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gx != 0, y != 1)
    torch._dynamo.reset()  # without a reset, the next budget becomes a symbol
    with pytest.raises(RuntimeError, match=r"budget\(0\) saves nothing: use a small positive bud"):
        torch.compile(region(0.0), fullgraph=True, backend=PARTITION)(x)


@pytest.mark.parametrize(
    "name", [name if name in ("dropout", "in place") else slow(name)[0] for name in CALLS]
)
def test_transforms_within_a_compiled_graph(name):
    function, x = CALLS[name], torch.randn(4, 5, 6, 7)

    def loss(x):
        return function(x.sin()).exp().sum()

    torch._dynamo.reset()
    for run in (
        torch.func.grad(loss),
        lambda x: torch.func.jvp(loss, (x,), (x,))[1],
    ):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(with_seed(compiled, x), with_seed(run, x))


@pytest.mark.parametrize("compiled", [False, True])
def test_nested_transforms_of_the_operator(compiled):
    from cdropout.torch.operators import dropout_operator

    x, seed = torch.arange(1.0, 9) / 8, torch.tensor(3)
    func = torch.func

    def run(x):
        return dropout_operator(x, seed, 0, 0.3, [], "scale")

    def loss(x):
        return run(x).exp().sum()

    kept = run(torch.ones(8))
    second = run(x).exp() * kept**2
    for transformed, expected in (
        (lambda x: func.grad(lambda x: func.grad(loss)(x).sum())(x), second),
        (lambda x: func.jacfwd(func.grad(loss))(x).diagonal(), second),
        (lambda x: func.jacrev(func.jacfwd(loss))(x).diagonal(), second),
        (lambda x: func.grad(lambda x: func.hessian(loss)(x).sum())(x), second * kept),
    ):
        if compiled:
            transformed = torch.compile(transformed, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(transformed(x), expected)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_within_a_compiled_graph(randomness):
    def rows(x):
        return torch.vmap(lambda x: ct.dropout(x, 0.5) * 2, randomness=randomness)(x)

    x = torch.ones(20, 50)
    y = with_seed(torch.compile(rows, fullgraph=True, backend=PARTITION), x)
    assert len(y.unique(dim=0)) == (1 if randomness == "same" else 20)
    assert torch.equal(y, with_seed(rows, x))


@pytest.mark.parametrize("name", ["dropout_", "inplace_dropout"])
def test_opcheck_of_operators_in_place(name):
    arguments = torch.randn(4, 5), torch.tensor(5), 0, 0.5, [0], "scale"
    tests, operator = ("test_schema", "test_faketensor"), getattr(torch.ops.cdropout, name)
    report = torch.library.opcheck(operator.default, arguments, test_utils=tests)
    assert report == dict.fromkeys(tests, "SUCCESS")


def test_opcheck_of_the_saved_seed():
    report = torch.library.opcheck(torch.ops.cdropout.saved_seed.default, (torch.tensor(5),))
    assert set(report.values()) == {"SUCCESS"}
    seeds = torch.arange(3)
    assert torch.equal(torch.vmap(torch.ops.cdropout.saved_seed)(seeds), seeds)


# ---- sizes that depend on data ------------------------------------------------------------------

SELECTED = {  # functions of a tensor whose first size depends on data
    **CALLS,
    "bias_dropout_add": lambda x: ct.bias_dropout_add(x, None, x, 0.5),
    "dropout1d": lambda x: ct.dropout1d(x[:, 0], 0.5),
    "attention": lambda x: ct.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "F.dropout": lambda x: F.dropout(x, 0.5),
    "F.dropout2d": lambda x: F.dropout2d(x, 0.5),
    "F.alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "F.attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
}


@pytest.mark.parametrize("count", [0, *slow(1, 5)])
@pytest.mark.parametrize("name", SELECTED)
def test_sizes_that_depend_on_data(name, count):
    x, selected = torch.randn(5, 3, 4, 2, requires_grad=True), torch.arange(5) < count
    results = []

    def function(x, selected):
        return SELECTED[name](x[selected]) * 2

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), ct.accelerate():
        torch._dynamo.reset()
        for run in (function, torch.compile(function, fullgraph=True, backend=PARTITION)):
            y = with_seed(run, x, selected)
            results.append((y, *torch.autograd.grad(y.sum(), x)))
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_attention_of_tensors_with_several_sizes_that_depend_on_data():
    def function(x, selected):
        return F.scaled_dot_product_attention(x[selected], x[selected], x[selected], dropout_p=0.5)

    x, selected = torch.randn(5, 3, 4, 2), torch.arange(5) < 3
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True), ct.accelerate():
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend=PARTITION)
        torch.testing.assert_close(
            with_seed(compiled, x, selected), with_seed(function, x, selected)
        )


# ---- make_fx, aot_function ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [*slow("real", "fake"), "symbolic"])
@pytest.mark.parametrize("name", CALLS)
def test_make_fx_records_the_operator(name, mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    function, x = CALLS[name], torch.randn(4, 5, 6, 7)
    traced = make_fx(lambda x: function(x), tracing_mode=mode)(x)
    assert OPERATORS.get(name, DROPOUT) in targets(traced)
    expected = with_seed(function, x)
    assert torch.equal(with_seed(traced, x), expected)
    with pytest.raises(NotImplementedError, match="cdropout.Generator cannot be used while traced"):
        make_fx(lambda x: function(x, generator=cd.Generator(1)), tracing_mode=mode)(x)
    generator = torch.Generator().manual_seed(3)
    with errors_from_graphs():
        traced = make_fx(lambda x: function(x, generator=generator), tracing_mode=mode)(x)
        generator.manual_seed(3)
        assert torch.equal(traced(x), expected)


@pytest.mark.parametrize("budget", [*slow(1, 0.5), 0])
@pytest.mark.parametrize("name", CALLS)
def test_aot_function_records_the_operator(name, budget):
    from functorch.compile import (
        aot_function,
        make_boxed_func,
        min_cut_rematerialization_partition,
    )

    function, graphs = CALLS[name], []

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
        y = with_seed(traced, x)
        (gx,) = torch.autograd.grad(y.sum(), x)
    assert OPERATORS.get(name, DROPOUT) in targets(graphs[0])
    expected = with_seed(function, x.sin()).exp()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gx, torch.autograd.grad(expected.sum(), x)[0])
    with pytest.raises(NotImplementedError, match="cdropout.Generator cannot be used while traced"):
        aot_function(lambda x: function(x, generator=cd.Generator(1)), fw_compiler=compiler)(x)


def test_dropout_of_a_fake_tensor_outside_its_mode_uses_pytorch():
    with torch._subclasses.FakeTensorMode():
        x = torch.ones(3, 4)
    assert ct.dropout(x).shape == (3, 4)


# ---- generator= in graphs -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", GENERATORS)
def test_compiled_function_with_a_generator_equals_eager(kind):
    generator, x = GENERATORS[kind](), torch.ones(200)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: ct.dropout(x * 2, 0.5, generator=generator) * 3, backend="aot_eager"
    )
    result = torch.stack([compiled(x) for _ in range(2)])
    generator = GENERATORS[kind]()
    expected = [ct.dropout(x * 2, 0.5, generator=generator) * 3 for _ in range(2)]
    assert torch.equal(result, torch.stack(expected)) and not torch.equal(*expected)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("strict", [True, False])
def test_generator_with_fullgraph_or_export(kind, strict):
    module, x = ct.Dropout(0.5, generator=GENERATORS[kind]()), torch.ones(200)
    match = r"generator= cannot be used with fullgraph=True or in a strict export"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
        torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    if strict:
        with pytest.raises(torch._dynamo.exc.Unsupported, match=match):
            torch.export.export(module, (x,), strict=True)
    elif kind == "cdropout":
        with pytest.raises(
            NotImplementedError, match="its seed would become a constant of the gra"
        ):
            torch.export.export(module, (x,), strict=False)
    else:
        with errors_from_graphs():
            exported = torch.export.export(module, (x,), strict=False).module()
            y = [exported(x) for _ in range(2)]
            assert not torch.equal(*y) and set(y[0].tolist()) == {0, 2}


# ---- torch.func.functionalize -------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_functionalize_does_not_change_the_result(name):
    from torch.func import functionalize, grad

    function, x = CALLS[name], torch.randn(4, 5, 6, 7)

    def loss(x):
        return function(x.sin()).exp().sum()

    assert torch.equal(with_seed(functionalize(function), x), with_seed(function, x))
    expected = with_seed(grad(loss), x)
    assert torch.equal(with_seed(functionalize(grad(loss)), x), expected)
    if name == "in place":
        with pytest.raises(RuntimeError, match="derivative for aten::copy is not implemented"):
            grad(functionalize(loss))(x)  # grad raises this error for every copy_ in functionalize
        return
    assert torch.equal(with_seed(grad(functionalize(loss)), x), expected)
    x.requires_grad_()
    y = with_seed(functionalize(loss), x)
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

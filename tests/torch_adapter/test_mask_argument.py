"""Tests of `mask=` in eager mode, under transforms, in graphs and in checkpoints."""

import re

import numpy as np
import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import DTYPES, NothingDrawn

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")
checkpoint = torch.utils.checkpoint.checkpoint

SHAPE = (3, 4, 5, 6)
FUNCTIONS = {  # each function and its broadcast axes for tensors of SHAPE
    "dropout": (ct.dropout, ()),
    "dropout2d": (ct.dropout2d, (2, 3)),
    "dropout3d": (ct.dropout3d, (1, 2, 3)),
    "drop_path": (ct.drop_path, (1, 2, 3)),
    "alpha_dropout": (ct.alpha_dropout, ()),
    "feature_alpha_dropout": (ct.feature_alpha_dropout, (2, 3)),
}
LARGE_MASK = cd.Generator(9).next_mask((7, 8, 9, 10), 0.3, scale=3)
MASKS = {
    "mask": cd.Generator(9).next_mask(SHAPE, 0.3),
    "large numbers": cd.Mask(SHAPE, 0.3, -1, 2**64 - 1, 2**64 - 360),
    "window": LARGE_MASK[6:3:-1, ::2, 2:7, 4:],
    "scale": cd.Mask(SHAPE, 0.3, 2, scale=0.5),
    "all dropped": cd.Mask(SHAPE, 1),
    "nothing dropped": cd.Mask(SHAPE, 0, scale=2),
}
every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def normal(dtype=torch.float32, shape=SHAPE):
    """Return a tensor of normal random numbers, which are the same in each call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def expected(x, mask):
    return torch.from_numpy(mask.apply(x.detach().numpy()))


# ---- eager mode ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:dropout3d")
@pytest.mark.parametrize("p", [0, 0.3, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_mask_gives_the_same_result_as_the_generator_that_created_it(name, dtype, p):
    function, axes = FUNCTIONS[name]
    x = normal(dtype)
    mask = cd.Generator(9).next_mask(SHAPE, p, broadcast_dims=axes)
    want = function(x, p, True, generator=cd.Generator(9))
    with NothingDrawn():
        assert torch.equal(function(x, mask=mask, training=True), want)
        assert torch.equal(function(x, 0.5, True, mask=mask), want)  # 0.5 is the default
        assert function(x, training=False, mask=mask) is x
        y = x.clone()
        assert function(y, p, True, True, mask=mask) is y and torch.equal(y, want)


@every_mask
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)], ids=str)
def test_result_equals_numpy(mask, order):
    x = normal(shape=tuple(SHAPE[axis] for axis in order)).permute(*np.argsort(order).tolist())
    assert torch.equal(ct.dropout(x, mask=mask), expected(x, mask))
    assert torch.equal(ct.dropout(x.clone(), inplace=True, mask=mask), expected(x, mask))
    y = ct.alpha_dropout(x, training=True, mask=mask)
    want = cd.alpha_dropout(np.ascontiguousarray(x), training=True, mask=mask)
    assert torch.equal(y, torch.from_numpy(want))


def test_result_with_a_large_mask_equals_numpy():
    x, mask = normal(shape=(300, 1000)), cd.Mask((600, 1000), 0.3, 4)
    for window in (mask[300:], mask[::2]):
        assert torch.equal(ct.dropout(x, mask=window), expected(x, window))


def test_mc_dropout_dropout1d_and_bias_dropout_add_with_mask():
    x, mask = normal(), MASKS["mask"]
    copies = cd.Generator(9).next_mask((2, *SHAPE), 0.3)
    assert torch.equal(ct.mc_dropout(x, n=2, mask=copies), expected(x.expand(2, *SHAPE), copies))
    unchanged = ct.mc_dropout(x, n=2, mask=cd.Mask((2, *SHAPE), 0))
    assert unchanged.is_contiguous() and torch.equal(unchanged, x.expand(2, *SHAPE))
    channels = cd.Generator(9).next_mask(SHAPE[:3], 0.3, broadcast_dims=2)
    assert torch.equal(ct.dropout1d(x[..., 0], mask=channels), expected(x[..., 0], channels))
    for residual in (x, x[0]):
        want = residual + expected(x + x[1], mask)
        assert torch.equal(ct.bias_dropout_add(x, x[1], residual, mask=mask), want)
    empty = torch.ones(0, 3)
    assert ct.dropout(empty, mask=cd.Mask((0, 3), 0.5)).shape == (0, 3)


# ---- derivatives --------------------------------------------------------------------------------


@every_mask
@pytest.mark.parametrize("inplace", [False, True])
def test_derivatives_with_mask(mask, inplace):
    x, tangent = normal(torch.float64).requires_grad_(), normal(torch.float64) + 1
    y = ct.dropout(x * 1, inplace=inplace, mask=mask)
    (gx,) = torch.autograd.grad(y, x, tangent, create_graph=True)
    assert torch.equal(y, expected(x, mask)) and torch.equal(gx, expected(tangent, mask))
    (gx,) = torch.autograd.grad(ct.dropout(x, mask=mask).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gx.sum(), x)
    scale = expected(torch.ones_like(x), mask)
    torch.testing.assert_close(second, 2 * scale**2)
    out, jvp = torch.func.jvp(lambda x: ct.dropout(x, mask=mask), (x,), (tangent,))
    assert torch.equal(out, expected(x, mask)) and torch.equal(jvp, expected(tangent, mask))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.detach() * 1, tangent)
        dual = ct.dropout(dual, inplace=inplace, mask=mask)
        assert torch.equal(torch.autograd.forward_ad.unpack_dual(dual).tangent, jvp)


def test_derivatives_of_alpha_dropout_with_mask():
    x, mask = normal(torch.float64).requires_grad_(), MASKS["window"]
    assert torch.autograd.gradcheck(lambda x: ct.alpha_dropout(x, training=True, mask=mask), x)
    assert torch.autograd.gradgradcheck(
        lambda x: ct.alpha_dropout(x, training=True, mask=mask).square(), x
    )


@every_mask
def test_vmap_applies_the_mask_to_each_sample(mask):
    x = normal(shape=(2, *SHAPE))
    want = torch.stack([expected(sample, mask) for sample in x])
    for axis in (0, 2, -1):
        function = torch.func.vmap(lambda x: ct.dropout(x, mask=mask), in_dims=axis)
        assert torch.equal(function(x.movedim(0, axis)), want)
    gradient = torch.func.grad(lambda x: ct.dropout(x, mask=mask).square().sum())
    want = torch.stack([2 * expected(expected(sample, mask), mask) for sample in x])
    torch.testing.assert_close(torch.func.vmap(gradient)(x), want)
    in_place = torch.func.vmap(lambda x: ct.dropout(x, inplace=True, mask=mask))
    assert torch.equal(in_place(x.clone()), torch.stack([expected(sample, mask) for sample in x]))


# ---- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore:dropout3d")
def test_checkpoint_of_a_call_with_mask_needs_no_context(name, reentrant):
    function, axes = FUNCTIONS[name]
    x, rng = normal().requires_grad_(), cd.Generator(9)
    mask = rng.next_mask(SHAPE, 0.3, broadcast_dims=axes)

    def block(x):
        return function(x.sin(), training=True, mask=mask).exp().square()

    want = block(x)
    (gradient,) = torch.autograd.grad(want.sum(), x)
    y = checkpoint(block, x, use_reentrant=reentrant, preserve_rng_state=False)
    rng.next_mask(SHAPE, 0.3)
    y.sum().backward()
    assert torch.equal(y, want) and torch.equal(x.grad, gradient)


# ---- graphs -------------------------------------------------------------------------------------


@every_mask
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_function_with_mask(mask):
    x = normal().requires_grad_()
    compiled = torch.compile(lambda x: ct.dropout(x, mask=mask).sin() * 2, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, expected(x, mask).sin() * 2)
    (gx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gx, 2 * expected(expected(x, mask).cos(), mask))


def test_mask_with_fullgraph_raises():
    mask = MASKS["mask"]
    compiled = torch.compile(lambda x: ct.dropout(x, mask=mask), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="mask= cannot be used with fullgraph=True"):
        compiled(normal())


@every_mask
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_the_mask(mask, mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return ct.dropout(x, mask=mask) + torch.func.grad(
            lambda x: ct.alpha_dropout(x, training=True, mask=mask).square().sum()
        )(x)

    x = normal()
    graph = make_fx(function, tracing_mode=mode)(x)
    assert torch.equal(graph(x + 1), function(x + 1))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert mask.scale in (1, 0) or any("apply_mask" in target for target in targets)


@every_mask
def test_functionalize_and_aot_function_with_mask(mask):
    from torch._functorch.aot_autograd import aot_function, make_boxed_compiler

    compiler = make_boxed_compiler(lambda graph, _: graph)
    function = aot_function(lambda x: ct.dropout(x, mask=mask).square(), compiler, compiler)
    x = normal().requires_grad_()
    y = function(x)
    assert torch.equal(y, expected(x, mask).square())
    (gx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gx, 2 * expected(expected(x, mask), mask))
    functional = torch.func.functionalize(lambda x: ct.dropout(x * 1, inplace=True, mask=mask))
    assert torch.equal(functional(x.detach()), expected(x, mask))


@every_mask
def test_export_records_the_mask(mask):
    class Model(torch.nn.Module):
        def forward(self, x):
            return ct.dropout(x + 1, mask=mask) * 2

    program = torch.export.export(Model(), (normal(),), strict=False)
    assert torch.equal(program.module()(normal()), 2 * expected(normal() + 1, mask))


@every_mask
def test_mask_under_a_dispatch_mode(mask):
    from torch.utils.flop_counter import FlopCounterMode

    x = normal().requires_grad_()
    with FlopCounterMode(display=False), NothingDrawn():
        y = ct.dropout(x, mask=mask)
        z = ct.dropout(x * 1, inplace=True, mask=mask)
        (gx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, expected(x, mask)) and torch.equal(z, y)
    assert torch.equal(gx, expected(torch.ones(SHAPE), mask))


def test_operator_has_forward_mode_derivatives():
    x, mask = normal(), MASKS["window"]

    def function(x):
        return ct.dropout(x, mask=mask).square()

    functional = torch.func.functionalize(lambda x: torch.func.jvp(function, (x,), (x,))[1])
    torch.testing.assert_close(functional(x), 2 * expected(x, mask).square())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # 2.14
def test_opcheck_of_apply_mask():
    mask_arguments = (-1, 2, 3, [120, 30, 6, 1], 0.3, 1.5)
    for alpha in (False, True):
        x = normal().requires_grad_()
        arguments = (x, *mask_arguments, alpha)
        torch.library.opcheck(torch.ops.cdropout.apply_mask.default, arguments)


# ---- errors -------------------------------------------------------------------------------------

UNSUPPORTED = "mask= is supported for plain CPU tensors of float16, bfloat16, float32 or float64"
ERRORS = {
    "generator": (
        lambda x: ct.dropout(x, generator=cd.Generator(1), mask=MASKS["mask"]),
        ValueError,
        "mask= cannot be combined with generator",
    ),
    "p": (
        lambda x: ct.dropout(x, 0.25, mask=MASKS["mask"]),
        ValueError,
        "the mask has p=0.3, but p=0.25 was given",
    ),
    "shape": (
        lambda x: ct.dropout(x[1:], mask=MASKS["mask"]),
        ValueError,
        "the mask has the shape (3, 4, 5, 6), but x has (2, 4, 5, 6)",
    ),
    "channels": (
        lambda x: ct.dropout2d(x, mask=MASKS["mask"]),
        ValueError,
        "the mask has to have one draw along the axes (2, 3), but got Mask((3, 4, 5, 6), p=0.3",
    ),
    "bools": (
        lambda x: ct.dropout(x, mask=torch.ones(SHAPE, dtype=torch.bool)),
        TypeError,
        "mask has to be a Mask, but got Tensor",
    ),
    "scale_by_keep": (
        lambda x: ct.drop_path(x, scale_by_keep=False, mask=MASKS["mask"]),
        ValueError,
        "mask= cannot be combined with scale_by_keep=False",
    ),
    "meta": (
        lambda x: ct.dropout(x.to("meta"), mask=MASKS["mask"]),
        NotImplementedError,
        UNSUPPORTED,
    ),
    "type": (
        lambda x: ct.dropout(x.to(torch.float8_e5m2), mask=MASKS["mask"]),
        NotImplementedError,
        UNSUPPORTED,
    ),
    "dimensions": (
        lambda x: ct.dropout2d(x[0], mask=MASKS["mask"][0]),
        NotImplementedError,
        "mask= is not supported for 3D input, which is passed to torch.nn.functional.dropout2d",
    ),
    "overlap": (
        lambda x: ct.dropout(x[:1].expand(SHAPE), inplace=True, mask=MASKS["mask"]),
        RuntimeError,
        "more than one element of the written-to tensor refers to a single memory location",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_invalid_arguments_raise(case):
    function, error, message = ERRORS[case]
    x = normal()
    with NothingDrawn(), pytest.raises(error, match=re.escape(message)):
        function(x)
    assert torch.equal(x, normal())


def test_mask_under_fx_or_torch_jit_trace_raises():
    mask = MASKS["mask"]
    for call in (
        lambda x: ct.dropout(x, mask=mask),
        lambda x: ct.dropout2d(x, mask=mask),
        lambda x: ct.drop_path(x, mask=mask),
        lambda x: ct.mc_dropout(x, mask=mask),
        lambda x: ct.bias_dropout_add(x, x, x, mask=mask),
    ):
        with pytest.raises(
            NotImplementedError, match="mask= cannot be recorded in a torch.fx graph"
        ):
            torch.fx.symbolic_trace(call)
    with pytest.raises(NotImplementedError, match="mask= cannot be used while traced by torch.jit"):
        torch.jit.trace(lambda x: ct.dropout(x, mask=mask), normal())


@pytest.mark.parametrize("ndim", [64, 65, 80, 300])
def test_empty_tensor_with_many_dimensions(ndim):
    x, mask = torch.empty((0,) * ndim), cd.Mask((0,) * ndim, 0.5)
    assert ct.dropout(x, mask=mask).shape == x.shape
    assert ct.dropout(x, mask=mask, inplace=True) is x
    assert ct.alpha_dropout(x, mask=mask, training=True).shape == x.shape
    dropout = torch.ops.cdropout.dropout.default
    assert dropout(x, torch.tensor(1), 0, 0.5, [], "scale").shape == x.shape

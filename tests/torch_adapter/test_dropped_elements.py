"""Tests that dropped elements and their gradients are +0.0 at every entry point."""

import math

import pytest

from ..helpers.requirements import import_or_skip
from ..helpers.torch_calls import DTYPES, FUNCTIONS, OPERATORS, NothingDrawn

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")


SPECIAL = [math.nan, math.inf, -math.inf, -1.0, -0.0, 5.0]


def all_plus_zero(x):
    return not x.any() and not torch.signbit(x).any()


MODES = ["eager", "inference", "vmap", "vjp", "jvp", "compiled"]
CASES = [(mode, FUNCTIONS[name]) for mode in MODES[:-1] for name in FUNCTIONS]
CASES += [(mode, OPERATORS[name]) for mode in MODES[:2] for name in OPERATORS]
CASES = [(*case, dtype) for case in CASES for dtype in DTYPES]
# The compiled cases take long. All of them except those with float32 are marked as slow.
CASES += [
    pytest.param("compiled", function, dtype, marks=[pytest.mark.slow] * (dtype != torch.float32))
    for function in FUNCTIONS.values()
    for dtype in DTYPES
]
IN_PLACE = [OPERATORS[name] for name in OPERATORS if name.endswith("_")]


@pytest.mark.parametrize("mode, function, dtype", CASES)
def test_results_and_gradients_at_p_1_are_plus_zero(mode, function, dtype):
    x = torch.tensor(SPECIAL, dtype=dtype).repeat(2, 3, 4, 1)
    special = x.clone()
    with ct.accelerate(), NothingDrawn():
        if mode == "inference":
            with torch.inference_mode():
                assert all_plus_zero(function(x.clone(), 1.0))
        elif mode == "vmap":
            assert all_plus_zero(torch.vmap(lambda x: function(x, 1.0), randomness="same")(x[None]))
        elif mode == "vjp":
            y, vjp = torch.func.vjp(lambda x: function(x, 1.0), x)
            assert all_plus_zero(y) and all_plus_zero(vjp(special)[0])
        elif mode == "jvp":
            y, tangent = torch.func.jvp(lambda x: function(x, 1.0), (x,), (special,))
            assert all_plus_zero(y) and all_plus_zero(tangent)
        else:
            x.requires_grad_()
            run = function
            if mode == "compiled":
                run = torch.compile(function, backend="aot_eager", fullgraph=True)
            y = run(x * 1 if function in IN_PLACE else x, 1.0)
            (gx,) = torch.autograd.grad(y, x, special, create_graph=True)
            assert all_plus_zero(y) and all_plus_zero(gx)


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_dropout_gradients_are_plus_zero(dtype, create_graph, p):
    x = torch.ones(1000, dtype=dtype, requires_grad=True)
    gy = torch.tensor([math.nan, 1.0], dtype=dtype).repeat(500)
    with ct.accelerate():
        y, keep = torch.native_dropout(x, p, True)
    (gx,) = torch.autograd.grad(y, x, gy, create_graph=create_graph)
    assert all_plus_zero(gx[~keep]) and torch.equal(gx[1::2], (keep * 2).to(dtype)[1::2])
    assert torch.equal(y != 0, keep) and not keep.requires_grad
    with torch.autograd.forward_ad.dual_level(), ct.accelerate():
        dual = torch.autograd.forward_ad.make_dual(x.detach(), gy)
        y, keep = torch.native_dropout(dual, p, True)
        y, tangent = torch.autograd.forward_ad.unpack_dual(y)
    assert torch.equal(y != 0, keep) and all_plus_zero(tangent[~keep])


@pytest.mark.parametrize("dtype", DTYPES)
def test_batched_gradients_are_plus_zero(dtype):
    x = torch.ones(1000, dtype=dtype, requires_grad=True)
    y = ct.dropout(x, 0.5)
    gy = torch.tensor(SPECIAL, dtype=dtype)[:, None].expand(-1, 1000)
    (gx,) = torch.autograd.grad(y, x, gy, is_grads_batched=True)
    assert all_plus_zero(gx[:, y == 0])
    assert torch.equal(gx[3:, y != 0], 2 * gy[3:, y != 0])

"""Dropout with p = 1 and of dropped elements: +0.0 in every way to call it, also as a gradient."""

import math

import pytest

from ..helpers.torch_calls import DTYPES, FORMS, FUNCTIONS, Untouched

torch = pytest.importorskip("torch")
ct = pytest.importorskip("cdropout.torch")

# PyTorch itself scripts some of its formulas when they are first needed
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


BAD = [math.nan, math.inf, -math.inf, -1.0, -0.0, 5.0]


def all_plus_zero(x):
    return not x.any() and not torch.signbit(x).any()


HOW = ["eager", "inference", "vmap", "vjp", "jvp", "compiled"]
CASES = [(kind, FUNCTIONS[name]) for kind in HOW[:-1] for name in FUNCTIONS]
CASES += [(kind, FORMS[name]) for kind in HOW[:2] for name in FORMS]  # accelerate() leaves the rest
CASES = [(*case, dtype) for case in CASES for dtype in DTYPES]
CASES += [  # to compile takes long
    pytest.param("compiled", function, dtype, marks=[pytest.mark.slow] * (dtype != torch.float32))
    for function in FUNCTIONS.values()
    for dtype in DTYPES
]
IN_PLACE = [FORMS[name] for name in FORMS if name.endswith("_")]


@pytest.mark.parametrize("kind, function, dtype", CASES)
def test_p_of_1_gives_plus_zero_whatever_was_there(kind, function, dtype):
    x = torch.tensor(BAD, dtype=dtype).repeat(2, 3, 4, 1)
    bad = x.clone()
    with ct.accelerate(), Untouched():
        if kind == "inference":
            with torch.inference_mode():
                assert all_plus_zero(function(x.clone(), 1.0))
        elif kind == "vmap":
            assert all_plus_zero(torch.vmap(lambda x: function(x, 1.0), randomness="same")(x[None]))
        elif kind == "vjp":
            y, vjp = torch.func.vjp(lambda x: function(x, 1.0), x)
            assert all_plus_zero(y) and all_plus_zero(vjp(bad)[0])
        elif kind == "jvp":
            y, tangent = torch.func.jvp(lambda x: function(x, 1.0), (x,), (bad,))
            assert all_plus_zero(y) and all_plus_zero(tangent)
        else:
            x.requires_grad_()
            run = function
            if kind == "compiled":
                run = torch.compile(function, backend="aot_eager", fullgraph=True)
            y = run(x * 1 if function in IN_PLACE else x, 1.0)
            (gx,) = torch.autograd.grad(y, x, bad, create_graph=True)
            assert all_plus_zero(y) and all_plus_zero(gx)


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_native_dropout_gives_plus_zero_gradients_for_dropped_elements(dtype, create_graph, p):
    x = torch.randn(1000, dtype=dtype, requires_grad=True)
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
def test_a_batch_of_gradients_is_plus_zero_for_dropped_elements(dtype):
    x = torch.randn(1000, dtype=dtype, requires_grad=True)
    y = ct.dropout(x, 0.5)
    gy = torch.tensor(BAD, dtype=dtype)[:, None].expand(-1, 1000)
    (gx,) = torch.autograd.grad(y, x, gy, is_grads_batched=True)
    assert all_plus_zero(gx[:, y == 0])
    assert torch.equal(gx[3:, y != 0], 2 * gy[3:, y != 0])

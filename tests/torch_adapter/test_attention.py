"""Tests of scaled_dot_product_attention; the reference computes all weights at once in float64."""

import ctypes
import itertools
import math

import numpy as np
import pytest

import cdropout

from ..helpers.requirements import import_or_skip, linux_only, slow
from ..helpers.subprocess_runner import run

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

from cdropout.torch import _attention, attention  # noqa: E402
from cdropout.torch._openmp import find_functions  # noqa: E402

F, nn = torch.nn.functional, torch.nn
P = 0.3
# Largest error of an output or gradient, relative to its largest magnitude or, if greater, to 1.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-5,
    torch.bfloat16: 0.02,
    torch.float16: 0.003,
}


def next_mask(shape, p=P):
    """Return the mask that dropout draws next from PyTorch's default generator."""
    state = torch.get_rng_state()
    seed = torch.randint(2**63 - 1, ()).item()
    torch.set_rng_state(state)
    return cdropout.Mask(shape, p, seed)


def expected_attention(q, k, v, mask, attn_mask=None, is_causal=False, scale=None, gqa=False):
    """Compute attention in float64, with the whole mask as an array of bools."""
    q, k, v = (t.double() for t in (q, k, v))
    if gqa:
        k, v = (t.repeat_interleave(q.shape[-3] // t.shape[-3], -3) for t in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(hidden, 0).softmax(-1).masked_fill(hidden, 0)
    keep = torch.from_numpy(np.array(mask))
    return torch.where(keep, weights * mask.scale, 0) @ v


def random_tensors(*shapes, dtype=torch.float32):
    random = torch.Generator().manual_seed(5)
    return [torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in shapes]


def assert_close(actual, expected, dtype):
    assert actual.dtype == dtype
    error = (actual.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCE[dtype] * max(1, expected.abs().max().item())


def count_operators(monkeypatch):
    """Return a list to which each later call of the forward pass in tiles appends an item."""
    calls = []
    forward = attention.Attention.forward
    monkeypatch.setattr(
        attention.Attention, "forward", lambda self: calls.append(self) or forward(self)
    )
    return calls


# ---- forms of the arguments ---------------------------------------------------------------------

HEADS = (2, 3, 40, 8)
VISIBLE = torch.rand(40, 30, generator=torch.Generator().manual_seed(1)) < 0.7
VISIBLE[3] = VISIBLE[17] = False  # rows in which all keys are hidden
BIAS = torch.randn(2, 3, 40, 30, generator=torch.Generator().manual_seed(2))
KEYS = (2, 3, 30, 8)

FORMS = {  # shapes of query, key and value, and options
    "square": (HEADS, HEADS, HEADS, {}),
    "wide values": (HEADS, KEYS, (2, 3, 30, 5), {}),
    "causal": (HEADS, HEADS, HEADS, {"is_causal": True}),
    "causal, more rows than keys": (HEADS, KEYS, KEYS, {"is_causal": True}),
    "causal, fewer rows than keys": (KEYS, HEADS, HEADS, {"is_causal": True}),
    "bools": (HEADS, KEYS, KEYS, {"attn_mask": VISIBLE}),
    "bools per sample": (HEADS, KEYS, KEYS, {"attn_mask": BIAS[:, :1] > 0}),
    "bools per key": (HEADS, KEYS, KEYS, {"attn_mask": BIAS[0, 0, 0] > 0}),
    "bools per key and sample": (HEADS, KEYS, KEYS, {"attn_mask": BIAS[:, :1, :1] > 0}),
    "floats": (HEADS, KEYS, KEYS, {"attn_mask": BIAS}),
    "floats per head": (HEADS, KEYS, KEYS, {"attn_mask": BIAS[0]}),
    "infinities": (HEADS, KEYS, KEYS, {"attn_mask": BIAS.masked_fill(~VISIBLE, -math.inf)}),
    "bools with strides": (HEADS, KEYS, KEYS, {"attn_mask": VISIBLE.T.clone().T}),
    "floats with strides": (HEADS, KEYS, KEYS, {"attn_mask": BIAS.mT.clone().mT}),
    "scale": (HEADS, KEYS, KEYS, {"scale": -0.7}),
    "large scores": (HEADS, KEYS, KEYS, {"scale": 3.0, "attn_mask": VISIBLE}),
    "2 dimensions": ((40, 8), (30, 8), (30, 8), {}),
    "3 dimensions": ((3, 40, 8), (3, 30, 8), (3, 30, 8), {"is_causal": True}),
    "5 dimensions": ((2, 1, 3, 40, 8), (2, 1, 3, 30, 8), (2, 1, 3, 30, 8), {}),
    "broadcast query": ((1, 3, 40, 8), KEYS, KEYS, {}),
    "broadcast keys": (HEADS, (1, 1, 30, 8), (3, 30, 8), {"is_causal": True}),
    "one row": ((2, 3, 1, 8), KEYS, KEYS, {}),
    "one key": (HEADS, (2, 3, 1, 8), (2, 3, 1, 8), {}),
    "groups": ((2, 6, 40, 8), (2, 2, 30, 8), (2, 2, 30, 8), {"enable_gqa": True}),
    "one group": ((2, 6, 40, 8), (2, 1, 30, 8), (2, 1, 30, 8), {"enable_gqa": True}),
    "groups, causal": (
        (6, 40, 8), (3, 40, 8), (3, 40, 8), {"enable_gqa": True, "is_causal": True},
    ),
    "groups, bools": (
        (2, 6, 40, 8), (2, 3, 30, 8), (2, 3, 30, 8),
        {"enable_gqa": True, "attn_mask": BIAS.repeat(1, 2, 1, 1) > 0},
    ),
    "groups, floats": (
        (2, 6, 40, 8), (2, 3, 30, 8), (2, 3, 30, 8),
        {"enable_gqa": True, "attn_mask": BIAS[:, :1]},
    ),
}  # fmt: skip


def check_form(q, k, v, options, dtype):
    """Compare the result and gradients with those in float64, and the shape with PyTorch's."""
    q, k, v = inputs = [t.requires_grad_() for t in (q, k, v)]
    options = dict(options)
    gqa = options.get("enable_gqa", False)
    if options.get("attn_mask") is not None and options["attn_mask"].is_floating_point():
        options["attn_mask"] = options["attn_mask"].to(dtype).requires_grad_()
        inputs.append(options["attn_mask"])
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-3] + (1,) * gqa if gqa else k.shape[:-2])
    mask = next_mask((*lead, q.shape[-2], k.shape[-2]))
    y = ct.scaled_dot_product_attention(q, k, v, dropout_p=P, **options)
    others = {name: value for name, value in options.items() if name != "enable_gqa"}
    expected = expected_attention(q, k, v, mask, gqa=gqa, **others)
    assert y.shape == F.scaled_dot_product_attention(q, k, v, dropout_p=P, **options).shape
    assert_close(y, expected, dtype)
    gy = torch.randn_like(expected)
    actual = torch.autograd.grad(y, inputs, gy.to(dtype))
    for g, e in zip(actual, torch.autograd.grad(expected, inputs, gy), strict=True):
        assert_close(g, e, dtype)
    return y


@pytest.mark.parametrize("tile", [_attention.TILE, 700])
@pytest.mark.parametrize("form", FORMS)
def test_attention_in_tiles_equals_the_whole_matrix_for_every_form(form, tile, monkeypatch):
    monkeypatch.setattr(_attention, "TILE", tile)
    monkeypatch.setattr(_attention, "MIN_ROWS", 1)
    monkeypatch.setattr(_attention, "MIN_CAUSAL_ROWS", 7)
    calls = count_operators(monkeypatch)
    *shapes, options = FORMS[form]
    check_form(*random_tensors(*shapes), options, torch.float32)
    assert len(calls) == 1


@pytest.mark.parametrize("form", ["causal", "floats", "infinities", "groups, bools"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_attention_in_tiles_equals_the_whole_matrix_for_every_dtype(dtype, form, monkeypatch):
    calls = count_operators(monkeypatch)
    *shapes, options = FORMS[form]
    check_form(*random_tensors(*shapes, dtype=dtype), options, dtype)
    assert len(calls) == 1


def test_several_threads_give_the_same_result():
    q, k, v = (t.requires_grad_() for t in random_tensors(*[(2, 4, 300, 16)] * 3))
    for options in ({}, {"is_causal": True}, {"attn_mask": torch.ones(300, 300).tril() > 0}):
        mask = next_mask((2, 4, 300, 300))
        results = []
        threads = torch.get_num_threads()
        try:
            for n in (1, 2, 3):
                torch.set_num_threads(n)
                y = ct.scaled_dot_product_attention(q, k, v, mask=mask, **options)
                results.append([y, *torch.autograd.grad(y.square().sum(), (q, k, v))])
        finally:
            torch.set_num_threads(threads)
        for one, other in itertools.product(results[0], results[1:]):
            assert any((one - t).abs().max() < 1e-4 for t in other if t.shape == one.shape)


@pytest.mark.parametrize("layout", ["BSHD", "columns", "expanded", "sliced"])
def test_layouts_agree_with_contiguous_tensors(layout):
    def arrange(t):
        if layout == "BSHD":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "columns":
            return t.mT.contiguous().mT
        if layout == "expanded":
            return t[:1, :1].expand(t.shape)
        return torch.cat([t, t], -1)[..., ::2] if t.shape[-1] == 8 else t

    inputs = [arrange(t) for t in random_tensors(HEADS, KEYS, KEYS)]
    check_form(*inputs, {}, torch.float32)


def test_gradients_of_any_subset():
    bias = BIAS[0]
    full = [t.requires_grad_() for t in random_tensors(HEADS, KEYS, KEYS)] + [bias.clone()]
    full[3].requires_grad_()
    mask = cdropout.Mask((2, 3, 40, 30), P, 4)

    def gradients(needed):
        inputs = [t.detach().requires_grad_(need) for t, need in zip(full, needed, strict=True)]
        y = ct.scaled_dot_product_attention(*inputs, mask=mask)
        if any(needed):
            y.sin().sum().backward()
        assert y.requires_grad == any(needed)
        return [t.grad for t in inputs]

    expected = gradients([True] * 4)
    for needed in itertools.product([False, True], repeat=4):
        for g, e, need in zip(gradients(needed), expected, needed, strict=True):
            if need:
                torch.testing.assert_close(g, e)
            else:
                assert g is None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    mask = next_mask((2, 3, 40, 30))
    with context():
        y = ct.scaled_dot_product_attention(q.requires_grad_(), k, v, dropout_p=P)
    assert not y.requires_grad
    assert_close(y, expected_attention(q, k, v, mask), torch.float32)


@pytest.mark.parametrize("shapes", [
    ((2, 0, 8), (2, 5, 8), (2, 5, 8)), ((2, 5, 8), (2, 0, 8), (2, 0, 8)),
    ((0, 5, 8), (0, 5, 8), (0, 5, 8)), ((2, 5, 0), (2, 5, 0), (2, 5, 8)),
    ((2, 5, 8), (2, 5, 8), (2, 5, 0)),
])  # fmt: skip
def test_empty_tensors_give_what_pytorch_gives(shapes):
    tensors = random_tensors(*shapes)
    y = ct.scaled_dot_product_attention(*tensors, dropout_p=P)
    expected = F.scaled_dot_product_attention(*tensors, dropout_p=P)
    assert y.shape == expected.shape
    if shapes[1][1] == 0:
        assert torch.equal(y, expected)


def test_p_0_and_p_1():
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    state = torch.get_rng_state()
    y = ct.scaled_dot_product_attention(q, k, v)
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v))
    assert not ct.scaled_dot_product_attention(q, k, v, dropout_p=1.0).any()
    everything = cdropout.Mask((2, 3, 40, 30), 0)
    torch.testing.assert_close(ct.scaled_dot_product_attention(q, k, v, mask=everything), y)
    assert torch.equal(torch.get_rng_state(), state)


PEAK = """
import re, torch
import cdropout.torch as ct
torch.set_num_threads(2)
q, k, v = (torch.randn(1, 2, {length}, 64, requires_grad=True) for _ in range(3))
gy = torch.ones(q.shape)
ct.scaled_dot_product_attention(*(t[:, :, :64] for t in (q, k, v)), dropout_p=0.1).sum().backward()
y = torch.zeros(q.shape)  # the output, which needs the same memory, is not part of the peak
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])  # KiB
before = peak()
del y
gradients = torch.autograd.grad({call}(q, k, v, dropout_p=0.1), (q, k, v), gy)
print(peak() - before)
"""


@linux_only
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_weights():
    def peak(length, call="ct.scaled_dot_product_attention"):
        """Return the peak memory of the forward and backward pass in KiB, in a new process."""
        code = PEAK.format(length=length, call=call)
        status, output, errors = run(code)
        assert status == 0, errors
        return int(output)

    weights = 2 * 4096**2 * 4 // 1024
    assert peak(4096, "torch.nn.functional.scaled_dot_product_attention") > weights
    assert peak(4096) < 64 * 1024 < weights


# ---- special numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_special_numbers_propagate_as_in_the_whole_matrix(number, position):
    tensors = random_tensors(HEADS, KEYS, KEYS)
    tensors[position][1, 2, 7, 3] = number
    mask = next_mask((2, 3, 40, 30))
    for options in ({}, {"is_causal": True}, {"attn_mask": torch.ones(40, 30) > 0}):
        y = ct.scaled_dot_product_attention(*tensors, mask=mask, **options)
        expected = expected_attention(*tensors, mask, **options)
        seen = torch.ones(2, 3, 40, 1, dtype=torch.bool)
        if position and "is_causal" in options:
            seen[:, :, :7] = False  # special numbers of hidden keys may or may not propagate
        torch.testing.assert_close(
            y[seen.expand_as(y)], expected.float()[seen.expand_as(y)], equal_nan=True
        )


def test_a_dropped_nan_is_zero():
    q, k, v = random_tensors((1, 1, 8, 4), (1, 1, 1, 4), (1, 1, 1, 4))
    q[:] = math.nan
    mask = cdropout.Mask((1, 1, 8, 1), 0.5, 3)
    y = ct.scaled_dot_product_attention(q, k, v, mask=mask)
    keep = torch.from_numpy(np.array(mask))
    assert torch.equal(y.isnan(), keep.expand_as(y)) and 0 < keep.sum() < 8
    assert not y[~keep.expand_as(y)].any()


# ---- sources of masks ---------------------------------------------------------------------------


def test_generators_give_the_mask_of_dropout():
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    ones = torch.ones(2, 3, 40, 30)
    for make in (lambda: torch.Generator().manual_seed(8), lambda: cdropout.Generator(seed=8)):
        first, second = make(), make()
        for _ in range(2):
            y = ct.scaled_dot_product_attention(q, k, v, dropout_p=P, generator=first)
            keep = ct.dropout(ones, P, generator=second) != 0
            weights = (q @ k.mT / math.sqrt(8)).softmax(-1)
            expected = torch.where(keep, weights / (1 - P), 0) @ v
            torch.testing.assert_close(y, expected)


MASKS = {
    "scale": lambda: cdropout.Mask((2, 3, 40, 30), P, 1, scale=2.0),
    "window": lambda: cdropout.Mask((4, 5, 50, 60), P, 1)[1:3, 1:4, 5:45, ::2],
    "broadcast": lambda: cdropout.Mask((2, 3, 40, 30), P, 1, strides=(0, 1200, 30, 1)),
    "rows with a gap": lambda: cdropout.Mask((2, 3, 40, 30), P, strides=(1, 7, 5000, 1)),
    "rows with a large gap": lambda: cdropout.Mask((2, 3, 40, 30), P, strides=(1, 7, 2**30, 1)),
    "large numbers": lambda: cdropout.Mask((2, 3, 40, 30), P, -1, 2**64 - 1, 2**64 - 7200),
}


@pytest.mark.parametrize("name", MASKS)
def test_given_masks(name):
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    mask = MASKS[name]()
    y = ct.scaled_dot_product_attention(q, k, v, None, mask.p, mask=mask)
    assert_close(y, expected_attention(q, k, v, mask), torch.float32)
    q, k, v = random_tensors((2, 3, 40, 8), (2, 1, 30, 8), (2, 1, 30, 8))
    y = ct.scaled_dot_product_attention(q, k, v, enable_gqa=True, mask=mask)
    assert_close(y, expected_attention(q, k, v, mask, gqa=True), torch.float32)


def test_given_mask_of_one_head():
    mask = cdropout.Mask((4, 5, 50, 60), P, 1)[:, 1:2, 5:45, ::2]
    q, k, v = random_tensors((4, 1, 40, 8), (4, 1, 30, 8), (4, 1, 30, 8))
    y = ct.scaled_dot_product_attention(q, k, v, mask=mask)
    assert_close(y, expected_attention(q, k, v, mask), torch.float32)


def test_given_mask_of_long_rows_with_a_stride():
    mask = cdropout.Mask((2, 3, 20000), P, 1)[:, :, ::2]
    q, k, v = random_tensors((2, 3, 4), (2, 10000, 4), (2, 10000, 4))
    y = ct.scaled_dot_product_attention(q, k, v, mask=mask)
    assert_close(y, expected_attention(q, k, v, mask), torch.float32)


@pytest.mark.parametrize("kind", ["negative", "zero"])
def test_lazy_attn_mask(kind):
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    mask = cdropout.Mask((2, 3, 40, 30), P, 3)
    if kind == "negative":
        lazy, plain = torch.complex(BIAS, BIAS).conj().imag, -BIAS
        assert lazy.is_neg()
    else:
        lazy, plain = torch._efficientzerotensor((40, 30)), torch.zeros(40, 30)
    y = ct.scaled_dot_product_attention(q, k, v, lazy, mask=mask)
    assert torch.equal(y, ct.scaled_dot_product_attention(q, k, v, plain, mask=mask))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_at_most_1_if_the_number_of_threads_changes(dtype):
    """With other threads, products may be rounded differently, so that an exponent is above 0."""
    q, k, v = random_tensors(*[(1, 3, 64, 4096)] * 3, dtype=dtype)
    q *= 1e8 if dtype is torch.float32 else 1e17
    k[:, :, 1::2] = k[:, :, ::2] * (1 + (1e-7 if dtype is torch.float32 else 1e-16))
    mask = cdropout.Mask((1, 3, 64, 64), P, 7)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        y = ct.scaled_dot_product_attention(q, k, v.requires_grad_(), mask=mask)
        torch.set_num_threads(1)
        (gv,) = torch.autograd.grad(y.sum(), v)
    finally:
        torch.set_num_threads(before)
    assert gv.abs().max() <= 64 * mask.scale


@pytest.mark.parametrize("position", [0, 1, 3])
def test_inference_tensors_need_not_be_saved(position):
    tensors = [t.requires_grad_() for t in random_tensors(HEADS, KEYS, KEYS)] + [VISIBLE]
    expected = ct.scaled_dot_product_attention(*tensors, mask=MASKS["scale"]())
    with torch.inference_mode():
        tensors[position] = tensors[position].clone()
    y = ct.scaled_dot_product_attention(*tensors, mask=MASKS["scale"]())
    torch.testing.assert_close(y, expected)
    y.sum().backward()


@pytest.mark.parametrize("scale", [0.0, 1e-39, 1e49])
def test_extreme_scales(scale):
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    if scale == 1e-39:
        q, k = q * 1e18, k * 1e19
    mask = cdropout.Mask((2, 3, 40, 30), P, 3)
    y = ct.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
    if scale < 1:
        assert_close(y, expected_attention(q, k, v, mask, scale=scale), torch.float32)
    q[0, 0, 0, 0] = math.nan
    assert ct.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)[0, 0, 0].isnan().all()


@pytest.mark.parametrize("empty", ["query", "key and value"])
def test_programs_with_tensors_that_are_empty_at_run_time(empty):
    class Model(nn.Module):
        def forward(self, q, k):
            return ct.scaled_dot_product_attention(q, k, k, dropout_p=P)

    rows, keys = (torch.export.Dim(name, min=0, max=100) for name in ("rows", "keys"))
    inputs = random_tensors((2, 3, 40, 16), (2, 3, 30, 16))
    program = torch.export.export(
        Model(), tuple(inputs), dynamic_shapes={"q": {2: rows}, "k": {2: keys}}
    ).module()
    i = 0 if empty == "query" else 1
    inputs[i] = inputs[i][:, :, :0]
    torch.testing.assert_close(program(*inputs), torch.zeros(inputs[0].shape))
    inputs = [t.requires_grad_() for t in inputs]
    gradients = torch.autograd.grad(attention_of(*inputs).sum(), inputs)
    assert [g.shape for g in gradients] == [t.shape for t in inputs]
    assert not any(g.any() for g in gradients)


def attention_of(q, k):
    """Call the operator, which `scaled_dot_product_attention` does not call for empty tensors."""
    seed = torch.tensor(3)
    args = q, k, k, None, seed, 0, 0, None, P, None, False, None
    return attention.attention_operator(*args)[0]


def test_dynamic_lengths_and_widths_need_no_further_graph():
    class Model(nn.Module):
        def forward(self, q):
            return ct.scaled_dot_product_attention(q, q, q, dropout_p=P)

    (q,) = random_tensors((2, 3, 40, 16))
    dims = {2: torch.export.Dim("length"), 3: torch.export.Dim("width")}
    program = torch.export.export(Model(), (q,), dynamic_shapes={"q": dims}).module()
    (q,) = random_tensors((2, 3, 7, 36))
    torch.manual_seed(7)
    y = program(q)
    torch.manual_seed(7)
    torch.testing.assert_close(y, Model()(q))


def test_accelerate_adds_no_guard_on_dynamic_lengths():
    class Model(nn.Module):
        def forward(self, q):
            return F.scaled_dot_product_attention(q, q, q, dropout_p=P)

    (q,) = random_tensors((2, 8, 200, 16))
    dims = {2: torch.export.Dim("length", min=1, max=4096)}
    with ct.accelerate():
        program = torch.export.export(Model(), (q,), dynamic_shapes={"q": dims}).module()
    assert program(q[:, :, :16]).shape == (2, 8, 16, 16)


def test_checkpoints_draw_the_same_mask():
    from torch.utils.checkpoint import checkpoint

    q, k, v = (t.requires_grad_() for t in random_tensors(HEADS, KEYS, KEYS))
    mask = next_mask((2, 3, 40, 30))
    run = lambda *x: ct.scaled_dot_product_attention(*x, dropout_p=P)  # noqa: E731
    y = checkpoint(run, q, k, v, use_reentrant=False)
    actual = torch.autograd.grad(y.sum(), (q, k, v))
    direct = ct.scaled_dot_product_attention(q, k, v, mask=mask)
    for a, e in zip(actual, torch.autograd.grad(direct.sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, e)


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, *slow({"is_causal": True})])
def test_gradcheck(options):
    tensors = [t.requires_grad_() for t in random_tensors(*[(2, 4, 3)] * 3, dtype=torch.float64)]
    mask = cdropout.Mask((2, 4, 4), P, 2)

    def function(*x):
        return ct.scaled_dot_product_attention(*x, mask=mask, **options)

    assert torch.autograd.gradcheck(function, tensors, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)
    torch.manual_seed(1)
    state = torch.get_rng_state()

    def draws(*x):
        torch.set_rng_state(state)
        return ct.scaled_dot_product_attention(*x, None, P, **options)

    assert torch.autograd.gradgradcheck(draws, tensors, fast_mode=True)
    assert torch.autograd.gradcheck(
        draws, tensors, check_forward_ad=True, check_backward_ad=False, fast_mode=True
    )


def test_gradcheck_of_the_float_attn_mask():
    tensors = random_tensors((2, 4, 3), (2, 5, 3), (2, 5, 3), (4, 5), dtype=torch.float64)
    mask = cdropout.Mask((2, 4, 5), P, 2)

    def function(*x):
        return ct.scaled_dot_product_attention(*x, mask=mask)

    tensors = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


# The factor of the query, the factor or offset of the keys, and the lowest number in attn_mask.
# A factor or an offset of 1 leaves the tensor unchanged.
LARGE = {
    "attn_mask": (1, 1, torch.finfo(torch.float32).min),
    "common offset of the keys": (1, 1000, 0),
    "scores": (30, 30, 0),
}


@pytest.mark.parametrize("name", LARGE)
def test_gradients_with_large_scores(name):
    query_scale, offset, lowest = LARGE[name]
    inputs = random_tensors((2, 60, 16), (2, 70, 16), (2, 70, 16))
    q, k, v = (t.requires_grad_() for t in inputs)
    attn_mask = torch.zeros(60, 70)
    attn_mask[:, 50:] = lowest
    attn_mask[3:5] = lowest
    mask = cdropout.Mask((2, 60, 70), P, 6)

    def gradients(function, dtype):
        tensors = [t.to(dtype) for t in (q, k, v)]
        tensors[1] = tensors[1] * offset if name == "scores" else tensors[1] + (offset - 1)
        tensors[0] = tensors[0] * query_scale
        y = function(*tensors, attn_mask.to(dtype), mask)
        return torch.autograd.grad(y.sin().sum(), (q, k, v))

    actual = gradients(
        lambda q, k, v, m, mask: ct.scaled_dot_product_attention(q, k, v, m, mask=mask),
        torch.float32,
    )
    expected = gradients(
        lambda q, k, v, m, mask: expected_attention(q, k, v, mask, m), torch.float64
    )
    for g, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(g, e, rtol=0.01, atol=0.01 * e.abs().max().item())


def test_first_gradient_does_not_depend_on_create_graph():
    x, k = (t.requires_grad_() for t in random_tensors((4, 4), (4, 4), dtype=torch.float64))
    mask = cdropout.Mask((4, 4), 0.5, seed=3)
    y = ct.scaled_dot_product_attention(x, k, k, x * 2, mask=mask)
    expected = torch.autograd.grad(y.sum(), (x, k), retain_graph=True)
    actual = torch.autograd.grad(y.sum(), (x, k), create_graph=True)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("size", [8, 800])
def test_rows_whose_scores_are_all_minus_infinity_give_zeros(size):
    q, k, v = torch.ones(2, size, 4), torch.full((2, size, 4), -math.inf), torch.ones(2, size, 4)
    assert (ct.scaled_dot_product_attention(q, k, v, dropout_p=0.5) == 0).all()
    with ct.accelerate():
        assert (F.scaled_dot_product_attention(q, k, v, dropout_p=0.5) == 0).all()


@pytest.mark.parametrize("heads", [2, 3])
def test_enable_gqa_with_wrong_heads_of_attn_mask_raises_the_error_of_pytorch(heads):
    q, k = random_tensors((1, 4, 8, 4), (1, 2, 8, 4))
    attn_mask = torch.zeros(1, heads, 8, 8)
    with pytest.raises(RuntimeError, match="must match|broadcast"):
        ct.scaled_dot_product_attention(q, k, k, attn_mask, 0.5, enable_gqa=True)


@pytest.mark.parametrize("p", [0, 1])
def test_dropout_p_that_differs_from_the_mask_raises(p):
    q, k, v = random_tensors((1, 8, 4), (1, 8, 4), (1, 8, 4))
    with pytest.raises(ValueError, match="p"):
        ct.scaled_dot_product_attention(q, k, v, dropout_p=0.3, mask=cdropout.Mask((1, 8, 8), p))


def test_large_and_small_values_neither_overflow_nor_underflow():
    q = torch.full((1, 64, 4), 3.1)
    for sign, value in (1, 1e22), (-1, 1e-26):
        v = torch.full((1, 64, 4), value)
        y = ct.scaled_dot_product_attention(q, sign * q, v, dropout_p=0.5, mask=None)
        assert y.isfinite().all() and (y / value).mean() == pytest.approx(1, abs=0.05)


def test_transforms_of_torch_func():
    q, k, v = random_tensors(*[(2, 3, 6, 4)] * 3, dtype=torch.float64)
    mask = cdropout.Mask((3, 6, 6), P, 2)

    def run(q, k, v):
        return ct.scaled_dot_product_attention(q, k, v, mask=mask)

    y = torch.stack([expected_attention(q[i], k[i], v[i], mask) for i in range(2)])
    torch.testing.assert_close(torch.vmap(run)(q, k, v), y)
    expected = torch.func.grad(lambda *x: expected_attention(*x, mask).sin().sum())(
        q[0], k[0], v[0]
    )
    actual = torch.func.grad(lambda *x: run(*x).sin().sum())(q[0], k[0], v[0])
    torch.testing.assert_close(actual, expected)
    _, tangent = torch.func.jvp(run, (q[0], k[0], v[0]), (q[1], k[1], v[1]))
    _, expected = torch.func.jvp(
        lambda *x: expected_attention(*x, mask), (q[0], k[0], v[0]), (q[1], k[1], v[1])
    )
    torch.testing.assert_close(tangent, expected)
    drawn = torch.vmap(
        lambda q: ct.scaled_dot_product_attention(q, q, q, dropout_p=0.5), randomness="different"
    )(q[:1].expand(2, 3, 6, 4))
    assert not torch.equal(drawn[0], drawn[1])


def test_vmap_of_the_operators():
    q, k, v, bias, gy = random_tensors(
        (2, 3, 6, 4), (3, 5, 4), (3, 2, 5, 4), (2, 6, 5), (2, 3, 6, 4)
    )
    numbers = torch.tensor(9), 1, 0, None, P, None, False, 0.5
    in_dims = 0, None, 1, 0
    samples = [(q[i], k, v[:, i], bias[i]) for i in range(2)]
    forward = torch.vmap(lambda *x: attention.attention_operator(*x, *numbers), in_dims)
    actual = forward(q, k, v, bias)
    expected = [attention.attention_operator(*x, *numbers) for x in samples]
    for a, e in zip(actual, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(e))
    needed = [True] * 4
    backward = torch.vmap(
        lambda gy, s, *x: attention.backward_operator(gy, s, needed, *x, *numbers), (0, 0, *in_dims)
    )
    gradients = backward(gy, actual[1], q, k, v, bias)
    expected = [
        attention.backward_operator(gy[i], actual[1][i], needed, *x, *numbers)
        for i, x in enumerate(samples)
    ]
    for a, e in zip(gradients, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(e))
    seeds = torch.tensor([9, 5])  # the first seed determines one mask for all samples
    draw = torch.vmap(
        lambda s, *x: attention.attention_operator(*x, s, *numbers[1:])[0], (0, *in_dims)
    )
    mask = cdropout.Mask((2, 3, 6, 5), P, 9, 1)
    k, v = k.expand(2, 3, 5, 4), v.movedim(1, 0)
    whole = expected_attention(q, k, v, mask, bias[:, None], scale=0.5)
    torch.testing.assert_close(draw(seeds, q, k[0], v.movedim(0, 1), bias), whole.float())


# ---- graphs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["causal", *slow("floats", "groups")])
def test_compiled_functions_agree_with_eager_mode(form, monkeypatch):
    *shapes, options = FORMS[form]
    inputs = [t.requires_grad_() for t in random_tensors(*shapes)]
    calls = count_operators(monkeypatch)

    def run(q, k, v):
        return ct.scaled_dot_product_attention(q, k, v, dropout_p=P, **options)

    results = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(7)
        y = function(*inputs)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    torch.testing.assert_close(*results)
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize("nesting", [1, *slow(2)])
def test_transforms_within_a_compiled_function(nesting):
    q, k, v = random_tensors(*[(1, 2, 6, 4)] * 3)

    def loss(q):
        return ct.scaled_dot_product_attention(q, k, v, None, P).exp().sum()

    function = torch.func.grad(loss)
    if nesting == 2:
        function = torch.func.grad(lambda q: torch.func.grad(loss)(q).square().sum())
    torch.manual_seed(7)
    expected = function(q)
    torch.manual_seed(7)
    actual = torch.compile(function, backend="aot_eager", fullgraph=True)(q)
    torch.testing.assert_close(actual, expected)
    assert expected.abs().min() > 0


def test_forward_mode_of_the_operator():
    q, k, v = random_tensors(*[(1, 2, 6, 4)] * 3)

    def run(q):
        seed = torch.tensor(3)
        arguments = q, k, v, None, seed, 0, 0, None, P, None, False, 0.5
        return attention.attention_operator(*arguments)[0]

    def expected_run(q):
        mask = cdropout.Mask((1, 2, 6, 6), P, 3)
        return expected_attention(q, k, v, mask, scale=0.5).float()

    _, tangent = torch.func.jvp(run, (q,), (k,))
    _, expected = torch.func.jvp(expected_run, (q,), (k,))
    torch.testing.assert_close(tangent, expected)


def test_compiled_functions_with_generator_or_mask_break_the_graph():
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    mask = cdropout.Mask((2, 3, 40, 30), P, 3)
    expected = ct.scaled_dot_product_attention(q, k, v, mask=mask)

    def run(q, k, v, **source):
        return ct.scaled_dot_product_attention(q, k, v, **source) + 0

    compiled = torch.compile(run, backend="eager")
    torch.testing.assert_close(compiled(q, k, v, mask=mask), expected)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    y = compiled(q, k, v, dropout_p=P, generator=generators[0])
    torch.testing.assert_close(y, run(q, k, v, dropout_p=P, generator=generators[1]))


def test_exported_programs_contain_one_operator():
    class Model(nn.Module):
        def forward(self, q, k, v):
            return ct.scaled_dot_product_attention(q, k, v, dropout_p=P, is_causal=True)

    inputs = tuple(random_tensors(HEADS, KEYS, KEYS))
    program = torch.export.export(Model(), inputs)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets.count("cdropout.attention.default") == 1
    assert not any("softmax" in target or "matmul" in target for target in targets)
    torch.manual_seed(7)
    expected = Model()(*inputs)
    torch.manual_seed(7)
    torch.testing.assert_close(program.module()(*inputs), expected)


def test_torch_fx_records_a_call():
    class Model(nn.Module):
        def forward(self, q):
            return ct.scaled_dot_product_attention(q, q, q, None, P, is_causal=True)

    graph = torch.fx.symbolic_trace(Model())
    (q,) = random_tensors(HEADS)
    torch.manual_seed(7)
    expected = Model()(q)
    torch.manual_seed(7)
    assert torch.equal(graph(q), expected)
    assert ct.scaled_dot_product_attention in [node.target for node in graph.graph.nodes]


def test_torchscript_refuses_or_records_the_function_of_pytorch():
    class Model(nn.Module):
        def forward(self, q):
            return ct.scaled_dot_product_attention(q, q, q, None, P)

    with pytest.raises(NotImplementedError, match="attention cannot be scripted by torch.jit"):
        torch.jit.script(Model())
    (q,) = random_tensors(HEADS)
    traced = torch.jit.trace(Model(), q, check_trace=False)
    assert "aten::scaled_dot_product_attention" in str(traced.graph)


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(heads, threads):
    """With fewer heads than threads, the rows of a tile are divided among the threads."""
    tensors = random_tensors((heads, 300, 8), (heads, 200, 8), (heads, 200, 8))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check_form(*tensors, {"attn_mask": torch.zeros(300, 200)}, torch.float32)
    finally:
        torch.set_num_threads(before)


def test_without_the_functions_of_pytorch_the_whole_matrix_is_computed(monkeypatch):
    assert find_functions("aoti_torch_delete_tensor_object", "missing") == [0, 0]
    tensors = random_tensors(*[HEADS] * 3)
    mask = cdropout.Mask((2, 3, 40, 40), P, 3)
    expected = ct.scaled_dot_product_attention(*tensors, mask=mask)
    monkeypatch.setattr(_attention, "is_available", False)
    calls = count_operators(monkeypatch)
    torch.testing.assert_close(ct.scaled_dot_product_attention(*tensors, mask=mask), expected)
    assert calls == []


@pytest.mark.parametrize("needs_grad", [False, True])
def test_opcheck(needs_grad):
    q, k, v, bias = (
        t.requires_grad_(needs_grad)
        for t in random_tensors((2, 3, 6, 4), (2, 3, 5, 4), (2, 3, 5, 4), (6, 5))
    )
    seed = torch.tensor(3)
    for attn_mask, is_causal in ((None, True), (bias, False)):
        args = q, k, v, attn_mask, seed, 0, 0, None, P, None, is_causal, 0.5
        torch.library.opcheck(
            attention.attention_operator, args,
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )  # fmt: skip


def test_autocast_uses_the_type_of_pytorch():
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    mask = next_mask((2, 3, 40, 30))
    with torch.autocast("cpu", torch.bfloat16):
        y = ct.scaled_dot_product_attention(q, k, v, dropout_p=P)
        assert F.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
    assert_close(y, expected_attention(q, k, v, mask), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        wide = ct.scaled_dot_product_attention(*(t.double() for t in (q, k, v)), dropout_p=P)
    assert wide.dtype == torch.float64


# ---- accelerate ---------------------------------------------------------------------------------


@pytest.fixture
def use_always(monkeypatch):
    """Use the operator for any number of weights."""
    monkeypatch.setattr(attention, "MIN_WEIGHTS", 0)


ATTENTION = {
    "function": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=P),
    "causal": lambda x: F.scaled_dot_product_attention(x, x, x, None, P, True, scale=0.3),
    "groups": lambda x: F.scaled_dot_product_attention(
        x, x[:, :1], x[:, :1], BIAS[0, 0, :30, :30] > 0, dropout_p=P, enable_gqa=True
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_accelerate_uses_the_operator(name, monkeypatch):
    function = ATTENTION[name]
    (x,) = random_tensors(KEYS)
    x.requires_grad_()
    calls = count_operators(monkeypatch)
    results = []
    for smallest in (0, 2**62):  # with 2**62, only dropout is replaced
        monkeypatch.setattr(attention, "MIN_WEIGHTS", smallest)
        with ct.accelerate():
            torch.manual_seed(7)
            y = function(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), x)])
    assert len(calls) == 1
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(attention, "MIN_WEIGHTS", 0)
    function(x)
    assert len(calls) == 1


def test_accelerate_in_modules(use_always, monkeypatch):
    calls = count_operators(monkeypatch)
    attention = nn.MultiheadAttention(8, 2, dropout=P, batch_first=True)
    (x,) = random_tensors((2, 5, 8))
    with ct.accelerate():
        attention(x, x, x, need_weights=False)
        assert len(calls) == 1
        attention(x, x, x)  # returns the weights: only dropout is replaced
        nn.TransformerEncoderLayer(8, 2, batch_first=True)(x)
        attention.eval()(x, x, x, need_weights=False)
    assert len(calls) == 2


def test_accelerate_leaves_other_attention_to_pytorch(use_always, monkeypatch):
    calls = count_operators(monkeypatch)
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    with ct.accelerate():
        assert F.scaled_dot_product_attention(*(t.to("meta") for t in (q, k, v))).is_meta
        y = F.scaled_dot_product_attention(q, k, v)
        assert not F.scaled_dot_product_attention(q, k, v, dropout_p=1.0).any()
        torch.func.grad(lambda q: F.scaled_dot_product_attention(q, k, v, None, P).sum())(q)
        with pytest.raises(RuntimeError, match="to have the same dtype"):
            F.scaled_dot_product_attention(q, k.double(), v, dropout_p=P)
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v))
    assert not calls


def test_accelerate_in_compiled_functions(use_always, monkeypatch):
    (x,) = random_tensors(HEADS)
    calls = count_operators(monkeypatch)
    function = ATTENTION["causal"]
    results = []
    with ct.accelerate():
        for run in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
            torch.manual_seed(7)
            results.append(run(x))
    torch.testing.assert_close(*results)
    assert len(calls) == 2


# ---- errors -------------------------------------------------------------------------------------

ERRORS = {
    "both masks": (HEADS, HEADS, HEADS, {"attn_mask": torch.ones(40, 40), "is_causal": True}),
    "type of mask": (HEADS, HEADS, HEADS, {"attn_mask": torch.ones(40, 40, dtype=torch.long)}),
    "1 dimension": ((8,), HEADS, HEADS, {}),
    "columns": (HEADS, (2, 3, 30, 7), KEYS, {}),
    "heads": (HEADS, (2, 2, 30, 8), (2, 2, 30, 8), {}),
    "groups": (HEADS, (2, 2, 30, 8), (2, 2, 30, 8), {"enable_gqa": True}),
    "shape of mask": (HEADS, KEYS, KEYS, {"attn_mask": torch.ones(3, 40)}),
    "larger mask": (HEADS, KEYS, KEYS, {"attn_mask": torch.ones(5, 1, 1, 40, 30)}),
    "p": (HEADS, HEADS, HEADS, {"dropout_p": 2.0}),
    "negative p": (HEADS, HEADS, HEADS, {"dropout_p": -1.0}),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_pytorch(name):
    *shapes, options = ERRORS[name]
    tensors = random_tensors(*shapes)
    options = {"dropout_p": P, **options}
    state = torch.get_rng_state()
    with pytest.raises((RuntimeError, IndexError)) as expected:
        F.scaled_dot_product_attention(*tensors, **options)
    torch.set_rng_state(state)
    with pytest.raises(type(expected.value)) as actual:
        ct.scaled_dot_product_attention(*tensors, **options)
    if name != "shape of mask":  # PyTorch's message depends on the device
        assert str(actual.value)[:20] == str(expected.value)[:20]
    assert torch.equal(torch.get_rng_state(), state)


def test_types_that_differ_raise_the_error_of_pytorch():
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    with pytest.raises(RuntimeError, match="query, key, and value to have the same dtype"):
        ct.scaled_dot_product_attention(q, k.double(), v, dropout_p=P)


def test_unsuitable_sources_raise():
    q, k, v = random_tensors(HEADS, KEYS, KEYS)
    run = ct.scaled_dot_product_attention
    mask = cdropout.Mask((2, 3, 40, 30), P)
    with pytest.raises(ValueError, match="the mask has the shape"):
        run(q, k, v, mask=mask[:1])
    with pytest.raises(ValueError, match=r"the mask has p=0.3, but p=0.2 was given"):
        run(q, k, v, dropout_p=0.2, mask=mask)
    with pytest.raises(TypeError, match="mask has to be a Mask"):
        run(q, k, v, mask=np.ones(3))
    with pytest.raises(ValueError, match="cannot be combined with generator"):
        run(q, k, v, mask=mask, generator=torch.Generator())
    with pytest.raises(TypeError, match="generator has to be"):
        run(q, k, v, dropout_p=P, generator=3)
    metas = [t.to("meta") for t in (q, k, v)]
    with pytest.raises(NotImplementedError, match="mask= is supported for plain CPU tensors"):
        run(*metas, mask=mask)
    assert run(*metas, dropout_p=P).device.type == "meta"


def test_the_operator_checks_shapes_and_types():
    (q,) = random_tensors((2, 4, 16))
    others = None, torch.tensor(3), 0, 0, None, P, None, False, None
    for k, v in ((q[:1], q[:1]), (q[:, :, :8], q), (q, q[:, :3]), (q, q[0])):
        with pytest.raises(ValueError, match=r"have to be of the shapes \(..., L, E\)"):
            attention.attention_operator(q, k, v, *others)
    many = q.view(*[1] * 40, 2, 4, 16)
    for tensors in ((q, q.double(), q), (q.int(), q.int(), q.int()), (many, many, many)):
        with pytest.raises(TypeError, match="have to be tensors of one floating-point type"):
            attention.attention_operator(*tensors, *others)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("calls", [0, 1, 7])
def test_a_product_that_fails_raises_an_error(calls, threads):
    product = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 4, *[ctypes.c_double] * 2)
    of_pytorch = product(_attention.function_addresses[2])
    left = iter(range(calls))
    fails = product(lambda *arguments: 1 if next(left, None) is None else of_pytorch(*arguments))
    address = ctypes.cast(fails, ctypes.c_void_p).value
    q, k, v = (t.requires_grad_() for t in random_tensors(*[(2, 3, 40, 8)] * 3))
    state, before = torch.get_rng_state(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        _attention.use_functions([
            *_attention.function_addresses[:2], address, *_attention.function_addresses[3:]
        ])  # fmt: skip
        with pytest.raises(RuntimeError, match="PyTorch cannot compute a product of matrices"):
            ct.scaled_dot_product_attention(q, k, v, dropout_p=P)
    finally:
        torch.set_num_threads(before)
        _attention.use_functions(_attention.function_addresses)
    assert torch.equal(torch.get_rng_state(), state)

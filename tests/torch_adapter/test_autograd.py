"""Tests of dropout with autograd, torch.func, compilers, dispatch modes and threads."""

import functools
import sys
import threading

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip
from ..helpers.subprocess_runner import run_with_torch
from ..helpers.torch_calls import needs_compiler, ramp, with_seed

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")

FUNCTIONS = {
    "dropout": lambda x: ct.dropout(x, 0.5),
    "dropout2d": lambda x: ct.dropout2d(x, 0.5),
    "alpha_dropout": lambda x: ct.alpha_dropout(x, 0.5, True),
    "drop_path": lambda x: ct.drop_path(x, 0.5),
    "in place": lambda x: ct.dropout(x * 2, 0.5, inplace=True),
    "p = 1": lambda x: ct.dropout(x, 1.0),
}


# ---- autograd -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck_of_each_function(name):
    function = functools.partial(with_seed, FUNCTIONS[name])
    x = ramp(2, 3, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        function,
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=False,
    )
    assert torch.autograd.gradgradcheck(
        lambda x: function(x).pow(2), x, check_fwd_over_rev=True, check_rev_over_rev=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_backward_accepts_gradients_of_any_layout(dtype):
    x = torch.ones(4, 5, 6, 7, dtype=dtype, requires_grad=True)
    y = ct.dropout(x, 0.5)
    for gradient in (
        torch.ones(1, dtype=dtype).expand_as(x),
        torch.ones_like(x).permute(3, 2, 1, 0),
    ):
        if gradient.shape != y.shape:
            gradient = gradient.permute(3, 2, 1, 0).contiguous(memory_format=torch.channels_last)
        (gx,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
        assert torch.equal(gx, y) and gx.dtype == dtype


def test_dropout_saves_no_tensor_for_backward():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        ct.dropout(torch.ones(1000, requires_grad=True)).sum().backward()
    assert not saved


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_repeats_the_mask(reentrant):
    x = torch.ones(1000, requires_grad=True)
    results = []

    def block(x):
        y = ct.dropout(x.sin(), 0.5)
        results.append(y.detach().clone())
        return y * y

    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
    y.sum().backward()
    assert len(results) == 2 and torch.equal(*results)
    assert torch.equal(x.grad != 0, results[0] != 0)


def test_dropout_under_grad_modes_and_autocast():
    x = torch.ones(100, requires_grad=True)
    with torch.no_grad():
        assert not ct.dropout(x).requires_grad
    with torch.inference_mode():
        assert ct.dropout(x).is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ct.dropout(torch.ones(4, 4) @ torch.ones(4, 4))
    assert y.dtype == torch.bfloat16
    assert not ct.dropout(x.detach()).requires_grad


def test_backward_with_dual_gradient():
    x, gy, tangent = ramp(50).requires_grad_(), ramp(50), ramp(50)
    y = ct.dropout(x, 0.5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(gy, tangent)
        (gx,) = torch.autograd.grad(y, x, dual)
        parts = torch.autograd.forward_ad.unpack_dual(gx)
    scales = (y != 0) * 2.0
    assert torch.equal(parts.primal, gy * scales) and torch.equal(parts.tangent, tangent * scales)


# ---- torch.func ---------------------------------------------------------------------------------


def test_vmap_randomness_determines_the_masks():
    x = torch.ones(50, 40)
    different = torch.vmap(ct.dropout, randomness="different")(x)
    assert len({tuple(row.tolist()) for row in different}) == 50
    same = torch.vmap(ct.dropout, randomness="same")(x)
    assert torch.equal(same, same[:1].expand(50, 40)) and 0 < (same == 0).sum() < 2000
    with pytest.raises(RuntimeError, match="called random operation while in randomness error"):
        torch.vmap(ct.dropout)(x)
    torch.manual_seed(3)  # the seed of the first sample determines the mask of the whole batch
    seeds = torch.vmap(lambda _: torch.randint(2**63 - 1, ()), randomness="different")(x)
    torch.manual_seed(3)
    different = torch.vmap(ct.dropout, randomness="different")(x)
    mask = cd.Mask((50, 40), 0.5, int(seeds[0]))
    assert torch.equal(different, torch.from_numpy(mask.to_scale()))
    assert len(set(seeds.tolist())) == 50
    unbatched = torch.vmap(lambda _: ct.dropout(x[0]), randomness="different")(x)
    assert unbatched.shape == (50, 40) and len({tuple(row.tolist()) for row in unbatched}) == 50
    assert torch.vmap(ct.dropout, in_dims=1, randomness="different")(x).shape == (40, 50)


def test_vmap_of_operator_shifts_broadcast_axes():
    dropout, x = torch.ops.cdropout.dropout.default, torch.ones(3, 50, 8)
    y = torch.vmap(lambda x, seed: dropout(x, seed, 0, 0.5, [1], "scale"))(x, torch.arange(3))
    mask = cd.Mask((3, 50, 8), 0.5, seed=0, strides=(50, 1, 0))  # seed of the first sample, for all
    assert torch.equal(y, torch.from_numpy(mask.to_scale()))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_of_grad_and_grad_of_vmap(randomness):
    def loss(x):
        y = ct.dropout(x, 0.5)
        return (y * y).sum(), y

    x = ramp(6, 40)
    grads, ys = torch.vmap(torch.func.grad(loss, has_aux=True), randomness=randomness)(x)
    assert torch.equal(grads, 4 * ys)

    def total(x):
        losses, ys = torch.vmap(loss, randomness=randomness)(x)
        return losses.sum(), ys

    grads, ys = torch.func.grad(total, has_aux=True)(x)
    assert torch.equal(grads, 4 * ys)


@pytest.mark.parametrize("p, training", [(0.0, True), (0.5, False), (1.0, True)])
def test_jvp_draws_no_seed_if_no_mask_is_needed(p, training):
    x, state, generator = ramp(5), torch.get_rng_state(), cd.Generator(1)
    for options in ({}, {"generator": generator}):
        y, _ = torch.func.jvp(lambda x, o=options: ct.dropout(x, p, training, **o), (x,), (x,))
        assert torch.equal(y, x if p < 1 else torch.zeros_like(x))
    assert torch.equal(torch.get_rng_state(), state) and generator.calls == 0


def test_jvp_with_64_bit_seed():
    x, seed = ramp(64), 2**64 - 3
    generator = cd.Generator(seed)
    y, _ = torch.func.jvp(lambda x: ct.dropout(x, 0.5, generator=generator), (x,), (x,))
    assert torch.equal(y, torch.from_numpy(cd.Mask(64, 0.5, seed).apply(x.numpy())))


def test_vmap_of_dropout_on_another_device_uses_pytorch():
    x, generator = torch.ones(2, 3, device="meta"), cd.Generator(1)
    assert torch.vmap(ct.dropout, randomness="same")(x).device.type == "meta"
    with pytest.raises(NotImplementedError, match="of torch.float32 on meta, which is passed"):
        torch.vmap(lambda x: ct.dropout(x, generator=generator), randomness="same")(x)


def test_jvp_vjp_jacobian_and_hessian_of_dropout():
    x = ramp(12)
    y, tangent = torch.func.jvp(ct.dropout, (x,), (x * 3,))
    assert torch.allclose(tangent, 3 * y)
    y, vjp = torch.func.vjp(ct.dropout, x)
    assert torch.equal(vjp(torch.ones(12, dtype=x.dtype))[0], (y != 0) * 2)
    generator = cd.Generator(1)

    def repeated(x):
        generator.state = {"seed": 1, "calls": 0, "spawned": 0}
        return ct.dropout(x, 0.5, generator=generator)

    jacobian = torch.func.jacrev(repeated)(x)
    assert torch.equal(jacobian, torch.func.jacfwd(repeated, randomness="same")(x))
    assert torch.equal(jacobian, jacobian.diag().diag()) and set(jacobian.diag().tolist()) == {0, 2}
    hessian = torch.func.hessian(lambda x: repeated(x).pow(2).sum())(x)
    assert torch.equal(hessian, 2 * jacobian @ jacobian)


# ---- graphs -------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # 2.14
def test_opcheck_of_dropout():
    x = torch.randn(3, 4, 5, requires_grad=True)
    seed = torch.tensor(5)
    for tensor, broadcast_axes, form in (
        (x, [], "scale"),
        (x.permute(2, 0, 1), [2], "keep"),
        (x.bfloat16(), [0], "scale"),
        (x, [], "alpha"),
    ):
        report = torch.library.opcheck(
            torch.ops.cdropout.dropout.default,
            (tensor.detach().requires_grad_(), seed, 0, 0.5, broadcast_axes, form),
        )
        assert set(report.values()) == {"SUCCESS"}


def test_checkpoint_of_accelerated_model_repeats_the_mask():
    block = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.5))
    x, gradients = torch.randn(5, 8, requires_grad=True), []
    with ct.accelerate():
        for run in (
            block,
            lambda x: torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False),
        ):
            torch.manual_seed(3)
            y = run(x)
            torch.rand(7)  # changes the state of the generator
            gradients.append(torch.autograd.grad(y.sum(), x)[0])
    assert torch.equal(*gradients)


WORKERS = """
import torch
import cdropout.torch as ct

class Dropped(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return ct.dropout(torch.ones(64), 0.5)

runs = []
for seed in (1, 1, 2):
    torch.manual_seed(seed)
    runs.append(torch.cat(list(torch.utils.data.DataLoader(Dropped(), num_workers=2))))
print(len(runs[0].unique(dim=0)), torch.equal(*runs[:2]), torch.equal(*runs[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="requires workers that are forked")
def test_data_loader_workers_draw_different_masks():
    # Use a new process, because other libraries that the tests import warn about forks.
    status, output, errors = run_with_torch(WORKERS)
    assert (status, output) == (0, "4 True False"), errors


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_function_equals_eager(name):
    function = FUNCTIONS[name]
    compiled = torch.compile(lambda x: function(x) * 2, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    torch.manual_seed(1)
    y = compiled(x)
    (gx,) = torch.autograd.grad(y.sum(), x)
    torch.manual_seed(1)
    expected = function(x) * 2
    assert torch.equal(y, expected)
    assert torch.equal(gx, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.slow
@needs_compiler
def test_model_compiled_by_inductor_to_machine_code_equals_eager():
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), ct.Dropout(0.3), torch.nn.ReLU())
    compiled, x = torch.compile(model, fullgraph=True), torch.randn(64, 32, requires_grad=True)
    for seed in (1, 2):
        gradients = []
        for run in (model, compiled):
            torch.manual_seed(seed)
            y = run(x)
            gradients += [y, *torch.autograd.grad(y.sum(), [x, model[0].weight])]
        torch.testing.assert_close(gradients[3:], gradients[:3])


def test_exported_program_draws_a_new_mask_per_call():
    program = torch.export.export(ct.Dropout(0.5), (torch.ones(1000),))
    torch.manual_seed(4)
    first, second = program.module()(torch.ones(1000)), program.module()(torch.ones(1000))
    assert not torch.equal(first, second)
    torch.manual_seed(4)
    assert torch.equal(ct.dropout(torch.ones(1000)), first)


def test_dropout_under_fake_tensor_and_dispatch_modes():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with FakeTensorMode():
        x = torch.ones(3, 4)
        assert ct.dropout(x).shape == (3, 4)
    x = torch.ones(1000, requires_grad=True)
    with FlopCounterMode(display=False):
        y = ct.dropout(x, 0.5)
        assert 400 < (y != 0).sum() < 600
        y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_torchscript_contains_pytorch_dropout():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), ct.Dropout(0.25), ct.AlphaDropout(0.5))
    scripted = torch.jit.script(model)
    graph = str(scripted.inlined_graph)
    assert "aten::dropout" in graph and "aten::alpha_dropout" in graph and "value=0.25" in graph
    assert type(model[1]) is ct.Dropout and scripted(torch.ones(2, 3)).shape == (2, 4)
    traced = torch.jit.trace(lambda x: ct.dropout(x, 0.5), torch.ones(9), check_trace=False)
    assert "aten::dropout" in str(traced.graph)


# ---- threads ------------------------------------------------------------------------------------


def test_threads_draw_different_masks():
    x = torch.ones(256)
    results = [set() for _ in range(4)]

    def work(result):
        for _ in range(500):
            result.add(tuple(ct.dropout(x, 0.5).tolist()))

    threads = [threading.Thread(target=work, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set.union(*results)) == 2000

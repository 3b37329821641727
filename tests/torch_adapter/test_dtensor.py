"""Tests of dropout of DTensors, in which each rank applies a window of one mask."""

import contextlib
import subprocess
import sys

import pytest

import cdropout as cd

from ..helpers.requirements import import_or_skip, slow
from ..helpers.subprocess_runner import FIND_TESTS
from ..helpers.torch_calls import NothingDrawn

torch = import_or_skip("torch")
ct = import_or_skip("cdropout.torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("requires a PyTorch with gloo", allow_module_level=True)

dist, F = torch.distributed, torch.nn.functional
tensor = import_or_skip("torch.distributed.tensor")
DTensor, Shard, Replicate = tensor.DTensor, tensor.Shard, tensor.Replicate
SHAPE = (7, 6, 10)


# ---- processes ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, ranks",
    [
        ("one_shard", 2),
        ("functions", 2),
        ("functions", 3),
        ("two_dimensions", 4),
        ("partial_sums", 2),
        ("tensor_parallel", 2),
        ("data_parallel", 2),
    ],
)
def test_ranks_agree(case, ranks, tmp_path):
    program = FIND_TESTS + "from tests.torch_adapter.distributed_program import run\n"
    processes = []
    for rank in range(ranks):
        script = program + f"run({case!r}, {rank}, {ranks}, {str(tmp_path / 'store')!r})"
        command = [sys.executable, "-P", "-c", script]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, "\n".join(errors)


# ---- all ranks in one process -------------------------------------------------------------------


@pytest.fixture
def on_rank():
    """Return a function that makes this process a rank of a group whose collectives do nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def become(rank, mesh_shape):
        if dist.is_initialized():
            dist.destroy_process_group()
        ranks = torch.Size(mesh_shape).numel()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
        return dist.device_mesh.init_device_mesh("cpu", mesh_shape)

    yield become
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(x, mesh, placements):
    """Return the part of x on this rank; each placement that is a Shard divides x into chunks."""
    for placement, size, position in zip(
        placements, mesh.shape, mesh.get_coordinate(), strict=True
    ):
        if isinstance(placement, Shard):
            chunks = x.chunk(size, placement.dim)
            empty = x.narrow(placement.dim, 0, 0)
            x = chunks[position] if position < len(chunks) else empty
    return x


def as_dtensor(x, mesh, placements):
    local = shard(x, mesh, placements).contiguous()
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
    )


CASES = {
    "shards": ((3,), [Shard(0)]),
    "more ranks than rows": ((5,), [Shard(0)]),
    "last dimension": ((4,), [Shard(2)]),
    "replicated": ((2,), [Replicate()]),
    "two dimensions": ((2, 3), [Shard(0), Shard(1)]),
    "one dimension twice": ((2, 2), [Shard(0), Shard(0)]),
    "reversed": ((2, 2), [Shard(2), Shard(0)]),
    "replicated shards": ((2, 2), [Replicate(), Shard(1)]),
}
FUNCTIONS = {
    "dropout": lambda x, **options: ct.dropout(x, 0.3, **options),
    "dropout1d": lambda x, **options: ct.dropout1d(x, 0.3, **options),
    "feature_alpha": lambda x, **o: ct.feature_alpha_dropout(x, 0.3, True, **o),
    "drop_path": lambda x, **options: ct.drop_path(x, 0.3, **options),
}


@pytest.mark.parametrize("name", ["dropout", *slow(*list(FUNCTIONS)[1:])])
@pytest.mark.parametrize("case", CASES)
def test_each_rank_applies_the_window_of_its_shard(case, name, on_rank):
    mesh_shape, placements = CASES[case]
    x = torch.randn(SHAPE)
    torch.manual_seed(3)
    expected = FUNCTIONS[name](x)
    for rank in range(torch.Size(mesh_shape).numel()):
        mesh = on_rank(rank, mesh_shape)
        part = as_dtensor(x, mesh, placements).requires_grad_()
        torch.manual_seed(3)
        y = FUNCTIONS[name](part)
        assert y.shape == x.shape and y.placements == tuple(placements)
        assert torch.equal(y.to_local(), shard(expected, mesh, placements))


@pytest.mark.parametrize("dtype", [torch.float64, *slow(torch.float16, torch.bfloat16)])
@pytest.mark.parametrize("kind", ["mask", "generator"])
def test_mask_and_generator(kind, dtype, on_rank):
    x = torch.randn(SHAPE, dtype=dtype)
    mask = cd.Generator(4).next_mask(SHAPE, 0.3)
    mesh = on_rank(1, (3,))
    options = {"mask": mask} if kind == "mask" else {"generator": cd.Generator(4)}
    with NothingDrawn():
        y = ct.dropout(as_dtensor(x, mesh, [Shard(0)]), 0.3, **options)
    assert torch.equal(y.to_local(), ct.dropout(x, mask=mask)[3:6])


def test_call_number_can_exceed_int64(on_rank):
    x = torch.randn(SHAPE)
    generator = cd.Generator(4)
    generator.state = {"seed": 4, "calls": 2**64 - 2, "spawned": 0}
    y = ct.dropout(as_dtensor(x, on_rank(1, (3,)), [Shard(0)]), 0.3, generator=generator)
    mask = cd.Mask(SHAPE, 0.3, seed=4, call=2**64 - 2)
    assert torch.equal(y.to_local(), ct.dropout(x, mask=mask)[3:6])


@pytest.mark.parametrize("needs_grad", [False, True])
def test_input_of_a_pending_collective(needs_grad, on_rank):
    local = torch.randn(4, 6, requires_grad=needs_grad)
    mesh = on_rank(0, (2,))

    def redistribute():
        x = DTensor.from_local(local, mesh, [tensor.Partial()])
        return x.redistribute(placements=[Replicate()], async_op=True)

    y = ct.dropout(redistribute(), mask=cd.Mask((4, 6), 0.3))
    expected = ct.dropout(redistribute().to_local() * 1, mask=cd.Mask((4, 6), 0.3))
    assert type(y.to_local()) is torch.Tensor and torch.equal(y.to_local(), expected)
    if needs_grad:
        (gx,) = torch.autograd.grad(y.to_local().sum(), local)
        assert torch.equal(gx, torch.autograd.grad(expected.sum(), local)[0])
    with ct.accelerate():
        y = F.dropout(redistribute(), 0.5, inplace=not needs_grad)
    assert set((y.to_local() / local).unique().tolist()) <= {0.0, 2.0}


def test_a_call_has_one_collective_and_draws_one_seed(on_rank, monkeypatch):
    mesh, calls = on_rank(0, (2,)), []
    monkeypatch.setattr(dist, "broadcast", lambda *args, **kwargs: calls.append(args))
    x, plain = as_dtensor(torch.ones(SHAPE), mesh, [Shard(0)]), torch.ones(5)
    torch.manual_seed(3)
    ct.dropout(x)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    ct.dropout(plain)
    assert torch.equal(torch.get_rng_state(), after) and len(calls) == 1
    with NothingDrawn():
        assert ct.dropout(x, 0.0) is x and ct.dropout(x, training=False) is x
        ct.dropout(x, mask=cd.Mask(SHAPE, 0.3))
    assert len(calls) == 1


def test_error_of_the_broadcast_leaves_the_generator_unchanged(on_rank, monkeypatch):
    x = as_dtensor(torch.ones(SHAPE), on_rank(0, (2,)), [Shard(0)])

    def fail(*_args, **_options):
        raise RuntimeError("connection closed")

    monkeypatch.setattr(dist, "broadcast", fail)
    for options in ({}, {"generator": cd.Generator(1)}):
        with (
            NothingDrawn(options.get("generator")),
            pytest.raises(RuntimeError, match="connection closed"),
        ):
            ct.dropout(x, 0.5, **options)


def test_invalid_arguments(on_rank):
    mesh = on_rank(0, (2,))
    x = as_dtensor(torch.ones(SHAPE), mesh, [Shard(0)])
    mask = cd.Mask(SHAPE, 0.3)
    with pytest.raises(ValueError, match="mask= cannot be combined with generator"):
        ct.dropout(x, mask=mask, generator=cd.Generator(1))
    with pytest.raises(ValueError, match=r"the mask has the shape \(4, 6, 10\), but x has \(7, 6"):
        ct.dropout(x, mask=cd.Mask((4, 6, 10), 0.3))
    meta = as_dtensor(torch.ones(SHAPE, device="meta"), mesh, [Shard(0)])
    with pytest.raises(NotImplementedError, match="but got a DTensor of torch.float32 on meta"):
        ct.dropout(meta, mask=mask)
    from torch.distributed.tensor.placement_types import _StridedShard

    strided = DTensor.from_local(
        torch.ones(4, 6), mesh, [_StridedShard(0, split_factor=2)], run_check=False
    )
    with NothingDrawn(), pytest.raises(NotImplementedError, match="placements .*: redistribute it"):
        ct.dropout(strided)


@pytest.mark.parametrize("name", ["function", *slow("accelerate")])
def test_compiled_function_breaks_the_graph(name, on_rank):
    x = as_dtensor(torch.randn(SHAPE), on_rank(1, (2,)), [Shard(0)])
    dropout, context = {
        "function": (ct.dropout, contextlib.nullcontext()),
        "accelerate": (F.dropout, ct.accelerate()),
    }[name]

    def function(x):
        return dropout(x, 0.3)

    with context:
        torch.manual_seed(3)
        expected = function(x)
        torch.manual_seed(3)
        compiled = torch.compile(function, backend="aot_eager")(x)
        assert torch.equal(compiled.to_local(), expected.to_local())
        torch._dynamo.reset()
        whole = torch.compile(function, backend="aot_eager", fullgraph=True)
        message = "dropout of a DTensor cannot be traced: compile it without fullgraph=True"
        with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
            whole(x)

"""Cases that test_dtensor.py runs in one process per rank."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

import cdropout as cd
import cdropout.torch as ct

SHAPE = (7, 6, 10)  # 7 rows cannot be divided into 2 or 4 shards of equal size


def whole(function, seed):
    """Return the result and the gradient of the function for a tensor that is not sharded."""
    torch.manual_seed(seed)
    x = torch.linspace(-1, 2, 420).reshape(SHAPE).requires_grad_()
    y = function(x)
    y.square().sum().backward()
    return y.detach(), x.grad


def sharded(function, seed, mesh, placements):
    """Return the gathered result and gradient of a DTensor; only rank 0 has the seed of `whole`."""
    torch.manual_seed(seed + 100 * dist.get_rank())
    values = torch.linspace(-1, 2, 420).reshape(SHAPE)
    x = distribute_tensor(values, mesh, placements).requires_grad_()
    y = function(x)
    assert isinstance(y, DTensor) and y.placements == tuple(placements)
    y.square().sum().backward()
    return y.detach().full_tensor(), x.grad.full_tensor()


FUNCTIONS = {
    "dropout": lambda x: ct.dropout(x, 0.3),
    "in place": lambda x: ct.dropout(x * 1, 0.3, inplace=True),
    "dropout1d": lambda x: ct.dropout1d(x, 0.3),
    "alpha_dropout": lambda x: ct.alpha_dropout(x, 0.3, True),
    "drop_path": lambda x: ct.drop_path(x, 0.3, scale_by_keep=False),
    "p = 1": lambda x: ct.dropout(x, 1.0),
    "module": lambda x: ct.Dropout(0.3)(x),
    "generator": lambda x: ct.dropout(x, 0.3, generator=cd.Generator(5)),
    "mask": lambda x: ct.dropout(x, mask=cd.Mask(SHAPE, 0.3, seed=5)),
    "twice": lambda x: ct.dropout(ct.dropout(x, 0.3), 0.3),
    "checkpoint": lambda x: checkpoint(lambda x: ct.dropout(x, 0.3).exp(), x, use_reentrant=False),
    "accelerate": ct.accelerate()(lambda x: F.dropout(x, 0.3)),
    "bias_dropout_add": lambda x: ct.bias_dropout_add(x, None, x.detach(), 0.3),
}


def check(name, mesh, placements):
    for seed in range(2):
        expected = whole(FUNCTIONS[name], seed)
        result = sharded(FUNCTIONS[name], seed, mesh, placements)
        for a, b in zip(result, expected, strict=True):
            assert torch.equal(a, b), (name, placements)


def one_shard():
    check("dropout", init_device_mesh("cpu", (dist.get_world_size(),)), [Shard(0)])


def functions():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in FUNCTIONS:
        for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
            check(name, mesh, [placement])


def two_dimensions():
    mesh = init_device_mesh("cpu", (2, 2))
    kinds = Shard(0), Shard(1), Shard(2), Replicate()
    for placements in [(a, b) for a in kinds for b in kinds]:
        for name in ("dropout", "dropout1d"):
            check(name, mesh, placements)


def partial_sums():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    part = torch.full((5, 6), 1.0 + dist.get_rank())
    x = DTensor.from_local(part, mesh, [Partial()])
    torch.manual_seed(3)
    y = ct.dropout(x, 0.5)
    torch.manual_seed(3)
    total = torch.full((5, 6), sum(1.0 + rank for rank in range(dist.get_world_size())))
    assert torch.equal(y.full_tensor(), ct.dropout(total, 0.5))
    try:
        ct.dropout(x, 0.5, inplace=True)
    except NotImplementedError as error:
        assert "in place does not support a DTensor with the placements" in str(error)
    else:
        raise AssertionError("no error")


def tensor_parallel():
    """Check that a block that shards the input of dropout gives the results of one process."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    def block():
        torch.manual_seed(0)
        return nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 8), nn.Dropout(0.3), nn.Linear(8, 10))

    values = torch.linspace(-1, 2, 420).reshape(SHAPE)[:6]
    plan = {
        "0": SequenceParallel(),
        "1": ColwiseParallel(input_layouts=Shard(1), use_local_output=False),
        "3": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    results = []
    for parallel in (False, True):
        model = block()
        ct.convert(model)
        if parallel:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            model = parallelize_module(model, mesh, plan)
        torch.manual_seed(5)
        y = model(distribute_tensor(values, mesh, [Shard(1)]) if parallel else values)
        y.square().sum().backward()
        found = [y, *[parameter.grad for parameter in model.parameters()]]
        results.append([t.full_tensor() if isinstance(t, DTensor) else t for t in found])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def train(wrap):
    """Train a model in which each rank draws its own masks; return the parameters."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), ct.Dropout(0.2), nn.Linear(64, 1))
    kept = []
    model[2].register_forward_hook(lambda _m, _x, y: kept.append(y.detach() != 0))
    parallel = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    torch.manual_seed(dist.get_rank())
    x = torch.ones(40, 10)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(parallel(x), x[:, :1] * 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    masks = [torch.empty_like(kept[-1], dtype=torch.uint8) for _ in range(dist.get_world_size())]
    dist.all_gather(masks, kept[-1].to(torch.uint8))
    assert not torch.equal(masks[0], masks[1])
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]


def data_parallel():
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    for wrap in (DistributedDataParallel, fully_shard):
        numbers = torch.cat([p.detach().flatten() for p in train(wrap)])
        others = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
        dist.all_gather(others, numbers)
        assert all(torch.equal(numbers, other) for other in others)


def run(case, rank, ranks, file):
    """Run a case on one rank; raise an error if the case fails."""
    torch.set_num_threads(1)
    store = Path(file).as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    globals()[case]()
    dist.barrier()
    dist.destroy_process_group()

"""Share one dropout mask among two processes, then train with a different mask per process.

    python examples/torch_distributed.py

First, each rank of a gloo group draws its window of one global mask, which is given as a `Mask`, or
drawn by dropout of a DTensor. The gathered results are identical to those of a single process. Then
DistributedDataParallel and fully_shard train a model on both ranks, where each rank draws its own
masks. The program requires PyTorch.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import cdropout
import cdropout.torch

RANKS, SHAPE, STEPS = 2, (1000, 333), 60
MASK = cdropout.Mask(SHAPE, p=0.1, seed=42)  # mask of the whole batch
P = 0.5  # probability in the trained model


def forward_and_backward(rows):
    """Apply dropout to rows of the batch; return a tensor of the result and of the gradient.

    The loss is half the sum of the squares of the result.
    """
    batch = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x = batch[rows].requires_grad_()
    y = cdropout.torch.dropout(x, mask=MASK[rows])
    (y.square().sum() / 2).backward()
    return torch.stack([y.detach(), x.grad])


def gather(part):
    """Return the tensors of all ranks, in the order of the ranks."""
    parts = [torch.empty_like(part) for _ in range(RANKS)]
    dist.all_gather(parts, part)
    return parts


def share_one_mask(rank):
    """Raise an AssertionError if the result of all ranks differs from that of one process."""
    size = SHAPE[0] // RANKS
    parts = gather(forward_and_backward(slice(rank * size, (rank + 1) * size)))
    whole = forward_and_backward(slice(None))
    if not torch.equal(torch.cat(parts, dim=1), whole):
        raise AssertionError("the ranks' windows do not make up the single-process result")
    if rank == 0:
        print(f"One mask on {RANKS} ranks: forward and backward are identical to one process.")


def share_one_mask_by_a_dtensor(rank):
    """Raise an AssertionError if dropout of a DTensor differs from that of one process."""
    mesh = init_device_mesh("cpu", (RANKS,))
    torch.manual_seed(rank)  # the seed that the first rank draws replaces those of other ranks
    sharded = distribute_tensor(torch.ones(SHAPE), mesh, [Shard(0)])
    gathered = cdropout.torch.dropout(sharded, P).full_tensor()
    torch.manual_seed(0)
    if not torch.equal(gathered, cdropout.torch.dropout(torch.ones(SHAPE), P)):
        raise AssertionError("dropout of the DTensor differs from the single-process result")
    if rank == 0:
        print("A DTensor: the gathered result is identical to one process.")


def agreement_of_masks():
    """Return the fraction of elements that are kept on both ranks or dropped on both."""
    kept = nn.functional.dropout(torch.ones(100_000), P) > 0
    first, second = gather(kept.to(torch.uint8))
    return (first == second).double().mean().item()


def train(rank, name, parallelize):
    """Train a model to compute a linear function; the ranks draw different batches."""
    torch.manual_seed(0)  # the same function on both ranks
    function = torch.randn(32, 1)
    torch.seed()  # different random numbers per rank, which is the default
    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Dropout(P), nn.Linear(256, 1))
    distributed = parallelize(model)
    optimizer = torch.optim.Adam(distributed.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(64, 32)
        loss = nn.functional.mse_loss(distributed(x), x @ function)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    full = [w.full_tensor() if isinstance(w, DTensor) else w for w in model.parameters()]
    weights = gather(nn.utils.parameters_to_vector(full).detach())
    if rank == 0:
        print(f"{name}: the loss fell from {losses[0]:.2f} to {losses[-1]:.2f};", end=" ")
        print(f"weights equal on all ranks: {torch.equal(*weights)}.")


def run_rank(rank, folder):
    """Run the part of the example for one rank."""
    store = (Path(folder) / "store").as_uri()  # a file, because a port can be in use
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    share_one_mask(rank)
    share_one_mask_by_a_dtensor(rank)
    torch.seed()  # different random numbers per rank, which is the default
    with cdropout.torch.accelerate():
        fractions = [agreement_of_masks()]  # before any seed is set
        train(rank, "DDP", DistributedDataParallel)
        train(rank, "FSDP", fully_shard)
        torch.manual_seed(7)
        fractions.append(agreement_of_masks())
    if rank == 0:
        print(
            f"The masks of the ranks agree in {fractions[0]:.1%} of the elements, as expected "
            f"by chance; after manual_seed(7) on both ranks, in {fractions[1]:.1%}."
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run_rank, (folder,), nprocs=RANKS)

"""Two processes share one dropout mask, and then train with masks of their own.

    python examples/torch_distributed.py

First each rank of a gloo group draws its window of one global mask: what is gathered, forward and
backward, equals a single process's result to the bit. Then DistributedDataParallel trains a model
on both, where each rank's generator gives masks of its own. It needs PyTorch.
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import cdropout
import cdropout.torch

RANKS, SHAPE, STEPS = 2, (1000, 333), 60
MASK = cdropout.Mask(SHAPE, p=0.1, seed=42)  # of the whole batch
P = 0.5  # of the model that is trained


def forward_and_backward(rows):
    """Return the rows of the dropped batch, and of the gradient of half the sum of its squares."""
    batch = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x = batch[rows].requires_grad_()
    y = cdropout.torch.dropout(x, mask=MASK[rows])
    (y.square().sum() / 2).backward()
    return torch.stack([y.detach(), x.grad])


def gathered(part):
    """Return the tensors of all ranks, in their order."""
    parts = [torch.empty_like(part) for _ in range(RANKS)]
    dist.all_gather(parts, part)
    return parts


def share_one_mask(rank):
    """Compare what the ranks computed with what one process computes."""
    size = SHAPE[0] // RANKS
    parts = gathered(forward_and_backward(slice(rank * size, (rank + 1) * size)))
    whole = forward_and_backward(slice(None))
    if not torch.equal(torch.cat(parts, dim=1), whole):
        raise AssertionError("the ranks' windows do not make up the single-process result")
    if rank == 0:
        print(f"One mask on {RANKS} ranks: forward and backward equal one process's, bit for bit.")


def masks_agree():
    """Return the share of elements that are kept on both ranks or dropped on both."""
    kept = nn.functional.dropout(torch.ones(100_000), P) > 0
    first, second = gathered(kept.to(torch.uint8))
    return (first == second).double().mean().item()


def train(rank):
    """Let the ranks learn a linear function together, each from examples of its own."""
    torch.manual_seed(0)  # the same function on both
    function = torch.randn(32, 1)
    torch.seed()  # from here on each rank's numbers are its own again, as they are by default
    model = nn.Sequential(nn.Linear(32, 256), nn.ReLU(), nn.Dropout(P), nn.Linear(256, 1))
    shared = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(shared.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(64, 32)
        loss = nn.functional.mse_loss(shared(x), x @ function)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    weights = gathered(nn.utils.parameters_to_vector(model.parameters()).detach())
    if rank == 0:
        print(f"DDP: the loss fell from {losses[0]:.2f} to {losses[-1]:.2f};", end=" ")
        print(f"weights equal on all ranks: {torch.equal(*weights)}.")


def work(rank, folder):
    """What one process does."""
    store = (Path(folder) / "store").as_uri()  # a file: no port that another could hold
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    share_one_mask(rank)
    with cdropout.torch.accelerate():
        shares = [masks_agree()]  # before any seed is set
        train(rank)
        torch.manual_seed(7)
        shares.append(masks_agree())
    if rank == 0:
        print(
            f"Masks of the ranks agree in {shares[0]:.1%} of the elements, as chance has it;",
            end=" ",
        )
        print(f"after manual_seed(7) on both, in {shares[1]:.1%}.")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (folder,), nprocs=RANKS)

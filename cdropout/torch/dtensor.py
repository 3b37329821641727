"""Dropout of DTensors, whose ranks apply windows of one mask.

The mask has the shape of the whole tensor. Each rank applies the window that its shard covers, so
that the result does not depend on the mesh or the placements. Every rank of the mesh draws a seed
from its own generator, as for an ordinary tensor. Each call then broadcasts the seed and the call
number of the first rank, and all ranks use them. The generators therefore need not be in the same
state.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from cdropout._core.mask import Mask, broadcast_strides, check_mask, check_not_given
from cdropout.torch.autograd import (
    Source,
    apply_given_mask,
    implementation_for,
    is_traced,
    next_seed,
    restore_on_error,
)
from cdropout.torch.operators import UINT64_MAX


def dropout_of_dtensor(
    x: DTensor,
    p: float,
    inplace: bool,
    generator: Source,
    broadcast_axes: tuple[int, ...],
    form: str,
    mask: Mask | None = None,
) -> Tensor:
    """Return x with a new or given mask of its global shape applied. See `apply_dropout`."""
    if mask is not None:
        check_not_given("generator", generator)
        check_mask(mask, tuple(x.shape), broadcast_axes, p)
    elif p == 0 or x.numel() == 0:
        return x
    if is_traced(x._local_tensor):
        raise NotImplementedError(
            "dropout of a DTensor cannot be traced: compile it without fullgraph=True"
        )
    if any(isinstance(placement, _StridedShard) for placement in x.placements):
        raise NotImplementedError(
            f"dropout of a DTensor does not support the placements {x.placements}: redistribute it"
        )
    if any(isinstance(placement, Partial) for placement in x.placements):
        if inplace:
            raise NotImplementedError(
                f"dropout in place does not support a DTensor with the placements {x.placements}: "
                "call it out of place, which redistributes the sums"
            )
        whole = [Replicate() if isinstance(q, Partial) else q for q in x.placements]
        x = x.redistribute(placements=whole)

    def apply(mask: Mask) -> Tensor:
        y = _apply_window(x, mask, form)
        return x.copy_(y) if inplace else y

    if mask is not None:
        return apply(mask)
    shape = tuple(x.shape)
    strides = broadcast_strides(shape, broadcast_axes)

    def agree_and_apply(drawn: tuple[Tensor, int]) -> Tensor:
        seed, call = _agree(x.device_mesh, *drawn)
        return apply(Mask(shape, p, seed, call, 0, strides))

    return restore_on_error(generator, lambda: next_seed(p, generator), agree_and_apply)


def _agree(mesh: DeviceMesh, seed: Tensor, call: int) -> tuple[int, int]:
    """Return the seed and the call number of the first rank of the mesh."""
    numbers = torch.stack([seed, torch.tensor(call, dtype=torch.int64)])
    if mesh.get_coordinate() is not None:
        for axis in range(mesh.ndim):
            if mesh.size(axis) > 1:
                dist.broadcast(numbers, group=mesh.get_group(axis), group_src=0)
    return int(numbers[0].item()) & UINT64_MAX, int(numbers[1].item()) & UINT64_MAX


def _apply_window(x: DTensor, mask: Mask, form: str) -> DTensor:
    """Return x with a mask of the global shape applied."""
    if isinstance(x._local_tensor, AsyncCollectiveTensor):  # the result of a pending collective
        x._local_tensor = x._local_tensor.trigger_wait()
    local = x.to_local()
    if local.numel() == 0:
        y = local * 1
    else:
        _, offset = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
        index = tuple(slice(a, a + n) for a, n in zip(offset, local.shape, strict=True))
        implementation = implementation_for(local)
        if implementation is None:
            raise NotImplementedError("dropout of a DTensor cannot be traced or transformed")
        y = apply_given_mask(implementation, local, mask[index], False, form)
    return DTensor.from_local(
        y, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
    )

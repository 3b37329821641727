"""The partitioning of sharded arrays: each device draws its window of the mask.

In a program for several devices, the custom call has one of the names in `TARGETS`. XLA calls
`_partition` and replaces the custom call by the program that `_partition` returns. Each device
executes this program on its shards. The program contains the custom call ``cdropout`` with the
window of the mask that belongs to the shard.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jax.interpreters import mlir
from jaxlib import xla_client

MAX_AXES = 28  # NumPy 1 allows 32 axes, and the arrays of devices have more axes than x
REPLICATED = xla_client.OpSharding.Type.REPLICATED
ALIAS = (
    "output_operand_aliases = [#stablehlo.output_operand_alias<"
    "output_tuple_indices = [], operand_index = 1, operand_tuple_indices = []>], "
)
TARGETS = {False: "cdropout_sharded", True: "cdropout_sharded_inplace"}
"""The name of the custom call per value of `inplace`. XLA passes no aliases to `_partition`."""


def register_partitioner() -> None:
    """Register the functions that decide how XLA partitions the custom calls."""
    for inplace, target in TARGETS.items():
        xla_client.register_custom_call_partitioner(
            target,
            lambda sharding, *_: sharding,  # a later operation may choose the sharding
            partial(_partition, inplace),
            lambda _, shardings, *__: shardings[1],  # otherwise the result has the sharding of x
            can_side_effecting_have_replicated_sharding=True,
        )


def set_sharding_rule(call: Any, key: Any, x: Any, p: Any, window: Any) -> None:
    """Set the rule with which Shardy propagates shardings through a custom call.

    The axes of the result are those of x. The first axes of x are those of the keys. Lengths that
    are 0 or known only at run time cannot be part of a rule. JAX before 0.7 does not use Shardy by
    default, and rejects the rule.
    """
    names, lengths = _factor_names(x.ndim + 4), list(x.shape)
    axes, others = names[: x.ndim], iter(names[x.ndim :])

    def mapping(operand: Any, batch_ndim: int) -> str:
        own_lengths = operand.shape[batch_ndim:]
        lengths.extend(own_lengths)
        return f"[{', '.join([*axes[:batch_ndim], *(next(others) for _ in own_lengths)])}]"

    p_batch_ndim = p.ndim - (p.dtype == np.uint32)
    operands = [(key, key.ndim - 1), (x, x.ndim), (p, p_batch_ndim), (window, 0)]
    mappings = ", ".join(mapping(*operand) for operand in operands)
    if (
        getattr(jax.config, "jax_use_shardy_partitioner", False)
        and jax.__version_info__ >= (0, 7)
        and all(isinstance(length, int) and length for length in lengths)
    ):
        sizes = ", ".join(f"{name}={length}" for name, length in zip(names, lengths, strict=False))
        call.attributes["sdy.sharding_rule"] = mlir.ir.Attribute.parse(
            f"#sdy.op_sharding_rule<({mappings})->([{', '.join(axes)}]) {{{sizes}}}, custom>"
        )


def _factor_names(count: int) -> list[str]:
    """Return the first `count` names of factors in Shardy: i, ..., z, z_1, z_2, and so on."""
    return [*"ijklmnopqrstuvwxyz", *(f"z_{i}" for i in range(1, count))][:count]


# ---- the partitioner ----------------------------------------------------------------------------


def _partition(
    inplace: bool, shapes: Any, shardings: Any, _: Any, sharding_of_result: Any, __: Any
) -> tuple[bytes, list[Any], Any]:
    """Return the program that each device executes, and the shardings of operands and result."""
    if sharding_of_result.is_manual():  # in shard_map, the operands are already those of a device
        return _make_program(inplace, shapes, None), list(shardings), sharding_of_result
    key, x, p = (tuple(shape.dimensions()) for shape in shapes[:3])
    ndim, key_ndim = len(x), len(key) - 1
    devices, kinds = max(
        (_tiling(sharding, ndim) for sharding in (shardings[1], sharding_of_result)),
        key=lambda tiling: np.prod(tiling[0].shape[:ndim]),
    )
    # XLA pads the shards along an axis that it does not divide evenly. A padded shard exceeds the
    # mask. Only the first axis of a mask may be padded, since its length does not affect the draws.
    axes = [i for i in range(ndim) if i == key_ndim or x[i] % devices.shape[i] == 0]
    batch = [i for i in axes if i < key_ndim]
    one_p = len(p) == (shapes[2].numpy_dtype() == np.uint32)
    axes_of_operands: tuple[list[int], ...] = batch, axes, [] if one_p else batch, []
    operands = [
        _shard(devices, kinds, of_operand, len(shape.dimensions()))
        for of_operand, shape in zip(axes_of_operands, shapes, strict=True)
    ]
    shards = [sharding.tile(shape) for sharding, shape in zip(operands, shapes, strict=True)]
    shard = tuple(shards[1].dimensions())
    windows = None
    if shard[key_ndim:] != x[key_ndim:]:
        lengths, of_shard = (np.array(n[key_ndim:], np.uint64) for n in (x, shard))
        tiles = np.argwhere(devices >= 0)[:, key_ndim:ndim].astype(np.uint64)
        offsets = tiles * np.where(of_shard == lengths, np.uint64(0), of_shard)
        windows = np.full((devices.size + 1, offsets.shape[1], 2), 2**64 - 1, np.uint64)
        windows[devices.ravel(), :, 0] = offsets
        windows[devices.ravel(), :, 1] = np.maximum(lengths, offsets + of_shard)
    return _make_program(inplace, shards, windows), operands, operands[1]


def _tiling(sharding: Any, ndim: int) -> tuple[Any, list[Any]]:
    """Return an array with the devices of each tile of x or y, and the kinds of additional axes.

    The first axes of this array are those of x. The devices along its additional axes hold the same
    tile. If the sharding has no tiles, the array has one element and no additional axes.
    """
    if not sharding.is_tiled():
        return np.zeros((1,) * ndim, np.int64), []
    devices = np.reshape(sharding.tile_assignment_devices(), sharding.tile_assignment_dimensions())
    return devices, sharding.subgroup_types() or [REPLICATED] * (devices.ndim - ndim)


def _shard(devices: Any, kinds: list[Any], axes: list[int], ndim: int) -> Any:
    """Return the sharding of an operand with `ndim` axes, of which only `axes` are tiled."""
    if devices.size == 1:
        return xla_client.HloSharding.replicate()
    x_ndim = devices.ndim - len(kinds)
    others = [i for i in range(x_ndim) if i not in axes]
    shape = [devices.shape[i] if i in axes else 1 for i in range(ndim)]
    ordered = devices.transpose(*axes, *others, *range(x_ndim, devices.ndim))
    return xla_client.HloSharding.subgroup_with_device_ordering(
        ordered.reshape(*shape, -1, *devices.shape[x_ndim:]).copy(), [REPLICATED, *kinds]
    )


# ---- the program of each device -----------------------------------------------------------------

TYPES = {"uint32": "ui32", "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}


def _make_program(inplace: bool, shapes: Any, windows: Any) -> bytes:
    """Return a program in StableHLO that executes the custom call.

    `windows` contains an offset and a length per device and axis. They replace the values of the
    operand `window`, except along broadcast axes. If `windows` is None, the operand is unchanged.

    The last window is not part of any mask, so that the custom call raises an error. A device has
    this window if its number is too high. This occurs if an exported program runs inside shard_map
    and only some axes of the mesh are manual: XLA partitions the program over the other axes, but
    partition_id is the number of a device in the whole mesh.
    """
    key, x, p, window = types = [_type(shape) for shape in shapes]
    layouts = [_layout(len(shape.dimensions())) for shape in shapes]
    select, selected = "", "%window"
    if windows is not None:
        select, selected = _select_window(windows, window), "%part"
    return f"""
module @dropout {{
  func.func public @main(%key: {key}, %x: {x}, %p: {p}, %window: {window}) -> {x} {{
    {select}
    %y = stablehlo.custom_call @cdropout(%key, %x, %p, {selected}) {{
      api_version = 4 : i32, backend_config = {{}}, {ALIAS if inplace else ""}
      operand_layouts = [{", ".join(layouts)}], result_layouts = [{layouts[1]}]
    }} : ({", ".join(types)}) -> {x}
    return %y : {x}
  }}
}}""".encode()


def _select_window(windows: Any, window: str) -> str:
    """Return the operations that compute %part, the operand `window` of a device.

    If the number of the device is too high, dynamic_slice selects the last window.
    """
    count, n, _ = windows.shape
    halves = windows.astype(">u8").view(">u4").tolist()
    one, all_windows = f"tensor<1x{n}x4xui32>", f"tensor<{count}x{n}x4xui32>"
    scalar, lengths, mask = "tensor<ui32>", f"tensor<{n}x1xui32>", f"tensor<{n}x4xi1>"
    return f"""
    %windows = stablehlo.constant dense<{halves}> : {all_windows}
    %device = stablehlo.partition_id : {scalar}
    %0 = stablehlo.constant dense<0> : {scalar}
    %1 = stablehlo.dynamic_slice %windows, %device, %0, %0, sizes = [1, {n}, 4]
      : ({all_windows}, {scalar}, {scalar}, {scalar}) -> {one}
    %2 = stablehlo.reshape %1 : ({one}) -> {window}
    %3 = stablehlo.slice %window [0:{n}, 3:4] : ({window}) -> {lengths}
    %4 = stablehlo.broadcast_in_dim %3, dims = [0, 1] : ({lengths}) -> {window}
    %5 = stablehlo.broadcast_in_dim %0, dims = [] : ({scalar}) -> {window}
    %6 = stablehlo.compare EQ, %4, %5 : ({window}, {window}) -> {mask}
    %part = stablehlo.select %6, %2, %window : {mask}, {window}"""


def _type(shape: Any) -> str:
    """Return the type of an array in StableHLO."""
    lengths = "".join(f"{length}x" for length in shape.dimensions())
    return f"tensor<{lengths}{TYPES[shape.numpy_dtype().name]}>"


def _layout(ndim: int) -> str:
    """Return the layout of an array in C order in StableHLO."""
    return f"dense<{[*range(ndim)][::-1]}> : tensor<{ndim}xindex>"

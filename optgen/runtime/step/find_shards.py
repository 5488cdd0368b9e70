"""Finds the parameters that processes have shards of: DTensors by their placements, and the flat shards of FSDP1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.core.shards import Division, Shard, is_dtensor, local_tensor
from optgen.runtime.step.fsdp1 import flat_shards


def find_shards(name: str, params: Sequence[Tensor]) -> dict[int, Shard]:
    """The parts among parameters, by the identity of the parameter.

    Raises:
        ValueError: for DTensors that are not sharded or replicated, and shards of FSDP1 whose module is gone.
    """
    shards: dict[int, Shard] = {}
    flat = [param for param in params if getattr(param, "_fsdp_flattened", False)]
    if flat:
        shards.update(flat_shards(name, flat))
    for param in params:
        if is_dtensor(param):
            shards[id(param)] = _dtensor_shard(name, param)
    return shards


def _dtensor_shard(name: str, param: Any) -> Shard:
    mesh, placements = param.device_mesh, tuple(param.placements)
    for placement in placements:
        if not (placement.is_replicate() or _shard_dim(placement) is not None):
            raise ValueError(
                f"{name}: a DTensor parameter with the placement {placement} has no values of its own; "
                "redistribute it to Shard or Replicate placements"
            )
    if mesh.get_coordinate() is None:
        raise ValueError(f"{name}: this process has no part of a DTensor parameter on {mesh}")
    shape, own = torch.Size(param.shape), local_tensor(param).shape
    dims = [_shard_dim(placement) for placement in placements]
    divisions = tuple(
        Division(mesh.get_group(i), dim) for i, dim in enumerate(dims) if dim is not None and mesh.shape[i] > 1
    )
    offset, start = _offset(name, (mesh, placements), shape, own), None
    if all(division.dim == 0 for division in divisions):
        start = min(offset[0], shape[0]) * shape[1:].numel() if shape else 0
    return Shard(shape, own, divisions, offset, start, (mesh, placements))


def _shard_dim(placement: Any) -> int | None:
    """The dimension that a placement divides; `_StridedShard` is no `Shard`, and its `is_shard` says so."""
    from torch.distributed.tensor import Shard

    if isinstance(placement, Shard) or type(placement).__name__ == "_StridedShard":
        return int(placement.dim)
    return None


def divisions_of(placed: tuple[Any, Any], coordinate: Sequence[int] | None = None) -> list[tuple[int, int, int]]:
    """Divisions of a DTensor, in order: (dimension, number of parts, index of the part that a process has).

    Args:
        coordinate: The process's in the mesh; this process's by default.

    Placements say it in the order of the mesh, but for `_StridedShard`, as FSDP2 has over tensor parallelism: those
    divide what `split_factor` parts have.
    """
    mesh, placements = placed
    found = zip(placements, mesh.shape, coordinate or mesh.get_coordinate(), strict=True)
    divided = [(getattr(p, "split_factor", 1), dim, n, at) for p, n, at in found if (dim := _shard_dim(p)) is not None]
    return [(dim, n, at) for _, dim, n, at in sorted(divided, key=lambda each: each[0])]


def _offset(name: str, placed: tuple[Any, Any], shape: torch.Size, own: torch.Size) -> tuple[int, ...]:
    """Offset of this process's part in the tensor.

    Raises:
        ValueError: if the part in memory is not the one that the placements speak of.
    """
    first, length = part_at(placed, None, shape)
    if tuple(length) != tuple(own):
        raise ValueError(
            f"{name}: this process's part of a parameter of shape {tuple(shape)} has the shape {tuple(own)}, and by "
            f"its placements {placed[1]} it has {tuple(length)}; make DTensors with distribute_tensor or fully_shard"
        )
    return first


def part_at(
    placed: tuple[Any, Any], coordinate: Sequence[int] | None, shape: torch.Size
) -> tuple[tuple[int, ...], torch.Size]:
    """Offset and sizes of the part of a tensor that a process has."""
    first, length = [0] * len(shape), list(shape)
    for dim, count, at in divisions_of(placed, coordinate):
        size = -(-length[dim] // count)
        before = min(at * size, length[dim])
        first[dim] += before
        length[dim] = min(size, length[dim] - before)
    return tuple(first), torch.Size(length)

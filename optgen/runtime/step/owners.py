"""Owners of matrices: which process computes on each, and what the others have of it.

Matrices of which processes have parts have one, and with distribute_matrices=True those that every process has, as
under DistributedDataParallel. Owners are chosen so that products take every process about the same time. Who owns what
follows from the shapes and the order of all parameters alone, param group after param group: it is the same on all
processes and in every step, and a group that is added changes none of those before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from torch import Size, Tensor

from optgen.runtime.core.shards import Box, Owner, Shard
from optgen.runtime.rule import Rule
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.step.find_shards import part_at
from optgen.runtime.step.matrix_parts import form_of_part

Boxes = tuple[Box | None, ...]


def find_owners(
    name: str, rule: Rule, groups: Sequence[Mapping[str, Any]], shards: Mapping[int, Shard]
) -> dict[int, Owner]:
    """Owners of the parameters whose matrices are divided, or their work is, by the identity of the parameter.

    Of a group the largest come first, each to the process that has the least to do.

    Args:
        groups: All param groups of the optimizer.
        shards: The parts of their parameters, by identity.

    Raises:
        ValueError: if no group of processes is of all that have parts of a matrix.
    """
    import torch.distributed as dist

    load: dict[int, list[float]] = {}
    owners: dict[int, Owner] = {}
    for each in groups if rule.has_matrices else ():
        for cost, param, shard in sorted(_owned(name, rule, each, shards), key=lambda found: -found[0]):
            if shard is None:
                group: Any = dist.group.WORLD
                boxes: Boxes = (((0,) * param.dim(), param.shape),) * dist.get_world_size()
            else:
                assert shard.placed is not None
                group = _group_of(name, shard)
                boxes = boxes_in(group, shard, shard.placed[1], param.shape)
            loads = load.setdefault(id(group), [0.0] * len(boxes))
            rank = min((i for i, box in enumerate(boxes) if box is not None), key=lambda i: (loads[i], i))
            loads[rank] += cost
            owners[id(param)] = Owner(group, rank, rank == dist.get_rank(group), boxes, replicated=shard is None)
    return owners


def _owned(
    name: str, rule: Rule, group: Mapping[str, Any], shards: Mapping[int, Shard]
) -> Iterator[tuple[float, Tensor, Shard | None]]:
    """The parameters of a group that have owners, with their cost.

    That is the number of operations of a product of each matrix with itself, but for a factor.
    """
    for index, param in enumerate(group["params"]):
        shard = shards.get(id(param))
        settings = {**group, **group.get("overrides", {}).get(index, {})}
        if param.dim() < 2 or (shard is None and not _distributes(settings)):
            continue
        if shard is not None:
            if shard.placed is None:
                continue
            shard = form_of_part(name, rule, shard, settings)
            # Matrices of a rule's own dimensions are kept together, by one process.
            if not (shard.divisions if rule.matrix_states else any(map(shard.cuts_lines, shard.divisions))):
                continue
        form = matrix_form(rule, param.shape, settings)
        yield float(form.numel()) * min(form[-2:]), param, shard


def _distributes(settings: Mapping[str, Any]) -> bool:
    """Check whether there are processes to divide the work on a whole parameter among, where that is asked for."""
    import torch.distributed as dist

    asked = bool(settings.get("distribute_matrices")) and dist.is_available() and dist.is_initialized()
    return asked and dist.get_world_size() > 1


def boxes_in(group: Any, shard: Shard, placements: Sequence[Any], shape: Size) -> Boxes:
    """The part that each process of a group has of a tensor that is placed so; None if it takes no part.

    These processes differ in the dimensions of the mesh that divide the parameter alone.

    Args:
        shard: A process's part of the parameter.
    """
    import torch.distributed as dist

    assert shard.placed is not None
    mesh, divides = shard.placed[0], divided_dims(shard)
    own = mesh.get_coordinate()
    boxes: list[Box | None] = [None] * dist.get_world_size(group)
    for varied in product(*(range(mesh.shape[dim]) for dim in divides)):
        at = list(own)
        for dim, place in zip(divides, varied, strict=True):
            at[dim] = place
        rank = dist.get_group_rank(group, int(mesh.mesh[tuple(at)]))
        boxes[rank] = part_at((mesh, placements), at, shape)
    return tuple(boxes)


def divided_dims(shard: Shard) -> list[int]:
    """The dimensions of the mesh that divide a parameter."""
    assert shard.placed is not None
    return [dim for dim, placement in enumerate(shard.placed[1]) if not placement.is_replicate()]


def _group_of(name: str, shard: Shard) -> Any:
    """The processes among which a parameter is divided, as a group.

    Raises:
        ValueError: if no group of processes is of all of them.
    """
    import torch.distributed as dist

    if len(shard.divisions) == 1:
        return shard.divisions[0].group
    if shard.placed is None or shard.placed[0].size() != dist.get_world_size():
        raise ValueError(
            f"{name} takes whole matrices, and a parameter of shape {tuple(shard.shape)} is divided over several "
            "dimensions of a mesh that has some of the processes: take a mesh of all processes"
        )
    return dist.group.WORLD

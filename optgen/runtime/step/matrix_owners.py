"""Matrices that are divided among processes: each has an owner, who computes its function of matrices for all.

What is taken is sent to the owners in one all-to-all, and the results come back in another: two collectives a pass and
process group, whatever the number of matrices. Owners are chosen so that the products of every process take about the
same time; who owns what follows from the shapes alone, and is the same on all processes and in every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Size, Tensor

from optgen.runtime.block import Block, Partial, Pass
from optgen.runtime.core.bucket import Member
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.engines import matrices
from optgen.runtime.engines.engine import Engine
from optgen.runtime.rule import Rule
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.step.find_shards import part_at


@dataclass(frozen=True)
class Owned:
    """A divided parameter.

    Attributes:
        boxes: The part that each process of the group has: (offset, sizes), or None if it takes no part.
        owner: Rank of its owner in the group.
        form: The shape that the rule sees it in.
    """

    engine: Engine
    index: int
    member: Member
    boxes: tuple[tuple[tuple[int, ...], Size] | None, ...]
    owner: int
    form: Size


class MatrixOwners:
    """Exchange of the matrices of a step over process groups."""

    def __init__(self, name: str, rule: Rule, block: Block, engines: Sequence[Engine]) -> None:
        found = [
            (engine, index, member)
            for engine in engines
            for index, member in enumerate(engine.bucket.members)
            if matrices.is_divided(block, member)
        ]
        by_group: dict[int, tuple[Any, list[tuple[Engine, int, Member]]]] = {}
        for each in sorted(found, key=lambda each: each[2].number):
            group = _group_of(name, each[2])
            by_group.setdefault(id(group), (group, []))[1].append(each)
        self.groups = [(group, _owned(rule, group, members)) for group, members in by_group.values()]

    def __bool__(self) -> bool:
        """True if any matrix is divided."""
        return bool(self.groups)

    def run(self, name: str, block: Block, item: Pass, values: HostValues) -> None:
        """Run the functions of matrices that take what a pass has made of divided matrices."""
        for group, owned in self.groups:
            work = [
                (each, partial)
                for each in owned
                for partial in block.taken(item, each.engine.bucket.flags)
                if partial.name in block.matrices
            ]
            if work:
                _exchange(name, group, work, values)


Work = Sequence[tuple[Owned, Partial]]


def _exchange(name: str, group: Any, work: Work, values: HostValues) -> None:
    import torch.distributed as dist

    rank, size = dist.get_rank(group), dist.get_world_size(group)
    parts = [[w.engine.matrix_part(name, p.name, w.index) for w, p in work if w.owner == to] for to in range(size)]
    mine = [(w, p) for w, p in work if w.owner == rank]
    like = work[0][0].engine.matrix_part(name, work[0][1].name, work[0][0].index)
    given = [[_numel(w, at) for w, _ in mine] for at in range(size)]
    received = like.new_empty(sum(map(sum, given)))
    sent = torch.cat([part.reshape(-1) for of_owner in parts for part in of_owner])
    sizes = [sum(part.numel() for part in of_owner) for of_owner in parts]
    dist.all_to_all_single(received, sent, [sum(of_rank) for of_rank in given], sizes, group=group)
    pieces = [list(torch.split(of, own)) for of, own in zip(_split(received, given), given, strict=True)]
    wholes = [_whole(w, [pieces[at][i] for at in range(size)]) for i, (w, _) in enumerate(mine)]
    _compute(mine, wholes, values)
    back = [_cut(w, whole, at) for at in range(size) for (w, _), whole in zip(mine, wholes, strict=True)]
    result = torch.empty_like(sent)
    outgoing = torch.cat(back) if back else received
    dist.all_to_all_single(result, outgoing, sizes, [sum(of_rank) for of_rank in given], group=group)
    for part, new in zip(_ordered(parts), torch.split(result, [p.numel() for p in _ordered(parts)]), strict=True):
        part.copy_(new.view_as(part))


def _split(x: Tensor, sizes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    yield from torch.split(x, [sum(own) for own in sizes])


def _ordered(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [part for of_owner in parts for part in of_owner]


def _numel(owned: Owned, rank: int) -> int:
    box = owned.boxes[rank]
    return 0 if box is None else box[1].numel()


def _whole(owned: Owned, pieces: Sequence[Tensor]) -> Tensor:
    """The parameter's elements, of the parts that all processes have sent."""
    whole = pieces[0].new_empty(owned.member.whole.shape)
    for box, piece in zip(owned.boxes, pieces, strict=True):
        if box is not None:
            _place(whole, *box).copy_(piece.view(box[1]))
    return whole


def _cut(owned: Owned, whole: Tensor, rank: int) -> Tensor:
    box = owned.boxes[rank]
    return whole.new_empty(0) if box is None else _place(whole, *box).reshape(-1)


def _place(whole: Tensor, offset: Sequence[int], sizes: Size) -> Tensor:
    for dim, (first, length) in enumerate(zip(offset, sizes, strict=True)):
        whole = whole.narrow(dim, min(first, whole.shape[dim]), length)
    return whole


def _compute(mine: Work, wholes: list[Tensor], values: HostValues) -> None:
    """Put the results in the place of matrices; those of one shape and settings are computed together."""
    batches: dict[Any, list[int]] = {}
    for i, (owned, partial) in enumerate(mine):
        key = (owned.form, owned.member.row, partial.name)
        most = max(matrices.BATCH // max(owned.form.numel(), 1), 1)
        number = sum(len(batch) for (other, _), batch in batches.items() if other == key) // most
        batches.setdefault((key, number), []).append(i)
    for batch in batches.values():
        owned, partial = mine[batch[0]]
        elements = torch.cat([wholes[i].reshape(-1) for i in batch])
        matrices.apply(partial, elements, owned.form, values, owned.member)
        for i, new in zip(batch, elements.view(len(batch), -1), strict=True):
            wholes[i].copy_(new.view_as(wholes[i]))


# Who owns what


def _owned(rule: Rule, group: Any, members: Sequence[tuple[Engine, int, Member]]) -> list[Owned]:
    """Matrices with their owners: the largest first, each to the process that has the least to do."""
    import torch.distributed as dist

    size = dist.get_world_size(group)
    forms = [matrix_form(rule, member.whole.shape, member.settings) for _, _, member in members]
    boxes = [_boxes(group, size, member) for _, _, member in members]
    load, owners = [0.0] * size, [0] * len(members)
    for i in sorted(range(len(members)), key=lambda i: (-_cost(forms[i]), members[i][2].number)):
        able = [rank for rank in range(size) if boxes[i][rank] is not None]
        owners[i] = min(able, key=lambda rank: (load[rank], rank))
        load[owners[i]] += _cost(forms[i])
    return [
        Owned(engine, index, member, box, owner, form)
        for (engine, index, member), box, owner, form in zip(members, boxes, owners, forms, strict=True)
    ]


def _cost(form: Size) -> float:
    """Operations of a product of each matrix with itself, but for a factor."""
    return float(form.numel()) * min(form[-2:])


def _group_of(name: str, member: Member) -> Any:
    """The processes among which a parameter is divided, as a group.

    Raises:
        ValueError: if no group of processes is of all of them.
    """
    import torch.distributed as dist

    assert member.shard is not None
    if len(member.shard.divisions) == 1:
        return member.shard.divisions[0].group
    placed = member.shard.placed
    if placed is None or placed[0].size() != dist.get_world_size():
        raise ValueError(
            f"{name} takes whole matrices, and a parameter of shape {tuple(member.whole.shape)} is divided over "
            "several dimensions of a mesh that has some of the processes: take a mesh of all processes"
        )
    return dist.group.WORLD


def _boxes(group: Any, size: int, member: Member) -> tuple[tuple[tuple[int, ...], Size] | None, ...]:
    """The part that each process of a group has: those that differ from this one in divided dimensions alone."""
    import torch.distributed as dist

    assert member.shard is not None
    assert member.shard.placed is not None
    mesh, placements = member.shard.placed
    own = mesh.get_coordinate()
    divided = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    boxes: list[tuple[tuple[int, ...], Size] | None] = [None] * size
    for varied in product(*(range(mesh.shape[dim]) for dim in divided)):
        at = list(own)
        for dim, place in zip(divided, varied, strict=True):
            at[dim] = place
        rank = dist.get_group_rank(group, int(mesh.mesh[tuple(at)]))
        boxes[rank] = part_at((mesh, placements), at, member.whole.shape)
    return tuple(boxes)

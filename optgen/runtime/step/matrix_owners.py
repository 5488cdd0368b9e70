"""Matrices that are divided among processes: each has an owner (owners.py), who computes on it for all.

What is taken is sent to the owners in one all-to-all, and the results come back in another: two collectives a pass and
process group, whatever the number of matrices. Matrices of the rule's own dimensions are kept by the owner alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from optgen.runtime.block import Block, Partial, Pass
from optgen.runtime.core.bucket import Member
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.core.shards import Owner
from optgen.runtime.engines import matrices
from optgen.runtime.engines.engine import Engine
from optgen.runtime.engines.own_step import run_own_steps
from optgen.runtime.engines.torch_engine import View
from optgen.runtime.rule import Rule
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.step.all_to_all import Spread, from_owners, to_owners


@dataclass(frozen=True)
class Divided:
    """A divided parameter: member `index` of an engine's bucket.

    Attributes:
        form: The shape that the rule sees it in.
    """

    engine: Engine
    index: int
    member: Member
    owner: Owner
    form: Size


Work = Sequence[tuple[Divided, Partial]]


class MatrixOwners:
    """Exchange of the matrices of a step over process groups."""

    def __init__(self, rule: Rule, block: Block, engines: Sequence[Engine]) -> None:
        self.rule = rule
        self.groups: dict[int, tuple[Any, list[Divided]]] = {}
        found = [
            Divided(engine, index, member, member.owner, matrix_form(rule, member.whole.shape, member.settings))
            for engine in engines
            for index, member in enumerate(engine.bucket.members)
            if member.owner is not None and matrices.is_divided(block, member)
        ]
        for each in sorted(found, key=lambda each: each.member.number):
            self.groups.setdefault(id(each.owner.group), (each.owner.group, []))[1].append(each)

    def __bool__(self) -> bool:
        """True if any matrix is divided."""
        return bool(self.groups)

    def run(self, name: str, block: Block, item: Pass, values: HostValues) -> None:
        """Run the functions of matrices that take what a pass has made of divided matrices."""
        for group, divided in self.groups.values():
            work = [
                (each, partial)
                for each in divided
                for partial in block.taken(item, each.engine.bucket.flags)
                if partial.name in block.matrices
            ]
            if work:
                _exchange(name, self.rule, group, work, values)


def _exchange(name: str, rule: Rule, group: Any, work: Work, values: HostValues) -> None:
    parts = [each.engine.matrix_part(name, partial.name, each.index) for each, partial in work]
    spreads = [Spread(each.owner.rank, each.owner.boxes, each.member.whole.shape, torch.float32) for each, _ in work]
    reading = [i for i, (_, partial) in enumerate(work) if partial.reads_param]
    params = [View(rule, work[i][0].member, 0.0).param for i in reading]
    received = to_owners(group, [*spreads, *(spreads[i] for i in reading)], [*parts, *params])
    mine = [(each, partial) for each, partial in work if each.owner.here]
    wholes, read = received[: len(mine)], iter(received[len(mine) :])
    taken = [(each, p, x, next(read) if p.reads_param else None) for (each, p), x in zip(mine, wholes, strict=True)]
    _apply([(each, partial, x) for each, partial, x, _ in taken if partial.op != matrices.OWN_STEP], values)
    own = [(each.member, x, param) for each, partial, x, param in taken if partial.op == matrices.OWN_STEP]
    run_own_steps(rule, [m for m, _, _ in own], [x for _, x, _ in own], values, [param for _, _, param in own])
    for part, new in zip(parts, from_owners(group, spreads, wholes, parts[0].device), strict=True):
        part.copy_(new.view_as(part))


def _apply(taken: Sequence[tuple[Divided, Partial, Tensor]], values: HostValues) -> None:
    """Put the results in the place of matrices; those of one shape and settings are computed together."""
    batches: dict[Any, list[int]] = {}
    for i, (divided, partial, _) in enumerate(taken):
        key = (divided.form, divided.member.row, partial.name)
        most = max(matrices.BATCH // max(divided.form.numel(), 1), 1)
        number = sum(len(batch) for (other, _), batch in batches.items() if other == key) // most
        batches.setdefault((key, number), []).append(i)
    for batch in batches.values():
        divided, partial, _ = taken[batch[0]]
        elements = torch.cat([taken[i][2].reshape(-1) for i in batch])
        matrices.apply(partial, elements, divided.form, values, divided.member)
        for i, new in zip(batch, elements.view(len(batch), -1), strict=True):
            taken[i][2].copy_(new.view_as(taken[i][2]))

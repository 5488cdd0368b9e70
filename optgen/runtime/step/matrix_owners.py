"""Matrices that have an owner (owners.py), who computes on them for other processes too.

Where they are divided, what is taken is sent to the owners in one all-to-all, and the results come back in another: two
collectives a pass and process group, whatever the number of matrices. Matrices of the rule's own dimensions are kept by
the owner alone. Where every process has all of them, the second alone is needed, and such states travel in it too.
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
from optgen.runtime.states.stored import scale_key
from optgen.runtime.step.all_to_all import Spread, from_owners, to_owners


@dataclass(frozen=True)
class Owned:
    """A parameter that has an owner: member `index` of an engine's bucket.

    Attributes:
        form: The shape that the rule sees it in.
    """

    engine: Engine
    index: int
    member: Member
    owner: Owner
    form: Size


Work = Sequence[tuple[Owned, Partial]]


class MatrixOwners:
    """Exchange of the matrices of a step over process groups."""

    def __init__(self, rule: Rule, block: Block, engines: Sequence[Engine]) -> None:
        self.rule = rule
        self.groups: dict[tuple[int, bool], tuple[Any, list[Owned]]] = {}
        found = [
            Owned(engine, index, member, member.owner, matrix_form(rule, member.whole.shape, member.settings))
            for engine in engines
            for index, member in enumerate(engine.bucket.members)
            if member.owner is not None and matrices.is_owned(block, member)
        ]
        for each in sorted(found, key=lambda each: each.member.number):
            key = (id(each.owner.group), each.owner.replicated)
            self.groups.setdefault(key, (each.owner.group, []))[1].append(each)

    def __bool__(self) -> bool:
        """True if any matrix has an owner."""
        return bool(self.groups)

    def run(self, name: str, block: Block, item: Pass, values: HostValues) -> None:
        """Run the functions of matrices that take what a pass has made of these matrices."""
        for (_, replicated), (group, owned) in self.groups.items():
            work = [
                (each, partial)
                for each in owned
                for partial in block.taken(item, each.engine.bucket.flags)
                if partial.name in block.matrices
            ]
            if work:
                exchange = _share_work if replicated else _exchange
                exchange(name, self.rule, group, work, values)


def _exchange(name: str, rule: Rule, group: Any, work: Work, values: HostValues) -> None:
    """Bring the parts of each matrix to its owner, and what comes of it back."""
    parts = _parts(name, work)
    spreads = _spreads(work)
    reading = [i for i, (_, partial) in enumerate(work) if partial.reads_param]
    params = [View(rule, work[i][0].member, 0.0).param for i in reading]
    received = to_owners(group, [*spreads, *(spreads[i] for i in reading)], [*parts, *params])
    mine = [(each, partial) for each, partial in work if each.owner.here]
    wholes, read = received[: len(mine)], iter(received[len(mine) :])
    _compute(rule, mine, wholes, [next(read) if partial.reads_param else None for _, partial in mine], values)
    for part, new in zip(parts, from_owners(group, spreads, wholes, parts[0].device), strict=True):
        part.copy_(new.view_as(part))


def _share_work(name: str, rule: Rule, group: Any, work: Work, values: HostValues) -> None:
    """Compute on this process's share of matrices that all have; results and states go from each to all."""
    parts = _parts(name, work)
    mine = [i for i, (each, _) in enumerate(work) if each.owner.here]
    # Copies, since bits of products can follow from where a matrix begins in memory.
    wholes = [parts[i].clone().view(work[i][0].member.whole.shape) for i in mine]
    _compute(rule, [work[i] for i in mine], wholes, [None] * len(mine), values)
    kept = [(each.owner, tensor) for each, partial in work for tensor in _states(rule, each.member, partial)]
    spreads = [*_spreads(work), *(_spread(owner, tensor) for owner, tensor in kept)]
    wholes += [tensor for owner, tensor in kept if owner.here]
    received = from_owners(group, spreads, wholes, parts[0].device)
    for tensor, new in zip([*parts, *(tensor for _, tensor in kept)], received, strict=True):
        tensor.copy_(new.view_as(tensor))


def _parts(name: str, work: Work) -> list[Tensor]:
    return [each.engine.matrix_part(name, partial.name, each.index) for each, partial in work]


def _spreads(work: Work) -> list[Spread]:
    return [Spread(each.owner.rank, each.owner.boxes, each.member.whole.shape, torch.float32) for each, _ in work]


def _states(rule: Rule, member: Member, partial: Partial) -> list[Tensor]:
    """The tensors of the states that a rule's own step on a matrix writes."""
    if partial.op != matrices.OWN_STEP:
        return []
    names = [key for state in rule.matrix_states for key in (state.name, scale_key(state.name))]
    return [member.entry[name] for name in names if isinstance(member.entry.get(name), Tensor)]


def _spread(owner: Owner, tensor: Tensor) -> Spread:
    """A tensor that every process has all of."""
    return Spread(owner.rank, (((0,) * tensor.dim(), tensor.shape),) * len(owner.boxes), tensor.shape, tensor.dtype)


def _compute(
    rule: Rule, work: Work, wholes: Sequence[Tensor], params: Sequence[Tensor | None], values: HostValues
) -> None:
    """Put results in the place of whole matrices."""
    taken = [(each, partial, x) for (each, partial), x in zip(work, wholes, strict=True)]
    _apply([each for each in taken if each[1].op != matrices.OWN_STEP], values)
    own = [i for i, (_, partial) in enumerate(work) if partial.op == matrices.OWN_STEP]
    members, xs = [work[i][0].member for i in own], [wholes[i] for i in own]
    codecs = [work[i][0].engine.codecs for i in own]
    run_own_steps(rule, members, xs, xs, values, codecs, [params[i] for i in own])


def _apply(taken: Sequence[tuple[Owned, Partial, Tensor]], values: HostValues) -> None:
    """Put the results in the place of matrices; those of one shape and settings are computed together."""
    batches: dict[Any, list[int]] = {}
    for i, (owned, partial, _) in enumerate(taken):
        key = (owned.form, owned.member.row, partial.name)
        most = max(matrices.BATCH // max(owned.form.numel(), 1), 1)
        number = sum(len(batch) for (other, _), batch in batches.items() if other == key) // most
        batches.setdefault((key, number), []).append(i)
    for batch in batches.values():
        owned, partial, _ = taken[batch[0]]
        elements = torch.cat([taken[i][2].reshape(-1) for i in batch])
        matrices.apply(partial, elements, owned.form, values, owned.member)
        for i, new in zip(batch, elements.view(len(batch), -1), strict=True):
            taken[i][2].copy_(new.view_as(taken[i][2]))

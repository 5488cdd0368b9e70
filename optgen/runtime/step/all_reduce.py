"""Adds up what the processes that have parts of a tensor find in a pass, before anything uses it.

After a pass, the results of all tensors (norms, largest magnitudes, sums of rows and columns, in float64) travel
together, in one all-reduce. Where there are sums among them it adds up, and every process has a place of its own for
its maxima, where the others have zeros: what comes of it are all processes' maxima, unrounded. Tensors that are divided
over several dimensions of a mesh take an all-reduce for each. The order of results follows from the order of the
parameters alone, so that it is the same on all processes and in every step; not from buckets, which also follow from
what a process has for itself: its target, and the dtypes of gradients, which FSDP1 leaves out of an empty stretch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.block import Block, Partial, Pass
from optgen.runtime.core.bucket import Member
from optgen.runtime.core.shards import Owner, Shard, local_tensor
from optgen.runtime.engines.engine import Engine

NO_STEP = -1.0  # the mark of none


@dataclass(frozen=True)
class Item:
    """Some results of an engine's pass: how to get and to give them."""

    get: Callable[[], Tensor]
    give: Callable[[Tensor], None]


class Reducer:
    """Reducer of the results of a step's parameters, over processes.

    Args:
        shards: Of all parameters of the optimizer.
        owners: Of the matrices of all of them.
        step: The names of the rule and the block.
        members: Those of the step.

    Attributes:
        groups: The process groups that any parameter of the optimizer is divided over, in the order of the parameters.
        agreeing: Those whose processes must take the same step: these, and those of owners.
        mark: A number that tells what is added up: for which parameters, of which shapes, flags and codecs, in which
            block of which rule.
        checks: Whether processes tell each other that number first. Those with GPUs do not: they would have to wait.
    """

    def __init__(
        self,
        shards: Iterable[Shard],
        owners: Iterable[Owner] = (),
        step: str = "",
        members: Sequence[Member] = (),
        checks: bool = False,
    ) -> None:
        divided = [member for member in members if member.shard is not None or member.owner is not None]
        asked = [(m.number, tuple(m.shape), tuple(m.flags), *map(str, m.codecs)) for m in divided]
        self.mark = float(zlib.crc32(repr((step, asked)).encode()))
        self.checks = checks
        self.groups: list[Any] = []
        for shard in shards:
            for division in shard.divisions:
                if all(division.group is not other for other in self.groups):
                    self.groups.append(division.group)
        self.agreeing = list(self.groups)
        for owner in owners:
            if owner.replicated and all(owner.group is not other for other in self.agreeing):
                self.agreeing.append(owner.group)

    def check(self) -> None:
        """Check that all processes take the same step: otherwise their sums would differ in size or meaning.

        Raises:
            RuntimeError: on all of them, if they do not.
        """
        same = [self._is_same(self.mark, group) for group in self.agreeing if self.checks]
        if not all(same):
            raise RuntimeError(
                "processes that have parts of the same tensors, or divide the work on them, took different steps, or "
                "one of them has raised an error: give all of them the same rule, settings, and gradients for the same "
                "parameters. No parameter has changed"
            )

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an error within, who would wait for this process: for them it takes another step."""
        try:
            yield
        except (TypeError, ValueError):
            for group in self.agreeing if self.checks else ():
                self._is_same(NO_STEP, group)
            raise

    def _is_same(self, mark: float, group: Any) -> bool:
        import torch.distributed as dist

        marks = torch.tensor([mark, -mark], dtype=torch.float64, device="cpu")
        dist.all_reduce(marks, dist.ReduceOp.MAX, group=group)
        return float(marks[0]) == -float(marks[1])

    def reduce(self, name: str, block: Block, item: Pass, running: Sequence[Engine]) -> None:
        """Reduce all that a pass has made."""
        if not item.names:
            return
        for group in self.groups:
            sums, maxima = (list(_items(name, block, item, running, group, op)) for op in ("sum", "max"))
            if sums or maxima:
                _all_reduce(sums, maxima, group)

    def agree(self, found_inf: Tensor) -> Tensor:
        """Find out whether any process has found an Inf or NaN: a step is skipped by all or none."""
        import torch.distributed as dist

        result = local_tensor(found_inf).detach().clone()
        for group in self.groups:
            dist.all_reduce(result, dist.ReduceOp.MAX, group=group)
        return result


def _is_over(member: Member, group: Any, lines: bool = False) -> bool:
    """Check whether a parameter is divided over a group, or its rows and columns are."""
    shard = member.shard
    if shard is None:
        return False
    return any(d.group is group and (not lines or shard.cuts_lines(d)) for d in shard.divisions)


def _items(name: str, block: Block, item: Pass, running: Sequence[Engine], group: Any, op: str) -> Iterator[Item]:
    """Yield the results of a pass one by one, each of all parameters in their order."""
    for partial in block.partials:
        if partial.op != op or partial.name not in item.names:
            continue
        found = [
            (member.number, engine, i)
            for engine in running
            if partial in block.taken(item, engine.bucket.flags)
            for i, member in enumerate(engine.bucket.members)
            if _is_over(member, group, lines=partial.over != "tensor")
        ]
        if partial.over == "tensor" and found:
            yield _numbers(block, partial.name, found)
        elif found:
            for _, engine, i in sorted(found, key=itemgetter(0)):
                yield _lines(engine, name, partial, i)


def _numbers(block: Block, name: str, found: Sequence[tuple[int, Engine, int]]) -> Item:
    """A result of each of these parameters: (number, engine, position in its bucket), engine after engine."""
    engines = list(dict.fromkeys(engine for _, engine, _ in found))
    members = [[i for _, other, i in found if other is engine] for engine in engines]
    order = sorted(range(len(found)), key=lambda at: found[at][0])
    sizes = [len(own) for own in members]

    def get() -> Tensor:
        parts = [engine.partial(block, name) for engine in engines]
        values = [part[_index(own, part)] for part, own in zip(parts, members, strict=True)]
        return values[0] if len(values) == 1 else torch.cat(values)[_index(order, values[0])]

    def give(values: Tensor) -> None:
        if len(engines) > 1:
            values = torch.empty_like(values).index_copy_(0, _index(order, values), values)
        for engine, own, part in zip(engines, members, torch.split(values, sizes), strict=True):
            every = engine.partial(block, name).clone()
            every[_index(own, every)] = part
            engine.complete(block, name, every)

    return Item(get, give)


def _index(numbers: Sequence[int], of: Tensor) -> Tensor:
    return torch.tensor(numbers, device=of.device)


def _lines(engine: Engine, name: str, partial: Partial, index: int) -> Item:
    return Item(
        lambda: engine.partial_lines(name, partial, index),
        lambda values: engine.complete_lines(name, partial, index, values),
    )


def _all_reduce(sums: Sequence[Item], maxima: Sequence[Item], group: Any) -> None:
    """Bring together what the processes of a group have, in one all-reduce."""
    import torch.distributed as dist

    parts = [item.get().reshape(-1) for item in (*sums, *maxima)]
    sizes = [part.numel() for part in parts]
    buffer, added = torch.cat(parts), sum(sizes[: len(sums)])
    if sums and maxima:
        largest = buffer[added:]
        places = largest.new_zeros(dist.get_world_size(group), largest.numel())
        places[dist.get_rank(group)] = largest
        everything = torch.cat([buffer[:added], places.reshape(-1)])
        dist.all_reduce(everything, dist.ReduceOp.SUM, group=group)
        buffer = torch.cat([everything[:added], everything[added:].reshape(places.shape).amax(0)])
    else:
        dist.all_reduce(buffer, dist.ReduceOp.SUM if sums else dist.ReduceOp.MAX, group=group)
    for item, values in zip((*sums, *maxima), torch.split(buffer, sizes), strict=True):
        item.give(values)

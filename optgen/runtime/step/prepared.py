"""A prepared step: its parameters and their engines, which are kept while nothing changes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optgen.runtime.block import Block, Pass, Settings
from optgen.runtime.core import sweep
from optgen.runtime.core.bucket import Member, StaleError
from optgen.runtime.core.host_values import HostValues, SumKey
from optgen.runtime.core.shards import local_gradient, local_tensor
from optgen.runtime.core.step_inputs import Inputs
from optgen.runtime.engines.engine import Engine
from optgen.runtime.rule import Rule
from optgen.runtime.settings.seen import Seen, are_plain
from optgen.runtime.states.step_numbers import StepNumbers
from optgen.runtime.step.all_reduce import Reducer
from optgen.runtime.step.last_norm import LastNorm
from optgen.runtime.step.matrix_owners import MatrixOwners

KEPT_STEPS = 4  # sets of parameters whose engines are kept, for models in which gradients come and go
KEPT_OF_SOME_STEPS = 16  # of rules in which some things happen on some steps only

Parts = dict[SumKey, tuple[str, list[list[float] | Tensor]]]  # of sums over several parameters; "sum" or "max"


class PreparationKey(NamedTuple):
    """Key of a prepared step.

    Attributes:
        things: Identities of the parameters, of the groups, and of the entries of `optimizer.state`: all, or that of
            an only parameter.
        grads: The dtypes of the gradients.
        inputs: The names of the inputs set.
        on_step: For every parameter, the flags that the number of the step decides.
    """

    block: str
    things: bytes
    grads: list[torch.dtype]
    inputs: tuple[str, ...]
    on_step: tuple[tuple[bool, ...], ...] = ()


@dataclass(eq=False)
class Prepared:
    """A step's parameters and engines.

    Attributes:
        rows: The settings of the step: (group, override) for every combination in use.
        fixed: Settings that decide kernels, of every row.
        elements: Elements of all parameters.
        key: Identifies the step that it is for.
        reducer: Adds up results over processes; None where no parameter is divided among any.
        owners: Of matrices of which processes have parts.
        sharded: Whether there are parameters of which this process has a part, or a replica.
        at_once: Whether the last pass is one call of a kernel, and all that writes.
        replaced: Whether states took another form or place: engines of earlier steps hold on to what they were.
        since: Time at which these engines were made.
        seen: The settings as the last step has seen them.
        last: What exchanges the norm of all gradients for that of the last step, where that is asked for.
        together: Passes that all engines run before the next pass begins: their number in the block, and the engines.
        alone: Engines that then run all passes that are left before the next engine does, with the numbers of these:
            functions of matrices share memory so.
    """

    rule: Rule
    members: list[Member]
    engines: list[Engine]
    rows: list[tuple[dict[str, Any], Mapping[str, Any]]]
    fixed: list[tuple[Any, ...]]
    elements: float
    key: PreparationKey
    reducer: Reducer | None = None
    owners: MatrixOwners | None = None
    sharded: bool = False
    at_once: bool = False
    replaced: bool = False
    since: float = field(default_factory=time.monotonic)
    seen: list[Seen] = field(default_factory=list)
    last: LastNorm | None = None
    together: list[tuple[int, Pass, list[Engine]]] = field(init=False)
    alone: list[tuple[Engine, list[int]]] = field(init=False)
    _values: HostValues | None = None
    _lasting: bool = False

    def __post_init__(self) -> None:
        """Find the passes that each engine runs, by its flags."""
        passes = []
        for index, item in enumerate(self.block.passes):
            running = [engine for engine in self.engines if self.block.runs(item, engine.bucket.flags)]
            if running:
                passes.append((index, item, running))
        first = self._first_alone(passes)
        self.together = [each for each in passes if each[0] < first]
        # The largest first: if there is not memory enough for its matrices, nothing has been written yet.
        in_turn = (
            sorted(self.engines, key=lambda engine: -engine.matrix_elements) if first < len(self.block.passes) else ()
        )
        alone = [(engine, [i for i, _, engines in passes if i >= first and engine in engines]) for engine in in_turn]
        self.alone = [(engine, indices) for engine, indices in alone if indices]
        self._give_matrix_memory()

    def _first_alone(self, passes: Sequence[tuple[int, Pass, list[Engine]]]) -> int:
        """First pass with functions of matrices, or one past the last where a later sum needs the results of all."""
        made = [i for i, item, engines in passes if any(self._makes_matrices(item, engine) for engine in engines)]
        summed = {reduction for _, _, reduction in self.block.sums}
        sums = any(made and i >= made[0] and summed.intersection(item.names) for i, item, _ in passes)
        return made[0] if made and not sums and self.reducer is None else len(self.block.passes)

    def _makes_matrices(self, item: Pass, engine: Engine) -> bool:
        return any(partial.name in self.block.matrices for partial in self.block.taken(item, engine.bucket.flags))

    def _give_matrix_memory(self) -> None:
        """Give engines memory for what functions of matrices take: on a device the same, where they run in turn."""
        by_device: dict[torch.device, list[Engine]] = {}
        for engine in self.engines:
            if engine.matrix_elements:
                by_device.setdefault(engine.bucket.device, []).append(engine)
        for device, engines in by_device.items():
            sizes = [engine.matrix_elements for engine in engines]
            memory = torch.empty(max(sizes) if self.alone else sum(sizes), dtype=torch.float32, device=device)
            pieces = [memory] * len(engines) if self.alone else torch.split(memory, sizes)
            for engine, piece in zip(engines, pieces, strict=True):
                engine.take_matrix_memory(piece)

    @property
    def block(self) -> Block:
        """The block of the rule."""
        return self.rule.blocks[self.key.block]

    def see(self, seen: list[Seen]) -> None:
        """Keep what settings are now. While they are this, values that follow from nothing else last."""
        self.seen, self._values = seen, None
        self._lasting = not self.rule.shared_states and are_plain(seen)

    def values(self, inputs: Inputs) -> HostValues:
        """Values that groups share in a step; those of the last step, if nothing that they follow from has changed."""
        if self._values is not None and not inputs.values:
            return self._values
        groups = [id(group) for group, _ in self.rows]
        values = HostValues(self.rule, self.block, self.settings(inputs.values), groups, {}, self.elements)
        if self._lasting and not inputs.values:
            self._values = values
        return values

    def serve_again(self) -> None:
        """Once steps of many tensors repeat, looking at them is worth compiling."""
        if len(self.members) >= sweep.MANY and any(engine.target != "torch" for engine in self.engines):
            sweep.settle(self.since)

    def settings(self, inputs: Mapping[str, Any] | None = None) -> list[Settings]:
        """The settings of every row, as they are now, and the inputs of the step."""
        if inputs:
            return [{**group, **override, **inputs} for group, override in self.rows]
        return [{**group, **override} if override else group for group, override in self.rows]

    def own_gradients(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The parts of gradients that belong to what this process has of the parameters.

        Raises:
            StaleError: if a parameter lies elsewhere than before.
        """
        for member in self.members:
            if member.whole is not member.param:
                own = local_tensor(member.whole)
                if own.shape != member.param.shape or own.data_ptr() != member.param.data_ptr():
                    raise StaleError
        places = {member.position: member.whole for member in self.members} if grads else {}
        return [local_gradient(places[position], grad) for position, grad in enumerate(grads)]

    def sums(self, block: Block, item: Pass, running: Sequence[Engine]) -> Parts:
        """The parts of the sums over all parameters, or those of a group, that a pass completes."""
        result: Parts = {}
        for name, kind, reduction in block.sums:
            for engine in running if reduction in item.names else ():
                found, of_group = engine.reduction(block, reduction), name in block.group_sums.split()
                for group, members in self._of_groups(engine) if of_group else [(None, slice(None))]:
                    result.setdefault((name, group), (kind, []))[1].append(found[members])
        return result

    def _of_groups(self, engine: Engine) -> list[tuple[int, slice]]:
        """The members of an engine that follow one another in a group, with its identity."""
        result: list[tuple[int, slice]] = []
        begin = 0
        for group, run in groupby(id(self.rows[member.row][0]) for member in engine.bucket.members):
            end = begin + len(list(run))
            result.append((group, slice(begin, end)))
            begin = end
        return result


def joined(parts: Parts) -> dict[SumKey, float | Tensor]:
    """Sums over several parameters; where GPUs have all of one, it is a tensor that nobody has read."""
    return {key: _joined(*each) for key, each in parts.items()}


def _joined(kind: str, parts: Sequence[list[float] | Tensor]) -> float | Tensor:
    """Results of all buckets as one, always in the same order."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        whole = torch.cat([part.to(tensors[0].device, non_blocking=True) for part in tensors])
        return whole.amax() if kind == "max" else whole.sum()
    numbers = [x for part in parts for x in (part.tolist() if isinstance(part, Tensor) else part)]
    if kind == "max":
        return max(numbers, default=0.0)
    total = 0.0
    for number in numbers:
        total += number
    return total


class KeptSteps:
    """The last steps of an optimizer, newest first.

    Attributes:
        of_all: Those of all parameters.
        of_one: Those of parameters that are stepped alone, by identity.
        captured: Those that graphs have recorded: replays need their memory.
        numbers: The counts of steps that the host knows.
        last_norm: The sums of squares of the step that is under way, for the next one.
    """

    def __init__(self) -> None:
        self.numbers = StepNumbers()
        self.last_norm = LastNorm()
        self.of_all: tuple[Prepared, ...] = ()
        self.of_one: dict[int, tuple[Prepared, ...]] = {}
        self.captured: list[Prepared] = []

    def of(self, only: Tensor | None) -> tuple[Prepared, ...]:
        """Steps of a parameter that is updated alone, or of all parameters."""
        return self.of_all if only is None else self.of_one.get(id(only), ())

    def keep(self, prepared: Prepared, only: Tensor | None) -> None:
        """Keep one more, and those before it as long as their states are where they were."""
        others = () if prepared.replaced else (other for other in self.of(only) if other is not prepared)
        prepared.replaced = False
        kept = (prepared, *others)[: KEPT_STEPS if prepared.rule.on_step is None else KEPT_OF_SOME_STEPS]
        if only is None:
            self.of_all = kept
        else:
            self.of_one[id(only)] = kept

    def forget(self, only: Tensor | None = None) -> None:
        """Let go of all of them, or of those of a parameter that is stepped alone."""
        if only is None:
            self.of_all, self.of_one = (), {}
        else:
            self.of_one.pop(id(only), None)

    def engines(self) -> Iterator[Engine]:
        """The engines of the last step."""
        for kept in (self.of_all, *self.of_one.values()):
            yield from kept[0].engines if kept else ()

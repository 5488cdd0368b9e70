"""Prepares a step: which parameters take part, in buckets with an engine each; kept while nothing changes."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from optgen.runtime.cache import CompileError
from optgen.runtime.compilers import find_compiler, why_no_compiler
from optgen.runtime.cpu_engine import CpuEngine
from optgen.runtime.parameters import Bucket, Member, check_gradient, flags_of
from optgen.runtime.rule import Block, Pass, Rule, Settings
from optgen.runtime.states import choose_codecs, settle_states, tensorwise
from optgen.runtime.torch_engine import TorchEngine, View

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer


class Engine(Protocol):
    """Runs the passes of a bucket on one target."""

    target: str
    bucket: Bucket

    def begin(self, name: str, block: Block, grads: Sequence[Tensor]) -> None:
        """Start a step. `grads` holds the gradients of the bucket, or nothing in a block without them."""

    def run(self, block: Block, index: int, values: list[tuple[float, ...]]) -> None:
        """Run one pass."""

    def reduction(self, block: Block, name: str) -> list[float]:
        """A reduction's result for every parameter."""

    def finish(self, name: str) -> None:
        """End the step."""


@dataclass(frozen=True)
class Seen:
    """What a step is prepared for: identities of parameters, and the dtypes of their gradients."""

    block: str
    params: list[int]
    grads: list[torch.dtype]


@dataclass(eq=False)
class Prepared:
    """A step's parameters and engines.

    Attributes:
        rows: The settings of the step: (group, override) for every combination in use.
        fixed: What decides kernels, of every row.
        raw: The settings that this follows from.
        elements: Elements of all parameters.
        seen: The parameters and the dtypes of their gradients.
        entries: Identities of the groups and of all entries of `optimizer.state`.
    """

    members: list[Member]
    engines: list[Engine]
    rows: list[tuple[dict[str, Any], Mapping[str, Any]]]
    fixed: list[tuple[Any, ...]]
    raw: list[tuple[Any, ...]]
    elements: float
    seen: Seen
    entries: list[int]

    def settings(self) -> list[Settings]:
        """The settings of every row, as they are now."""
        return [{**group, **override} if override else group for group, override in self.rows]

    def sums(self, block: Block, item: Pass, running: Sequence[Engine]) -> dict[str, float]:
        """Sums over all parameters that a pass completes, in the order of parameters."""
        result = {}
        for name, kind, reduction in block.sums:
            if reduction in item.reductions and running:
                numbers = [x for engine in running for x in engine.reduction(block, reduction)]
                result[name] = max(numbers, default=0.0) if kind == "max" else _sum(numbers)
        return result


def _sum(numbers: Iterable[float]) -> float:
    total = 0.0
    for number in numbers:
        total += number
    return total


def prepare(optimizer: Optimizer, block: str, kept: Sequence[Prepared]) -> tuple[Prepared, list[Tensor]]:
    """The step's engines (kept ones, if nothing that matters has changed) and its gradients, in their order."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    grads: list[Any] = []
    if block == "step":
        grads = [p.grad for p in params]
        if None in map(_missing, grads):
            params = [p for p, grad in zip(params, grads, strict=True) if grad is not None]
            grads = [grad for grad in grads if grad is not None]
    else:
        params = [p for p in params if optimizer.state.get(p)]
    seen = Seen(block, list(map(id, params)), list(map(_dtype, grads)))
    for prepared in kept:
        if prepared.seen == seen and prepared.entries == _entries(optimizer) and _still_serves(optimizer, prepared):
            return prepared, grads
    return _Preparer(optimizer, params, seen).run(), grads


def _entries(optimizer: Optimizer) -> list[int]:
    return [*map(id, optimizer.param_groups), *map(id, optimizer.state.values())]


def _missing(grad: Tensor | None) -> bool | None:
    return None if grad is None else True


_dtype = operator.attrgetter("dtype")


def _still_serves(optimizer: Optimizer, prepared: Prepared) -> bool:
    """Whether the settings still ask for these kernels; changed ones are checked first."""
    settings = prepared.settings()
    raw = [_raw(optimizer, row) for row in settings]
    if raw == prepared.raw:
        return True
    for row, before, now in zip(settings, prepared.raw, raw, strict=True):
        if before != now:
            optimizer.check_row(row)
    if prepared.fixed != [_fixed(optimizer.rule, row) for row in settings]:
        return False
    prepared.raw = raw
    return True


def _raw(optimizer: Optimizer, settings: Settings) -> tuple[Any, ...]:
    """Every setting as it stands; a tensor, which can change in place, by its value."""
    values = [settings.get(key) for key in optimizer.defaults]
    return tuple([float(value) if isinstance(value, Tensor) else value for value in values])


def _fixed(rule: Rule, settings: Settings) -> tuple[Any, ...]:
    """What engines are built for: flags, so that a schedule of momentum keeps them, and how states are stored."""
    facts = (2, 1, 0, frozenset[str]())
    return (rule.flags(settings, *facts), settings["target"], *[settings.get(key) for key in rule.storage])


class _Preparer:
    def __init__(
        self,
        optimizer: Optimizer,
        params: list[Tensor],
        seen: Seen,
    ) -> None:
        self.optimizer, self.rule, self.block = optimizer, optimizer.rule, seen.block
        self.name = type(optimizer).__name__
        self.params, self.seen = params, seen
        self.rows: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
        self.known_rows: dict[tuple[Any, ...], int] = {}
        self.targets: dict[tuple[torch.device, str | None], str] = {}

    def run(self) -> Prepared:
        if self.block == "step":
            for param in self.params:
                assert param.grad is not None
                check_gradient(self.name, param.grad, param)
        members = self._members()
        buckets: dict[tuple[Any, ...], Bucket] = {}
        for member in members:
            self._bucket(buckets, member)
        engines = [self._engine(bucket) for bucket in buckets.values()]
        for member in members:
            view = View(self.rule, member, 0.0)
            settle_states(self.rule, member.param, member.entry, member.flags, member.codecs, view)
            self.optimizer.state[member.param] = member.entry
        return Prepared(
            members=members,
            engines=engines,
            rows=self.rows,
            fixed=[_fixed(self.rule, {**group, **override}) for group, override in self.rows],
            raw=[_raw(self.optimizer, {**group, **override}) for group, override in self.rows],
            elements=float(sum(p.numel() for p in self.params)),
            seen=self.seen,
            entries=_entries(self.optimizer),
        )

    def _members(self) -> list[Member]:
        active = {id(param): position for position, param in enumerate(self.params)}
        result = []
        for number, group in enumerate(self.optimizer.param_groups):
            overrides = group.get("overrides", {})
            for index, param in enumerate(group["params"]):
                if id(param) not in active:
                    continue
                override = overrides.get(index, {})
                settings = {**group, **override}
                codecs = choose_codecs(self.rule, settings, param.numel())
                flags = flags_of(self.rule, settings, param, index, tensorwise(self.rule, codecs))
                entry = self.optimizer.state.get(param, {})
                row = self._row(number, group, override)
                result.append(Member(param, active[id(param)], index, row, settings, entry, flags, codecs))
        return result

    def _row(self, number: int, group: dict[str, Any], override: Mapping[str, Any]) -> int:
        key = (number, *sorted(override.items(), key=lambda item: item[0]))
        if key not in self.known_rows:
            self.optimizer.check_row({**group, **override})
            self.known_rows[key] = len(self.rows)
            self.rows.append((group, override))
        return self.known_rows[key]

    def _bucket(self, buckets: dict[tuple[Any, ...], Bucket], member: Member) -> None:
        param = member.param
        grad_dtype = param.grad.dtype if self.block == "step" and param.grad is not None else param.dtype
        target = self._target(param, member.settings["target"])
        key = (target, param.dtype, grad_dtype, param.device, member.flags, member.codecs)
        if key not in buckets:
            buckets[key] = Bucket(target, param.dtype, grad_dtype, param.device, member.flags, member.codecs)
        buckets[key].members.append(member)

    def _target(self, param: Tensor, wanted: str | None) -> str:
        key = (param.device, wanted)
        if key not in self.targets:
            self.targets[key] = choose_target(self.name, param, wanted)
        return self.targets[key]

    def _engine(self, bucket: Bucket) -> Engine:
        compiler = find_compiler() if bucket.target == "cpu" else None
        if compiler is None:
            return TorchEngine(self.rule, bucket)
        try:
            return CpuEngine(self.rule, bucket, compiler)
        except CompileError as error:
            if any(member.settings["target"] == "cpu" for member in bucket.members):
                raise
            _say_once(f"a kernel of {self.name} could not be compiled, so the torch target serves: {error}")
            bucket.target = "torch"
            return TorchEngine(self.rule, bucket)


def choose_target(name: str, param: Tensor, wanted: str | None) -> str:
    """The target that serves a parameter.

    Raises:
        RuntimeError: when the cpu target is asked for and cannot serve.
    """
    if wanted == "torch":
        return "torch"
    if param.device.type != "cpu":
        if wanted == "cpu":
            raise RuntimeError(f"{name}: target='cpu' cannot serve a parameter on {param.device}; leave target out")
        return "torch"
    if find_compiler() is not None:
        return "cpu"
    if wanted == "cpu":
        raise RuntimeError(f"{name}: target='cpu' needs a C++ compiler: {why_no_compiler()}")
    _say_once(f"no C++ compiler, so the torch target serves: {why_no_compiler()}")
    return "torch"


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)

"""Prepares a step: which parameters take part, sorted into buckets, each with its engine; kept while nothing changes."""

from __future__ import annotations

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

    def begin(self, name: str, block: Block) -> None:
        """Start a step."""

    def run(self, block: Block, index: int, values: list[tuple[float, ...]]) -> None:
        """Run one pass."""

    def reduction(self, block: Block, name: str) -> list[float]:
        """A reduction's result for every parameter."""

    def finish(self, name: str) -> None:
        """End the step."""


@dataclass(eq=False)
class Prepared:
    """A step's parameters and engines.

    Attributes:
        rows: The settings of the step: (group, override) for every combination in use.
        elements: Elements of all parameters.
    """

    block: str
    members: list[Member]
    engines: list[Engine]
    rows: list[tuple[dict[str, Any], Mapping[str, Any]]]
    ids: list[int]
    kinds: list[tuple[torch.dtype, torch.layout]]
    fixed: list[tuple[Any, ...]]
    elements: float

    def settings(self) -> list[Settings]:
        """The settings of every row, as they are now."""
        return [{**group, **override} if override else group for group, override in self.rows]

    def sums(self, block: Block, item: Pass, running: Sequence[Engine]) -> dict[str, float]:
        """Sums over all parameters that a pass completes, in the order of parameters."""
        result = {}
        for name, operator, reduction in block.sums:
            if reduction in item.reductions and running:
                numbers = [x for engine in running for x in engine.reduction(block, reduction)]
                result[name] = max(numbers, default=0.0) if operator == "max" else _sum(numbers)
        return result


def _sum(numbers: Iterable[float]) -> float:
    total = 0.0
    for number in numbers:
        total += number
    return total


def prepare(optimizer: Optimizer, block: str, last: Prepared | None) -> Prepared:
    """The step's engines: the last step's, if the same parameters take part under the same settings."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    kinds: list[tuple[torch.dtype, torch.layout]] = []
    if block == "step":
        grads = [p.grad for p in params]
        if None in {None if g is None else 0 for g in grads}:
            params = [p for p, g in zip(params, grads, strict=True) if g is not None]
        kinds = [(g.dtype, g.layout) for g in grads if g is not None]
    else:
        params = [p for p in params if optimizer.state.get(p)]
    ids = list(map(id, params))
    if last is not None and last.block == block and last.ids == ids and last.kinds == kinds:
        if last.fixed == [_fixed(optimizer.rule, s) for s in last.settings()]:
            return last
    return _Preparer(optimizer, block, params, ids, kinds).run()


def _fixed(rule: Rule, settings: Settings) -> tuple[Any, ...]:
    return tuple([settings[key] for key in rule.fixed_by])


class _Preparer:
    def __init__(
        self,
        optimizer: Optimizer,
        block: str,
        params: list[Tensor],
        ids: list[int],
        kinds: list[tuple[torch.dtype, torch.layout]],
    ) -> None:
        self.optimizer, self.rule, self.block = optimizer, optimizer.rule, block
        self.name = type(optimizer).__name__
        self.params, self.ids, self.kinds = params, ids, kinds
        self.rows: list[tuple[dict[str, Any], Mapping[str, Any]]] = []
        self.known_rows: dict[tuple[Any, ...], int] = {}

    def run(self) -> Prepared:
        if self.block == "step":
            for param in self.params:
                assert param.grad is not None
                check_gradient(self.name, param.grad, param)
        members = self._members()
        buckets: dict[tuple[Any, ...], Bucket] = {}
        for member in members:
            self._bucket(buckets, member)
        for member in members:
            view = View(self.rule, member, 0.0)
            settle_states(self.rule, member.param, member.entry, member.flags, member.codecs, view)
            self.optimizer.state[member.param] = member.entry
        engines = [self._engine(bucket) for bucket in buckets.values()]
        return Prepared(
            block=self.block,
            members=members,
            engines=engines,
            rows=self.rows,
            ids=self.ids,
            kinds=self.kinds,
            fixed=[_fixed(self.rule, {**group, **override}) for group, override in self.rows],
            elements=float(sum(p.numel() for p in self.params)),
        )

    def _members(self) -> list[Member]:
        active = set(self.ids)
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
                result.append(Member(param, index, row, settings, entry, flags, codecs))
        return result

    def _row(self, number: int, group: dict[str, Any], override: Mapping[str, Any]) -> int:
        key = (number, *sorted(override.items(), key=lambda item: item[0]))
        if key not in self.known_rows:
            self.known_rows[key] = len(self.rows)
            self.rows.append((group, override))
        return self.known_rows[key]

    def _bucket(self, buckets: dict[tuple[Any, ...], Bucket], member: Member) -> None:
        param = member.param
        grad_dtype = param.grad.dtype if self.block == "step" and param.grad is not None else param.dtype
        target = choose_target(self.name, param, member.settings["target"])
        key = (target, param.dtype, grad_dtype, param.device, member.flags, member.codecs)
        if key not in buckets:
            buckets[key] = Bucket(target, param.dtype, grad_dtype, param.device, member.flags, member.codecs)
        buckets[key].members.append(member)

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
    _say_once(f"no C++ compiler, so the torch target serves {name}: {why_no_compiler()}")
    return "torch"


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=2)

"""Every class on one tensor of 10^7 float32 parameters, as a share of its plan's roofline.

Classes whose step is the same kernel over the same states are measured once, and said to be the same: what decides is
the rule, what its guards are by default, and how its states are stored. The classes of one rule take turns with torch's
fused AdamW and with the in-place update that measures the memory, so that both of a row's figures come from the same
minute. The bytes are those of the plan, which tests/schedule/test_least.py shows to be the least that a rule needs.
Classes that run functions of matrices are left out: those take most of their steps, and no memory limits them.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from optgen.bench.cases import Case
from optgen.bench.contenders import Contender, stock_classes
from optgen.bench.driving import arguments, begin_training, starting_settings
from optgen.bench.measure import Budget, Measured, Meter, Say, measure_case
from optgen.bench.peers import FUSED, torch_fused_adamw
from optgen.package_name import STOCK_PACKAGE

BITS = (32, 8, 4)
CASE = Case("1e7", ((2500, 4000),), 2)
LEAST_ROOFLINE = {32: 0.6, 8: 0.45, 4: 0.45}  # by bits
TARGET = "cpu"


@dataclass(frozen=True)
class Entry:
    """A step to measure.

    Attributes:
        alike: Other classes whose step it is too.
        bytes: Bytes per parameter, from the plan.
        own_target: Whether the class runs on a target of its own, which nothing is asked of here.
    """

    rule: str
    name: str
    bits: int
    alike: tuple[str, ...]
    states: int
    passes: int
    bytes: float
    own_target: bool = False

    @property
    def label(self) -> str:
        """Name in the table."""
        return f"{self.name} in {self.bits} bits"


@dataclass(frozen=True)
class Figure:
    """Figures of one entry; `failure` says why there are none."""

    entry: Entry
    seconds: float | None = None
    best: float | None = None
    samples: int = 0
    roofline: float | None = None
    against_fused: float | None = None
    failure: str = ""

    @property
    def flag(self) -> str:
        """Bound that the entry misses, in words; "" if it misses none."""
        if self.entry.own_target:
            return ""
        if self.roofline is None:
            return "not measured"
        least = LEAST_ROOFLINE[self.entry.bits]
        return f"below {100 * least:.0f} %" if self.roofline < least else ""

    @property
    def note(self) -> str:
        """The bound that the entry misses, and the reason if it has no figures."""
        return "; ".join(part for part in (self.flag, self.failure) if part)


def entries(only: Sequence[str] = (), bits: Sequence[int] = BITS) -> list[Entry]:
    """Entries to measure; classes with the same step share one.

    Args:
        only: Classes; none for all.
    """
    groups: dict[Any, list[tuple[Any, int]]] = {}
    for info in stock_classes():
        if runs_matrices(info) or (only and info.name not in only):
            continue
        for choice in info.bits_choices:
            if choice in bits:
                groups.setdefault(step_of(info.stored_in(choice)), []).append((info, choice))
    found = []
    for members in groups.values():
        info, choice = members[0]
        stored = info.stored_in(choice)
        own = stored.whole_rule.state_inputs  # matrices of shapes of their own among them
        alike = [other.name + ("" if c == other.bits else f" in {c} bits") for other, c in members[1:]]
        own_target = info.spec.entry.target is not None
        kept = [n for n in stored.setting.codecs if own[n].exists.holds(stored.setting.guards)]
        figures = (len(kept), stored.passes, stored.traffic, own_target)
        found.append(Entry(info.rule, info.name, choice, tuple(alike), *figures))
    return found


def of_matrices() -> list[str]:
    """Names of the classes that run functions of matrices."""
    return [info.name for info in stock_classes() if runs_matrices(info)]


def runs_matrices(info: Any) -> bool:
    """True if a step runs functions of matrices."""
    return bool(info.matrix_functions) or info.whole_rule.matrices is not None


def step_of(info: Any) -> tuple[object, ...]:
    """Key of a step: classes with equal keys run the same kernel over the same states."""
    setting = info.setting
    return (
        info.rule,
        tuple(sorted(setting.guards.items())),
        tuple(sorted((name, str(codec)) for name, codec in setting.codecs.items())),
        info.spec.entry.target,
    )


def contender(entry: Entry, classes: Mapping[str, Any]) -> Contender:
    """An entry as something to measure."""
    made = classes[entry.name]

    def make(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        target = {"target": TARGET} if "target" in arguments(made) else {}
        optimizer: torch.optim.Optimizer = made(params, **starting_settings(made, entry.bits), **target)
        begin_training(optimizer)
        return optimizer

    return Contender(entry.label, make, lambda *_: entry.bytes, ours=True)


Show = Callable[[Sequence["Figure"]], object]


def measure(
    found: Iterable[Entry], bandwidth: Meter, budget: Budget, say: Say, show: Show, case: Case = CASE
) -> tuple[list[Figure], list[dict[str, Any]]]:
    """Measure entries, one rule after another; return their figures, and what each rule was compared with.

    Args:
        show: Is given the figures of each rule as soon as they are known.
    """
    package = importlib.import_module(STOCK_PACKAGE)
    rules: dict[str, list[Entry]] = {}
    for entry in found:
        rules.setdefault(entry.rule, []).append(entry)
    figures: list[Figure] = []
    rounds: list[dict[str, Any]] = []
    began = time.perf_counter()
    for number, (rule, members) in enumerate(rules.items()):
        own = budget.for_case(time.perf_counter() - began, len(rules) - number)
        contenders = [*(contender(entry, package.CLASSES) for entry in members), *torch_fused_adamw()]
        result = measure_case(case, contenders, bandwidth, own, say)
        by_name = {one.contender.name: one for one in result.measured}
        other = by_name[FUSED]
        seconds = other.seconds if other.samples else None
        made = [figure(entry, by_name[entry.label], result.bandwidth, seconds, case) for entry in members]
        show(made)
        figures += made
        rounds.append({"family": rule, "bandwidth": result.bandwidth, "fused": seconds})
    return figures, rounds


def figure(entry: Entry, one: Measured, bandwidth: float, fused: float | None, case: Case = CASE) -> Figure:
    """The figures of an entry."""
    if not one.samples:
        return Figure(entry, failure=one.failure)
    return Figure(
        entry,
        seconds=one.seconds,
        best=min(one.samples),
        samples=len(one.samples),
        roofline=entry.bytes * case.numel / one.seconds / bandwidth,
        against_fused=None if fused is None else one.seconds / fused,
    )


def line(one: Figure) -> str:
    """A figure in one line."""
    parts = [f"{one.entry.label:32}"]
    if one.seconds is not None and one.roofline is not None:
        parts += [f"{1e3 * one.seconds:8.2f} ms", f"{100 * one.roofline:4.0f} % of the roofline"]
        parts += [] if one.against_fused is None else [f"{one.against_fused:.2f}x of fused"]
    return "  ".join([*parts, one.note]).rstrip()


COLUMNS = ("class", "rule", "note", "bits", "states", "passes", "B/param", "ms", "roofline", "vs fused")


def rows(figures: Sequence[Figure]) -> list[tuple[str, ...]]:
    """One row a figure, by rule, the most bits first."""
    made: list[tuple[str, ...]] = []
    for one in sorted(figures, key=lambda one: (one.entry.rule, -one.entry.bits, one.entry.name)):
        entry = one.entry
        more = f" +{len(entry.alike)}" if entry.alike else ""
        head = (
            entry.name + more,
            entry.rule,
            one.note,
            str(entry.bits),
            str(entry.states),
            str(entry.passes),
            f"{entry.bytes:.2f}",
        )
        if one.seconds is None or one.roofline is None:
            made.append((*head, "-", "-", "-"))
            continue
        ratio = "-" if one.against_fused is None else f"{one.against_fused:.2f}x"
        made.append((*head, f"{1e3 * one.seconds:.2f}", f"{100 * one.roofline:.0f} %", ratio))
    return made


def alike(figures: Sequence[Figure]) -> list[str]:
    """Lines of the table's legend: the classes that each entry marked with + stands for."""
    return [f"{one.entry.label}, and so {', '.join(one.entry.alike)}" for one in figures if one.entry.alike]


def records(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """The figures for JSON."""
    return [asdict(one) | {"flag": one.flag} for one in figures]

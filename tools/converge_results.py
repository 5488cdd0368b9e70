"""Statistics of `make converge`: do rules with small states train as well as with 32-bit ones?

Of one rule, task and number of bits there are n runs, one a seed. A seed decides the untrained model and its batches,
and is the same for all bits. The final loss of a run is the mean of held-out losses over its last fifth (`Run.final`),
always of the same held-out data. Let m_b be the mean of the n final losses in b bits, and s_32 the sample standard
deviation (n - 1) of those in 32 bits. Then

- the excess is (m_b - m_32) / m_32;
- the spread of the seeds is s_32 * sqrt(2 / n) / m_32: the standard error of the difference of two such means if bits
  made no difference and the runs were independent. It is taken from the 32-bit runs alone, so that runs in few bits
  that scatter cannot excuse themselves. They have the same seeds as those they are compared with, which makes the real
  error smaller;
- the bits pass if the excess is at most TOLERANCE plus the spread. A lower loss than that of 32 bits is no fault.

With one seed the spread is not known, and counts as 0. Apart from that every run must end below half its first loss.

"Against AdamW" is the distance of m_b from the mean of AdamW's final losses in 32 bits, of the same seeds and as many
steps. BESIDE_ADAMW says of some rules how much worse the text may be: 0 for those that must be better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from converge_runs import Run

FULL_BITS = 32
TOLERANCE = {16: 0.01, 8: 0.01, 4: 0.03}
TRAINED = 0.5  # of the first loss
ADAMW = "adam"  # the rule, without decay
BESIDE_ADAMW = {"muon": 0.0, "galore": 0.05, "apollo": 0.05}
JUDGED_BESIDE = "text"


@dataclass(frozen=True)
class Outcome:
    """The runs of one rule on one task in one number of bits.

    Attributes:
        excess: See above; None for 32 bits, and where there are no such runs to compare with.
        allowed: The most it may be.
        beside: Distance from AdamW in 32 bits; None if it has no such runs.
    """

    task: str
    family: str
    name: str
    bits: int
    start: float
    mean: float
    deviation: float
    quantized: float
    seconds: float
    seeds: int
    trained: bool
    excess: float | None = None
    allowed: float | None = None
    beside: float | None = None

    @property
    def passed(self) -> bool:
        """True if it trained, as well as in 32 bits, and beside AdamW as it should."""
        return self.trained and self.as_in_full and self.as_adamw

    @property
    def as_in_full(self) -> bool:
        """True if it is not worse than in 32 bits, or there is nothing to compare it with."""
        return self.excess is None or self.allowed is None or self.excess <= self.allowed

    @property
    def as_adamw(self) -> bool:
        """True if it is not worse than AdamW by more than it may, or there is nothing to compare it with."""
        most = BESIDE_ADAMW.get(self.family, math.inf) if self.task == JUDGED_BESIDE else math.inf
        return self.beside is None or self.beside <= most

    @property
    def verdict(self) -> str:
        """Verdict in words, with the reason if it did not pass."""
        if self.passed:
            return "yes"
        if not self.trained:
            return "no: not below half its start"
        return "no: worse than AdamW" if self.as_in_full else "no: worse than 32 bits"


def outcomes(runs: Iterable[Run]) -> list[Outcome]:
    """Outcomes of the runs, by task, rule and bits.

    Raises:
        ValueError: if runs that are compared do not have the same seeds and steps.
    """
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.wanted.task, run.wanted.family, run.wanted.bits), []).append(run)
    found = []
    for (task, family, bits), members in sorted(groups.items(), key=lambda item: (item[0][:2], -item[0][2])):
        full = groups.get((task, family, FULL_BITS))
        if full is not None and _conditions(full) != _conditions(members):
            raise ValueError(
                f"{task}, {family}: the runs in {bits} and {FULL_BITS} bits differ in seeds, steps or rate"
            )
        adamw = groups.get((task, ADAMW, FULL_BITS), [])
        comparable = family != ADAMW and _seeds_and_steps(adamw) == _seeds_and_steps(members)
        found.append(_outcome(members, full if bits != FULL_BITS else None, adamw if comparable else None))
    return found


def _conditions(runs: Sequence[Run]) -> list[tuple[int, int, float | None]]:
    return sorted((run.wanted.seed, run.wanted.steps, run.wanted.lr) for run in runs)


def _seeds_and_steps(runs: Sequence[Run]) -> list[tuple[int, int]]:
    return sorted((run.wanted.seed, run.wanted.steps) for run in runs)


def _outcome(members: Sequence[Run], full: Sequence[Run] | None, adamw: Sequence[Run] | None) -> Outcome:
    finals = [run.final for run in members]
    wanted = members[0].wanted
    mean = statistics.fmean(finals)
    excess = allowed = None
    if full is not None:
        base = [run.final for run in full]
        level = statistics.fmean(base)
        excess = (mean - level) / level
        allowed = TOLERANCE.get(wanted.bits, 0.0) + deviation(base) * math.sqrt(2 / len(base)) / level
    return Outcome(
        task=wanted.task,
        family=wanted.family,
        name=wanted.name,
        bits=wanted.bits,
        start=statistics.fmean(run.start for run in members),
        mean=mean,
        deviation=deviation(finals),
        quantized=statistics.fmean(run.quantized for run in members),
        seconds=statistics.fmean(run.seconds for run in members),
        seeds=len(members),
        trained=all(run.final < TRAINED * run.start for run in members),
        excess=excess,
        allowed=allowed,
        beside=None if adamw is None else mean / statistics.fmean(run.final for run in adamw) - 1,
    )


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 of a single value, NaN where one is not finite."""
    if not all(math.isfinite(value) for value in values):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0


# Tables

COLUMNS = (
    "task",
    "rule",
    "class",
    "bits",
    "seeds",
    "first",
    "final",
    "+-",
    "against 32",
    "allowed",
    "against AdamW",
    "small",
    "s",
    "passed",
)
RIGHT = ("bits", "seeds", "first", "final", "+-", "against 32", "allowed", "against AdamW", "small", "s")


def rows(found: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """One row an outcome: losses, their deviation over seeds, and the share of parameters with states below 32 bits."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{100 * value:+.2f} %"

    return [
        (
            one.task,
            one.family,
            one.name,
            str(one.bits),
            str(one.seeds),
            f"{one.start:.3f}",
            f"{one.mean:.4f}",
            f"{one.deviation:.4f}",
            share(one.excess),
            share(one.allowed),
            share(one.beside),
            f"{100 * one.quantized:.0f} %",
            f"{one.seconds:.1f}",
            one.verdict,
        )
        for one in found
    ]


def markdown(found: Sequence[Outcome]) -> str:
    """The table as Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "|".join("---:" if c in RIGHT else "---" for c in COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows(found))]) + "\n"


# The picture

COLOURS = {16: "#009E73", 8: "#0072B2", 4: "#D55E00"}
MOST_SHOWN = 0.10


def save_picture(found: Sequence[Outcome], path: Path) -> None:
    """Save a picture of the distance of each rule with small states from 32 bits: a PNG with a panel a task, dots, and
    what is allowed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    compared = [one for one in found if one.excess is not None]
    tasks = sorted({one.task for one in compared})
    families = sorted({one.family for one in compared}, reverse=True)
    bits = sorted({one.bits for one in compared}, reverse=True)
    if not compared:
        return
    figure = Figure(figsize=(4.6 * len(tasks) + 1.4, 1.6 + 0.34 * len(families)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        for one in compared:
            if one.task != task:
                continue
            assert one.excess is not None and one.allowed is not None  # noqa: PT018
            place = families.index(one.family) + 0.16 * ((len(bits) - 1) / 2 - bits.index(one.bits)) * 2
            colour = COLOURS.get(one.bits, "#555555")
            shown = MOST_SHOWN if not math.isfinite(one.excess) else max(-MOST_SHOWN, min(MOST_SHOWN, one.excess))
            axes.plot([0, min(MOST_SHOWN, one.allowed)], [place] * 2, color=colour, alpha=0.25, linewidth=5)
            marker = "o" if abs(one.excess) <= MOST_SHOWN else (">" if not one.excess < 0 else "<")
            face = colour if one.passed else "white"
            axes.plot(
                [shown], [place], marker=marker, color=colour, markerfacecolor=face, markersize=6, linestyle="none"
            )
        axes.axvline(0, color="#444444", linewidth=0.8)
        axes.set_xlim(-1.05 * MOST_SHOWN, 1.05 * MOST_SHOWN)
        axes.set_xticks([-0.1, -0.05, 0, 0.05, 0.1], ["-10 %", "-5 %", "0", "+5 %", "+10 %"])
        axes.set_title(task, loc="left", fontsize=11)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_ylim(-0.6, len(families) - 0.4)
    panels[0].set_yticks(range(len(families)), families)
    handles = [
        Line2D([], [], color=COLOURS.get(b, "#555555"), marker="o", linestyle="none", label=f"{b} bits") for b in bits
    ]
    handles.append(Line2D([], [], color="#555555", alpha=0.25, linewidth=5, label="allowed"))
    handles.append(
        Line2D([], [], color="#555555", marker="o", markerfacecolor="white", linestyle="none", label="failed")
    )
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
    figure.supxlabel("final held-out loss against that of 32-bit states", fontsize=10)
    figure.savefig(path)

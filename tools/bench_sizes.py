"""Time a parameter over the size of tensors, on one thread and on all, beside torch's fused AdamW and bitsandbytes.

A step has as many tensors of a size as make a million parameters, a thousand at most. The sizes on both sides of
`min_8bit_size` are among them: below it 8-bit classes keep 32-bit states.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from optgen.bench.cases import Case, case_of
from optgen.bench.contenders import Contender
from optgen.bench.measure import Budget, Meter, Say, measure_case
from optgen.bench.peers import BNB8, BNB32, FUSED
from optgen.bench.picture import write_figure

SIZES = (100, 300, 1000, 3000, 4095, 4096, *(digit * 10**power for power in range(4, 8) for digit in (1, 3)), 10**8)
MOST_TENSORS = 1000
PARAMETERS = 10**6
CLASSES = ("AdamW32bit", "AdamW8bit")
PEERS = ("torch", "bitsandbytes")
LINES = (*CLASSES, FUSED, BNB32, BNB8)
BUDGET = Budget(run_seconds=160.0, case_seconds=2.5, aging_seconds=0.5, least=2, most=40)
QUICK = Budget(run_seconds=60.0, case_seconds=0.5, aging_seconds=0.2, least=1, most=5)
QUICK_SIZES = (100, 1000, 4095, 4096, 10**5, 10**6)
COLOURS = {"AdamW32bit": "#0072B2", "AdamW8bit": "#56B4E9", FUSED: "#333333", BNB32: "#D55E00", BNB8: "#E69F00"}


@dataclass(frozen=True)
class Point:
    """Nanoseconds a parameter of a contender, for tensors of a size on so many threads."""

    threads: int
    size: int
    name: str
    nanoseconds: float


def case_of_size(size: int) -> Case:
    """The tensors of a size that one step has."""
    count = max(1, min(MOST_TENSORS, PARAMETERS // size))
    return case_of(f"{count} x {size}", ((size,),) * count, "float32", 4)


def measure(
    contenders: Sequence[Contender], meter: Meter, budget: Budget, sizes: Sequence[int], say: Say
) -> Iterator[Point]:
    """Measure every size on one thread and on all; the number of threads is as it was afterwards."""
    most = torch.get_num_threads()
    rounds = [(size, threads) for size in sizes for threads in sorted({1, most})]
    began = time.perf_counter()
    try:
        for number, (size, threads) in enumerate(rounds):
            torch.set_num_threads(threads)
            case = case_of_size(size)
            say(f"{case.name} on {threads}", number / len(rounds))
            own = budget.for_case(time.perf_counter() - began, len(rounds) - number)
            result = measure_case(case, contenders, meter, own, lambda *_: None)
            for one in result.measured:
                if one.samples:
                    yield Point(threads, size, one.contender.name, 1e9 * one.seconds / case.numel)
    finally:
        torch.set_num_threads(most)


def columns(points: Sequence[Point]) -> tuple[str, ...]:
    """Columns of the table: those that were measured, in the order of LINES."""
    return "threads", "tensor of", *(name for name in LINES if any(point.name == name for point in points))


def rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """One row for a size on so many threads: nanoseconds a parameter."""
    times = {(point.threads, point.size, point.name): point.nanoseconds for point in points}
    shown = dict.fromkeys(columns(points)[2:])
    found = []
    for threads, size in dict.fromkeys((point.threads, point.size) for point in sorted(points, key=_place)):
        cells = (times.get((threads, size, name)) for name in shown)
        found.append((str(threads), f"{size:,}", *("-" if cell is None else f"{cell:#.3g}" for cell in cells)))
    return found


def _place(point: Point) -> tuple[int, int]:
    return point.threads, point.size


def draw(points: Sequence[Point], path: Path, machine: str) -> None:
    """Draw the times, a panel for each number of threads, as a PNG.

    Args:
        machine: Description of the machine, in a line.
    """
    from matplotlib.figure import Figure

    counts = sorted({point.threads for point in points})
    figure = Figure(figsize=(5.5 * len(counts), 4.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, threads in zip(panels, counts, strict=True):
        for name in LINES:
            line = sorted(
                (point.size, point.nanoseconds) for point in points if (point.threads, point.name) == (threads, name)
            )
            if line:
                axes.plot(*zip(*line, strict=True), "o-", color=COLOURS[name], label=name, markersize=4, linewidth=1.6)
        _finish(axes, threads)
    panels[0].set_ylabel("nanoseconds a parameter and step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(
        f"Time a parameter over the size of tensors\n{textwrap.fill(machine, 75 * len(counts))}",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    write_figure(figure, path)


def _finish(axes: Any, threads: int) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.axvline(4096, color="#bbbbbb", linewidth=1, linestyle=":", zorder=0)
    axes.annotate(
        "8-bit states from here", (4096, 0.98), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
        fontsize=8, color="#777777", va="top",
    )  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("parameters of a tensor")
    axes.set_title("1 thread" if threads == 1 else f"{threads} threads", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)

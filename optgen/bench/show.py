"""Results as rows of a table and as records for JSON, and the progress of measuring."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from optgen.bench.measure import STATES_AGE, CaseResult, Measured, Say
from optgen.bench.peers import FUSED
from optgen.console import print_progress
from optgen.diagnostics import printable

COLUMNS = (
    "optimizer",
    "median ms",
    "best ms",
    "steps",
    "GB/s",
    "roofline",
    "state B/param",
    "speed vs fused",
    "engine, notes",
)
WORDS = ("optimizer", "engine, notes")
UNKNOWN = "-"


def in_order(result: CaseResult) -> list[Measured]:
    """Fastest first, those that failed last."""
    return sorted(result.measured, key=lambda one: one.seconds if one.samples else float("inf"))


def fused_seconds(result: CaseResult) -> float | None:
    """The time of the yardstick, if it was measured."""
    return next((one.seconds for one in result.measured if one.contender.name == FUSED and one.samples), None)


def rows(result: CaseResult) -> list[tuple[str, ...]]:
    """One row a contender, by COLUMNS."""
    fused = fused_seconds(result)
    made: list[tuple[str, ...]] = []
    for one in in_order(result):
        if not one.samples:
            made.append((one.contender.name, *[UNKNOWN] * (len(COLUMNS) - 2), one.failure))
            continue
        moved = one.contender.bytes_moved(result.case)
        rate = None if moved is None else moved / one.seconds
        made.append(
            (
                one.contender.name,
                f"{1e3 * one.seconds:.2f}",
                f"{1e3 * min(one.samples):.2f}",
                str(len(one.samples)),
                UNKNOWN if rate is None else f"{rate / 1e9:.1f}",
                UNKNOWN if rate is None else f"{100 * rate / result.bandwidth:.0f} %",
                UNKNOWN if one.state_bytes is None else f"{one.state_bytes / result.case.numel:.2f}",
                UNKNOWN if fused is None else f"{fused / one.seconds:.2f}x",
                note(one),
            )
        )
    return made


def note(one: Measured) -> str:
    """Engine that ran, and remarks that make a figure less certain."""
    parts = [", ".join(sorted(one.engines))]
    if one.age < STATES_AGE:
        parts.append(f"states {one.age} steps old")
    return " ".join(part for part in parts if part)


def record(result: CaseResult) -> dict[str, Any]:
    """A case's result for JSON, with every sample; seconds and bytes."""
    return {
        "case": result.case.name,
        "parameters": result.case.numel,
        "tensors": len(result.case.shapes),
        "dtype": result.case.dtype,
        "bandwidth": result.bandwidth,
        "bandwidth_samples": result.bandwidth_samples,
        "optimizers": [_one_record(one, result) for one in in_order(result)],
    }


def _one_record(one: Measured, result: CaseResult) -> dict[str, Any]:
    moved = one.contender.bytes_moved(result.case)
    found: dict[str, Any] = {"name": one.contender.name, "ours": one.contender.ours, "age": one.age}
    found |= {"engines": one.engines, "failure": one.failure, "bytes": moved, "state_bytes": one.state_bytes}
    each = None if one.state_bytes is None else one.state_bytes / result.case.numel
    found |= {"state_bytes_per_parameter": each, "samples": one.samples}
    found |= {"median": None, "best": None, "roofline": None}
    if one.samples:
        found |= {"median": one.seconds, "best": min(one.samples)}
        found["roofline"] = None if moved is None else moved / one.seconds / result.bandwidth
    return found


@contextlib.contextmanager
def progress(title: str) -> Iterator[Say]:
    """A bar on standard error where that is a terminal, elsewhere a line whenever something else begins."""
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    title = printable(title)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda text, share: bar.update(task, description=f"{title}: {text}", completed=share)


def _lines(title: str) -> Say:
    said: set[str] = set()

    def say(text: str, share: float) -> None:
        if text not in said:
            said.add(text)
            print_progress(f"{title}: {text} ({100 * share:.0f} %)")

    return say

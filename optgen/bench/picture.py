"""The picture of a bench: the time of a step beside the least that its bytes take, and what states take."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optgen.bench.measure import CaseResult, Measured
from optgen.bench.show import in_order
from optgen.emit.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, OTHERS, ROOFLINE, INK = "#0072B2", "#8a8a8a", "#D55E00", "#333333"  # colours of Okabe and Ito
ROW, EDGES, WIDTH = 0.42, 1.9, 11.0  # inches
LINE = 110  # characters that the width holds
LOGARITHMIC_FROM = 20.0  # times between the slowest and the fastest
CROWDED_FROM = 1000.0  # times between the ends of a logarithmic axis: beyond it only powers of ten have numbers


def save_picture(result: CaseResult, path: Path, machine: str) -> None:
    """Draw what was measured, a row an optimizer, fastest at the top, as a PNG.

    Args:
        machine: Description of the machine, in a line.
    """
    from matplotlib.figure import Figure

    able = [one for one in in_order(result) if one.samples]
    figure = Figure(figsize=(WIDTH, EDGES + ROW * len(able)), dpi=150, layout="constrained")
    times, states = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1.0))
    _times(times, result, able)
    _states(states, result, able)
    both = len({one.contender.ours for one in able}) == 2
    names = [f"optgen {one.contender.name}" if both and one.contender.ours else one.contender.name for one in able]
    times.set_yticks(range(len(able)), names)
    for label, one in zip(times.get_yticklabels(), able, strict=True):
        label.set_color(OURS if both and one.contender.ours else INK)
    times.set_ylim(len(able) - 0.4, -0.6)
    case = result.case
    tensors = "1 tensor" if len(case.shapes) == 1 else f"{len(case.shapes)} tensors"
    title = f"{case.name}: {tensors}, {case.numel / 1e6:.4g} M {case.dtype} parameters"
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    figure.supxlabel(
        textwrap.fill(f"{machine}, {result.bandwidth / 1e9:.0f} GB/s", LINE), fontsize=9, x=0.01, ha="left", color=INK
    )
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure of matplotlib's as a PNG, whole or not at all; folders that are missing are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_whole(path, drawn.getvalue())


def _colour(one: Measured) -> str:
    return OURS if one.contender.ours else OTHERS


def _times(axes: Any, result: CaseResult, able: Sequence[Measured]) -> None:
    """Bars from 0, or points on a logarithmic axis where one bar would leave nothing of the others."""
    from matplotlib.ticker import LogLocator, NullFormatter

    slowest, fastest = able[-1].seconds, able[0].seconds
    logarithmic = slowest > LOGARITHMIC_FROM * fastest
    least = [_least(one, result) for one in able]
    for row, (one, roofline) in enumerate(zip(able, least, strict=True)):
        milliseconds = 1e3 * one.seconds
        if logarithmic:
            if roofline is not None:
                axes.plot([1e3 * roofline, milliseconds], [row, row], color="#d8d8d8", linewidth=2, zorder=1)
            axes.plot([milliseconds], [row], "o", color=_colour(one), markersize=7, zorder=3)
        else:
            axes.barh(row, milliseconds, height=0.6, color=_colour(one))
        if roofline is not None:
            axes.plot([1e3 * roofline] * 2, [row - 0.34, row + 0.34], color=ROOFLINE, linewidth=2, zorder=2)
        right = max(milliseconds, 0.0 if roofline is None else 1e3 * roofline)
        share = "" if roofline is None else f"  {100 * roofline / one.seconds:.0f} %"
        axes.annotate(
            f"{_number(milliseconds)} ms{share}",
            (right, row),
            (7, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    marked = [roofline for roofline in least if roofline is not None]
    if logarithmic:
        left = 1e3 * min([fastest, *marked]) / 1.5
        ends = left, left * (1e3 * slowest / left) ** 1.35  # the rest is for the words beside the slowest
        axes.set_xscale("log", subs=range(2, 10))
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < CROWDED_FROM * ends[0] else (1,)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(*ends)
    else:
        axes.set_xlim(0, 1e3 * max([slowest, *marked]) * 1.38)
    axes.set_xlabel("milliseconds a step" + (" (logarithmic)" if logarithmic else ""))
    if marked:
        axes.set_title(
            "Time. Orange: the least that its bytes take, and how near it comes", loc="left", fontsize=10, color=INK
        )
    _plain(axes)


def _number(value: float) -> str:
    """Three digits, or all in front of the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _least(one: Measured, result: CaseResult) -> float | None:
    """The seconds that a step's bytes take at the bandwidth that was measured."""
    moved = one.contender.bytes_moved(result.case)
    return None if moved is None else moved / result.bandwidth


def _states(axes: Any, result: CaseResult, able: Sequence[Measured]) -> None:
    from matplotlib.ticker import MaxNLocator

    largest = 0.0
    for row, one in enumerate(able):
        if one.state_bytes is None:
            continue
        each = one.state_bytes / result.case.numel
        largest = max(largest, each)
        axes.barh(row, each, height=0.6, color=_colour(one))
        axes.annotate(f"{each:.3g}", (each, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xlim(0, 1.15 * (largest or 1.0))
    axes.set_xlabel("bytes a parameter")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 4, 5, 8, 10]))  # states have 1, 2, 4 or 8 bytes
    both = len({one.contender.ours for one in able}) == 2
    axes.set_title(
        "Memory of the states" + (". Blue: optgen's classes" if both else ""), loc="left", fontsize=10, color=INK
    )
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)

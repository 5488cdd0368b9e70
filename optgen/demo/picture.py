"""The picture of the loss curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optgen.bench.picture import write_figure
from optgen.demo.training import Run

# Widths and dashes tell curves apart that lie on one another; colours are those of Okabe and Ito.
_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#8a8a8a", "linewidth": 6.0},
    {"color": "#0072B2", "linewidth": 2.0},
    {"color": "#D55E00", "linewidth": 2.0, "linestyle": (0, (2, 2))},
    {"color": "#009E73", "linewidth": 2.0},
)
_LABEL_HEIGHT = 0.062


def save_picture(runs: Sequence[Run], path: Path) -> None:
    """Draw the held-out loss of each run over the steps, each curve with its name at its end, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for run, style in zip(runs, _STYLES, strict=False):
        axes.plot(list(run.losses), list(run.losses.values()), label=run.name, solid_capstyle="round", **style)
    last = max(runs[0].losses)
    axes.set_xlim(0, last)
    low, high = axes.get_ylim()
    gap = _LABEL_HEIGHT * (high - low)
    for (run, style), height in zip(
        _by_final_loss(runs), _spread([run.final_loss for run, _ in _by_final_loss(runs)], gap), strict=True
    ):
        axes.annotate(
            f"{run.name}  {run.final_loss:.3f}",
            (last, run.final_loss),
            xytext=(1.05, height),
            textcoords=axes.get_yaxis_transform(),
            color=style["color"],
            va="center",
            fontsize=10,
            arrowprops={
                "arrowstyle": "-",
                "color": style["color"],
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss (nats per character)")
    axes.set_title("The same model and batches, four optimizers", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    write_figure(figure, path)


def _by_final_loss(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    pairs = list(zip(runs, _STYLES, strict=False))
    return sorted(pairs, key=lambda pair: pair[0].final_loss)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights apart to at least `gap`, as little as possible: a crowd spreads around its middle."""
    crowds: list[tuple[float, int]] = []  # lowest place and number of labels
    for height in heights:
        low, count = height, 1
        while crowds and crowds[-1][0] + crowds[-1][1] * gap > low:
            below, below_count = crowds.pop()
            total = below_count + count
            low = (below * below_count + (low - below_count * gap) * count) / total
            count = total
        crowds.append((low, count))
    return [low + index * gap for low, count in crowds for index in range(count)]

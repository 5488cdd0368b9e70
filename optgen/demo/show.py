"""Shows the demo's training while it goes on: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from optgen.console import is_terminal, print_table, print_text
from optgen.demo.training import Run

Report = Callable[[int, float], None]


@contextlib.contextmanager
def progress(names: Sequence[str], steps: int) -> Iterator[Callable[[str], Report]]:
    """Gives, for a name, the function that is told of each step done and its loss."""
    if is_terminal():
        with _live(names, steps) as start:
            yield start
    else:
        yield lambda name: _lines(name, steps)


@contextlib.contextmanager
def _live(names: Sequence[str], steps: int) -> Iterator[Callable[[str], Report]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with bar:
        tasks = {name: bar.add_task(name, total=steps, loss="  -  ", start=False) for name in names}

        def start(name: str) -> Report:
            bar.start_task(tasks[name])
            return lambda step, loss: bar.update(tasks[name], completed=step, loss=f"{loss:.3f}")

        yield start


def _lines(name: str, steps: int) -> Report:
    every = max(1, steps // 4)

    def report(step: int, loss: float) -> None:
        if step % every == 0 or step == steps:
            print_text(f"{name}: step {step}/{steps}, loss {loss:.3f}")

    return report


def print_runs(runs: Sequence[Run]) -> None:
    """Print what came of each run, as a table."""
    columns = ("optimizer", "held-out loss", "state B/param", "step ms", "engine", "total s")
    rows = [
        (
            run.name,
            f"{run.final_loss:.3f}",
            f"{run.state_bytes_per_parameter:.2f}",
            f"{run.step_milliseconds:.2f}",
            run.engine,
            f"{run.seconds:.0f}",
        )
        for run in runs
    ]
    print_table(columns, rows, right=("held-out loss", "state B/param", "step ms", "total s"))

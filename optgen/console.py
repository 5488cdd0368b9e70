"""How results are shown: Rich tables and colours on a terminal, plain aligned text everywhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Row = Sequence[str]


def console(*, stderr: bool = False) -> Console:
    """A Rich console that neither interprets markup nor paints numbers."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


def is_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def print_table(columns: Sequence[str], rows: Iterable[Row], right: Sequence[str] = ()) -> None:
    """Print rows of text under their column names; the columns in `right` are aligned to the right (numbers)."""
    if is_terminal():
        _print_rich(columns, rows, right)
    else:
        _print_plain(columns, rows, right)


def print_json(value: object) -> None:
    """Print a value as JSON, indented, with its keys in the order given."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_error(text: str) -> None:
    """Print an error to standard error; on a terminal, its first words and its carets are red."""
    from rich.text import Text

    shown = Text(text)
    shown.highlight_regex(r"(?m)^error(\[[a-z0-9-]+\])?(?=:)", "bold red")
    shown.highlight_regex(r"(?m)^ *\| +\^+", "red")
    console(stderr=True).print(shown)


def _print_rich(columns: Sequence[str], rows: Iterable[Row], right: Sequence[str]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column == columns[0]
        )
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False, emoji=False).print(table)


def _print_plain(columns: Sequence[str], rows: Iterable[Row], right: Sequence[str]) -> None:
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())

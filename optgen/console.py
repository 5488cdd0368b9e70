"""Output of commands: Rich tables and colours on a terminal, plain aligned text everywhere else.

Whatever commands print goes through here, since names and texts may come from files and paths of others: a character
that could move the cursor, colour the screen or turn the reading direction is shown as an escape.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from optgen.diagnostics import printable
from optgen.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

Row = Sequence[str]


def is_terminal() -> bool:
    """Check whether standard output is a terminal."""
    return sys.stdout.isatty()


def print_text(text: str = "", *, end: str = "\n", style: str = "") -> None:
    """Print text of any number of lines; on a terminal in a style of Rich's, such as "red".

    Raises:
        UserError: standard output cannot be written to.
    """
    with _output():
        if style and is_terminal():
            _console().print(_shown(text), end=end, style=style)
        else:
            sys.stdout.write(_shown(text) + end)
            sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Row], right: Sequence[str] = ()) -> None:
    """Print rows of text under their column names; the columns in `right` are aligned to the right (numbers).

    Raises:
        UserError: standard output cannot be written to.
    """
    shown = [[printable(cell) for cell in row] for row in rows]
    if is_terminal():
        with _output():
            _print_rich(columns, shown, right)
    else:
        print_text(_plain(columns, shown, right))


def print_json(value: object) -> None:
    """Print a value as JSON, indented, with its keys in the order given.

    Raises:
        UserError: standard output cannot be written to.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # A character of JSON that is not printable stands inside of a string, where JSON has an escape for it.
    print_text("".join(char if char == "\n" or printable(char) == char else json.dumps(char)[1:-1] for char in text))


def print_error(text: str) -> None:
    """Print an error to standard error; on a terminal, its first words and its carets are red."""
    from rich.text import Text

    shown = Text(_shown(text))
    shown.highlight_regex(r"(?m)^error(\[[a-z0-9-]+\])?(?=:)", "bold red")
    shown.highlight_regex(r"(?m)^warning(\[[a-z0-9-]+\])?(?=:)", "bold yellow")
    shown.highlight_regex(r"(?m)^ *\| +\^+", "red")
    with suppress(OSError):  # there is no other place to say it
        _console(stderr=True).print(shown)


def print_progress(text: str) -> None:
    """Print a line to standard error, of what goes on; what it does not take is nothing to fail for."""
    with suppress(OSError):
        sys.stderr.write(_shown(text) + "\n")
        sys.stderr.flush()


def brief(value: float) -> str:
    """A number without needless zeros: `28`, `16.03`."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _shown(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


@contextmanager
def _output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever read has seen enough
        raise
    except OSError as error:
        raise UserError(f"cannot write to standard output: {error.strerror}") from error


def _console(*, stderr: bool = False) -> Console:
    """A Rich console that neither interprets markup nor paints numbers."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True)


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


def _plain(columns: Sequence[str], rows: Iterable[Row], right: Sequence[str]) -> str:
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    shown = []
    for line in lines:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, line, widths, strict=True)
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)

"""What is shown to people whose spec has a mistake: where it is, what is wrong, what would be right.

Errors are collected by a `Reporter` and raised once, as one `SpecError`, so that a run shows all of them:

    error[undefined-name]: `beta3` is not a hyperparameter or state of `adamw`
     --> specs/adamw.yaml:14:15
    14 |     exp_avg = beta3 * exp_avg + (1 - beta1) * grad
       |               ^^^^^ did you mean `beta1`?
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

MAX_SHOWN = 50
"""How many diagnostics `str(SpecError)` prints; the rest is counted."""

_LINE_WIDTH = 160
_LEFT_CONTEXT = 60


@dataclass(frozen=True)
class Location:
    """A stretch of one line of a file. `line` and `column` count from 1, `column` and `length` in characters."""

    file: str
    line: int
    column: int
    length: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Diagnostic:
    """One mistake. `rule` is a stable kebab-case id such as `undefined-name`; `help` says what would be right."""

    rule: str
    message: str
    location: Location | None
    help: str = ""
    source_line: str = ""

    def __str__(self) -> str:
        return format_diagnostic(self)


class SpecError(Exception):
    """All mistakes found in a run, sorted by file, line and column, without duplicates."""

    diagnostics: tuple[Diagnostic, ...]

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(dict.fromkeys(diagnostics), key=_sort_key))
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        """The formatted diagnostics, at most `MAX_SHOWN` of them."""
        parts = [format_diagnostic(diagnostic) for diagnostic in self.diagnostics[:MAX_SHOWN]]
        hidden = len(self.diagnostics) - len(parts)
        if hidden > 0:
            parts.append(f"and {hidden} more error{'s' if hidden > 1 else ''}")
        return "\n\n".join(parts)


class Reporter:
    """Collects the errors of a run.

    Whoever reads a file hands its text to `add_source`, so that diagnostics can show the line they are about.
    """

    def __init__(self) -> None:
        self._diagnostics: list[Diagnostic] = []
        self._sources: dict[str, list[str]] = {}

    def add_source(self, file: str, text: str) -> None:
        """Remember the text of `file`, whose lines end in a line feed."""
        self._sources[file] = text.split("\n")

    def error(self, rule: str, message: str, location: Location | None, help: str = "") -> None:
        """Collect one error; it is raised by `raise_if_any`."""
        self._diagnostics.append(Diagnostic(rule, message, location, help, self._line(location)))

    def add(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Collect errors that were raised elsewhere, for example those of a `SpecError`."""
        for diagnostic in diagnostics:
            line = diagnostic.source_line or self._line(diagnostic.location)
            self._diagnostics.append(replace(diagnostic, source_line=line))

    @property
    def has_errors(self) -> bool:
        """Whether anything was collected so far."""
        return bool(self._diagnostics)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """What was collected so far, sorted, without duplicates."""
        return SpecError(self._diagnostics).diagnostics

    def raise_if_any(self) -> None:
        """Raises:
        SpecError: with everything that was collected, if anything was.
        """
        if self._diagnostics:
            raise SpecError(self._diagnostics)

    def _line(self, location: Location | None) -> str:
        if location is None:
            return ""
        lines = self._sources.get(location.file, [])
        return lines[location.line - 1] if 0 < location.line <= len(lines) else ""


def format_diagnostic(diagnostic: Diagnostic) -> str:
    """The diagnostic as text: its message, the place, the line with a caret under it, the help."""
    lines = [f"error[{diagnostic.rule}]: {printable(diagnostic.message)}"]
    location, help_text = diagnostic.location, printable(diagnostic.help)
    if location is not None:
        lines.append(f" --> {printable(str(location))}")
    if location is None or not diagnostic.source_line.strip():
        if help_text:
            lines.append(f"  = help: {help_text}")
        return "\n".join(lines)
    excerpt, offset, length = _excerpt(diagnostic.source_line, location)
    number = str(location.line)
    lines.append(f"{number} | {excerpt}".rstrip())
    lines.append(f"{' ' * len(number)} | {' ' * offset}{'^' * length} {help_text}".rstrip())
    return "\n".join(lines)


def suggest(name: str, candidates: Iterable[str]) -> str:
    """A line of help naming the candidate that `name` was probably meant to be, or "" if none is close."""
    known = sorted(set(candidates) - {name})
    if len(name) > 100:
        return ""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean `{by_lower[close[0]]}`?" if close else ""


def printable(text: str) -> str:
    """`text` with everything that could disturb a terminal or break the line shown as an escape."""
    return "".join(char if _is_printable(char) else _escape(char) for char in text)


def _is_printable(char: str) -> bool:
    return char == " " or (char.isprintable() and unicodedata.category(char) not in {"Cs", "Co", "Cn"})


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def _excerpt(line: str, location: Location) -> tuple[str, int, int]:
    """The part of the line to show, where its caret starts, and how wide the caret is, in terminal cells."""
    line = line.replace("\t", " ")
    line = "".join(char if _is_printable(char) else "\N{REPLACEMENT CHARACTER}" for char in line)
    column = min(max(location.column - 1, 0), len(line))
    end = min(column + max(location.length, 1), len(line))
    prefix = ""
    if len(line) > _LINE_WIDTH:
        start = max(0, column - _LEFT_CONTEXT)
        stop = start + _LINE_WIDTH
        prefix = "..." if start else ""
        suffix = "..." if stop < len(line) else ""
        line = line[start:stop] + suffix
        column, end = column - start, min(end, stop) - start
    return prefix + line, len(prefix) + _cells(line[:column]), max(_cells(line[column:end]), 1)


def _cells(text: str) -> int:
    """How many terminal cells the text takes: wide characters take two, combining marks none."""
    cells = 0
    for char in text:
        if not unicodedata.combining(char):
            cells += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return cells


def _sort_key(diagnostic: Diagnostic) -> tuple[str, int, int, str, str]:
    location = diagnostic.location
    if location is None:
        return "", 0, 0, diagnostic.rule, diagnostic.message
    return location.file, location.line, location.column, diagnostic.rule, diagnostic.message

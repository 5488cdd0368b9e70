"""Messages about mistakes in a spec: the place, what is wrong, and what would be right.

Errors are collected by a `Reporter` and raised once, as one `SpecError`, so that a run shows all of them. Warnings, of
what is allowed and was hardly meant, are collected beside them and stop nothing:

    error[undefined-name]: `beta3` is not a hyperparameter or state of `adamw`
     --> specs/adamw.yaml:14:15
    14 |     exp_avg = beta3 * exp_avg + (1 - beta1) * grad
       |               ^^^^^ did you mean `beta1`?
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

MAX_SHOWN = 50
"""Number of diagnostics that `str(SpecError)` prints; the rest is counted."""

_LINE_WIDTH = 160
_LEFT_CONTEXT = 60


@dataclass(frozen=True)
class Location:
    """A stretch of one line of a file. `line` and `column` count from 1, `column` and `length` in characters.

    `within` are the lines of functions that a call at this place leads to, the outermost first.
    """

    file: str
    line: int
    column: int
    length: int = 1
    within: tuple[Location, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Diagnostic:
    """One mistake. `rule` is a stable kebab-case id such as `undefined-name`; `help` says what would be right.

    `source_line` is the line of its location, `inner_lines` those that this is within.
    """

    rule: str
    message: str
    location: Location | None
    help: str = ""
    source_line: str = ""
    severity: Literal["error", "warning"] = "error"
    inner_lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        return format_diagnostic(self)


class SpecWarning(UserWarning):
    """Warning about text in a spec that is allowed but was hardly meant, such as a state that changes nothing."""


class SpecError(Exception):
    """All mistakes found in a run, sorted by file, line and column, without duplicates."""

    diagnostics: tuple[Diagnostic, ...]

    def __init__(self, diagnostics: Iterable[Diagnostic]) -> None:
        self.diagnostics = tuple(sorted(dict.fromkeys(diagnostics), key=_sort_key))
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        """The formatted diagnostics, at most `MAX_SHOWN` of them."""
        return format_diagnostics(self.diagnostics)


def strictly(warnings: Iterable[Diagnostic]) -> SpecError:
    """Warnings as errors."""
    return SpecError(replace(warning, severity="error") for warning in warnings)


class Reporter:
    """Collects the errors and warnings of a run.

    Whoever reads a file hands its text to `add_source`, so that diagnostics can show the line they are about.
    """

    def __init__(self) -> None:
        self._diagnostics: list[Diagnostic] = []
        self._sources: dict[str, list[str]] = {}

    def add_source(self, file: str, text: str) -> None:
        """Remember the text of `file`, whose lines end in a line feed."""
        self._sources[file] = text.split("\n")

    def error(self, rule: str, message: str, location: Location | None, help: str = "") -> None:
        """Collect one error; it is raised by `raise_if_any`. What a call is wrong in is said once a place."""
        if location is not None and location.within and self._is_reported(rule, message, location):
            return
        self.add([Diagnostic(rule, message, location, help)])

    def warning(self, rule: str, message: str, location: Location | None, help: str = "") -> None:
        """Collect one warning."""
        self.add([Diagnostic(rule, message, location, help, severity="warning")])

    def add(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Collect what was raised elsewhere, for example the errors of a `SpecError`."""
        for diagnostic in diagnostics:
            place = diagnostic.location
            line = diagnostic.source_line or self._line(place)
            inner = diagnostic.inner_lines or tuple(self._line(part) for part in (place.within if place else ()))
            self._diagnostics.append(replace(diagnostic, source_line=line, inner_lines=inner))

    @property
    def error_count(self) -> int:
        """Number of the errors collected so far."""
        return sum(diagnostic.severity == "error" for diagnostic in self._diagnostics)

    @property
    def has_errors(self) -> bool:
        """True if any error was collected so far."""
        return self.error_count > 0

    def errors_in(self, file: str) -> bool:
        """Check whether any error was collected whose location is in `file`."""
        errors = (diagnostic for diagnostic in self._diagnostics if diagnostic.severity == "error")
        return any(error.location is not None and error.location.file == file for error in errors)

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Diagnostics collected so far, sorted, without duplicates."""
        return SpecError(self._diagnostics).diagnostics

    def raise_if_any(self) -> None:
        """Raises:
        SpecError: with all errors, if there are any. What is said of a spec in order can wait until it is.
        """
        if self.has_errors:
            raise SpecError(diagnostic for diagnostic in self._diagnostics if diagnostic.severity == "error")

    def _is_reported(self, rule: str, message: str, location: Location) -> bool:
        said = (rule, message, str(location))
        return any((known.rule, known.message, str(known.location)) == said for known in self._diagnostics)

    def _line(self, location: Location | None) -> str:
        if location is None:
            return ""
        lines = self._sources.get(location.file, [])
        return lines[location.line - 1] if 0 < location.line <= len(lines) else ""


def format_diagnostics(diagnostics: Sequence[Diagnostic]) -> str:
    """Diagnostics as text, at most `MAX_SHOWN` of them."""
    parts = [format_diagnostic(diagnostic) for diagnostic in diagnostics[:MAX_SHOWN]]
    if len(diagnostics) > len(parts):
        parts.append(f"and {count(diagnostics[MAX_SHOWN:]).replace(' ', ' more ')}")
    return "\n\n".join(parts)


def count(diagnostics: Iterable[Diagnostic]) -> str:
    """Number of errors and warnings in words, as `2 errors, 1 warning`."""
    severities = [diagnostic.severity for diagnostic in diagnostics]
    numbers = {word: severities.count(word) for word in ("error", "warning")}
    return ", ".join(f"{number} {word}{'s' if number > 1 else ''}" for word, number in numbers.items() if number)


def format_diagnostic(diagnostic: Diagnostic) -> str:
    """The diagnostic as text: its message, the place, the line with a caret under it, the help.

    Of what a function's line does where it is called, both places are shown, the help at the last; of calls that lead
    to further ones, the first and the last of them.
    """
    lines = [f"{diagnostic.severity}[{diagnostic.rule}]: {printable(diagnostic.message)}"]
    location, left = diagnostic.location, printable(diagnostic.help)
    places = () if location is None else (location, *location.within)
    sources = zip_longest(places, (diagnostic.source_line, *diagnostic.inner_lines)[: len(places)])
    for number, (place, source) in enumerate(sources):
        if 1 < number < len(places) - 2:
            lines += ["   in ..."] if number == 2 else []
            continue
        lines.append(f" {'-->' if place is location else '  in'} {printable(str(place))}")
        if (source or "").strip():
            said, left = (left, "") if place is places[-1] else ("", left)
            excerpt, offset, length = _excerpt(source, place)
            head = str(place.line)
            lines.append(f"{head} | {excerpt}".rstrip())
            lines.append(f"{' ' * len(head)} | {' ' * offset}{'^' * length} {said}".rstrip())
    return "\n".join([*lines, f"  = help: {left}"] if left else lines)


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
    return text if text.isprintable() else "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def _excerpt(line: str, location: Location) -> tuple[str, int, int]:
    """The part of the line to show, where its caret starts, and how wide the caret is, in terminal cells."""
    line = line.replace("\t", " ")
    line = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)
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
    """Width of the text in terminal cells: wide characters take two, combining marks none."""
    cells = 0
    for char in text:
        if not unicodedata.combining(char):
            cells += 2 if unicodedata.east_asian_width(char) in "WF" else 1
    return cells


def _sort_key(diagnostic: Diagnostic) -> tuple[bool, str, int, int, str, str]:
    location = diagnostic.location or Location("", 0, 0)
    place = (location.file, location.line, location.column)
    return diagnostic.severity != "error", *place, diagnostic.rule, diagnostic.message

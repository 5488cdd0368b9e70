"""Interface of backends: from a family's plans to the text of one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from optgen.ir.family import Family
from optgen.prose import Prose
from optgen.schedule.plan import Plan


class UnloweredNodeError(AssertionError):
    """A node reached a printer that a pass should have replaced."""


@dataclass(frozen=True)
class Rendering:
    """A file to be emitted: a template with exactly the context that it names."""

    path: str
    template: str
    context: Mapping[str, Any]


class Backend(Protocol):
    """Renders one family for one target."""

    def render(self, family: Family, plans: Mapping[str, Plan]) -> Rendering:
        """The family's file for this target."""


def describe(family: Family) -> list[Prose]:
    """The head of a generated file: what the rule is, where it is from, and its equations."""
    lines = [family.title, Prose(""), *family.spec.reference.filled(110)]
    for name, text in family.equations.items():
        lines += [Prose(""), Prose(f"{name}:"), *("    " + line if line else line for line in text.lines())]
    for number, function in enumerate(family.functions):
        lines += [*([] if number else [Prose("")]), *map(Prose, function.brief)]
    return lines

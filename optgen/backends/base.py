"""Interface of backends: from a rule's plans to the text of one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from optgen.ir.rule import WholeRule
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
    """Renders one rule for one target."""

    def render(self, rule: WholeRule, plans: Mapping[str, Plan]) -> Rendering:
        """The rule's file for this target."""


def describe(rule: WholeRule) -> list[Prose]:
    """The head of a generated file: what the rule is, where it is from, and its equations."""
    lines = [rule.title, Prose(""), *rule.spec.reference.filled(110)]
    for name, text in rule.equations.items():
        lines += [Prose(""), Prose(f"{name}:"), *("    " + line if line else line for line in text.lines())]
    for number, function in enumerate(rule.functions):
        lines += [*([] if number else [Prose("")]), *map(Prose, function.brief)]
    return lines

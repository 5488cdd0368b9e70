"""A class alone: what its code is made of where the settings are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optgen.codecs import Codec
from optgen.ir.nodes import Kind
from optgen.ir.rule import WholeRule
from optgen.prose import Prose
from optgen.schedule.plan import Plan

UNBROKEN = "\N{WORD JOINER}"


@dataclass(frozen=True)
class Alone:
    """A class whose code is shown by itself, for large float32 matrices.

    Attributes:
        name: The class's.
        plans: Its blocks under its settings, in which nothing is left to choose.
        codecs: Codec of each state of elements.
        settings: Values of settings, by the names that equations use; None for one that is not given.
        guards: Answers to the guards that were asked for.
    """

    name: str
    rule: WholeRule
    plans: Mapping[str, Plan]
    codecs: Mapping[str, Codec]
    settings: Mapping[str, object]
    guards: Mapping[str, bool]

    @property
    def states(self) -> list[str]:
        """The states that it has, but for those of a group or of the optimizer, in their order."""
        inputs = {name for plan in self.plans.values() for name in plan.program.inputs}
        own = self.rule.inputs.items()
        return [n for n, item in own if item.role == "state" and not item.kind.is_host and n in inputs]

    @property
    def element_states(self) -> list[str]:
        """States that have a number for each element."""
        return [name for name in self.states if self.rule.inputs[name].kind is Kind.ELEMENT]

    def head(self) -> list[Prose]:
        """Lines of the heading: title, source, and the settings that have been chosen."""
        title = self.rule.title
        named = Prose(self.name) if title.raw == self.name else Prose(f"{self.name}: ") + title
        guards = self.rule.guards.guards
        chosen = [guards[name].text(holds) for name, holds in self.guards.items() if guards[name].about != "codec"]
        words = ", ".join(text.replace(" ", UNBROKEN) for text in chosen)
        settings = Prose(f"For large float32 matrices, with its defaults: {words}.")
        return [named, Prose(""), *(Prose(line.raw.replace(UNBROKEN, " ")) for line in settings.filled(116))]

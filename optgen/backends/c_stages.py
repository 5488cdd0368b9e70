"""The stages that all rules have, in C++: a header of their own for what most rules have alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from optgen.backends.base import Rendering
from optgen.backends.c_block import BlockText
from optgen.backends.c_names import macro
from optgen.backends.c_printer import c_name
from optgen.backends.c_scalars import stage_scalars
from optgen.backends.c_statements import also_given
from optgen.backends.code import Brackets
from optgen.backends.layout import c_code
from optgen.backends.quoting import c_comment
from optgen.backends.stages import most_common
from optgen.backends.statements import settings_in
from optgen.ir.family import Family
from optgen.prose import Prose


@dataclass(frozen=True)
class StageText:
    """A stage of a rule as C++.

    Attributes:
        flags: The settings that it asks for.
        fields: The members of its scalars; `prepare` and `scalars` are the function that computes them.
        element: The head of the function of one element; `lines` are its statements.
    """

    name: str
    flags: tuple[str, ...]
    type: str
    fields: tuple[str, ...]
    prepare: tuple[str, ...]
    scalars: tuple[str, ...]
    element: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def header(self) -> str:
        """The file of it that rules share."""
        return f"{self.name}_stage.h"


@lru_cache(maxsize=128)
def stage_texts(text: BlockText) -> tuple[StageText, ...]:
    """The stages of a block."""
    return tuple(_stage_text(text, name) for name in text.element.stages)


def _stage_text(text: BlockText, name: str) -> StageText:
    stage, scalars = text.element.stages[name], stage_scalars(text, name)
    kind = f"{name.capitalize()}Scalars"
    changed = stage.call.results.keys()
    parameters = [
        f"{text.element_type(value)}{'&' if variable in changed else ''} {c_name(variable)}"
        for variable, value in {**stage.call.parameters, **stage.call.results}.items()
    ]
    also = {"s": f"const {kind}& s", "terms": "Terms& terms"}
    given = also_given(stage.code)
    template = ["template <class Terms>"] if "terms" in given else []
    head = Brackets(f"OPTGEN_INLINE void {name}_stage(", (*parameters, *(also[short] for short in given)), ") {")
    types = ", ".join(f"class {kind}" for kind in scalars.templates)
    prepare = Brackets(f"OPTGEN_TARGET {kind} {name}_scalars(", tuple(scalars.parameters), ") {")
    guards = scalars.guards | settings_in(stage.code.body)
    return StageText(
        name=name,
        flags=tuple(sorted(guards)),
        type=kind,
        fields=tuple(scalars.fields),
        prepare=(*([f"template <{types}>"] if types else []), *c_code(prepare, 0, "")),
        scalars=tuple(scalars.lines),
        element=(*template, *c_code(head, 0, "")),
        lines=tuple(text.element_statements(stage.code)),
    )


class CommonStages:
    """The stages that rules of a package have alike: of each the text that most of them have.

    Attributes:
        texts: The texts by the stage's name.
    """

    def __init__(self, blocks: Iterable[BlockText]) -> None:
        self.texts = most_common(text for block in blocks for text in stage_texts(block))

    def holds(self, text: StageText) -> bool:
        """Check whether the common header has this stage with this text."""
        return self.texts.get(text.name) == text

    def declared(self, text: StageText) -> list[str]:
        """The settings that a common header and those that it includes declare."""
        return [*text.flags, *(flag for other in self.included(text) for flag in other.flags)]

    def included(self, text: StageText) -> list[StageText]:
        """The common stages whose headers one includes, for the settings that both ask for."""
        others = list(self.texts.values())
        return [other for other in others[: others.index(text)] if not set(text.flags).isdisjoint(other.flags)]

    def renderings(self, family: Family) -> list[Rendering]:
        """The headers.

        Args:
            family: A rule of the package, for the equations of its stages.
        """
        return [self._rendering(family, text) for text in self.texts.values()]

    def _rendering(self, family: Family, text: StageText) -> Rendering:
        equations = Prose(getattr(family.shared.blocks, text.name))
        about = Prose(f"The stage `{text.name}` of rules, as most of a package have it:")
        lines = [about, Prose(""), *("    " + line if line else line for line in equations.lines())]
        included = self.included(text)
        before = {flag for other in included for flag in other.flags}
        context = {
            "head": [c_comment(line) for line in lines],
            "includes": [other.header for other in included],
            "flags": flag_lines(flag for flag in text.flags if flag not in before),
            "stage": text,
        }
        return Rendering(text.header, "c/stage.h.j2", context)


def flag_lines(guards: Iterable[str]) -> list[str]:
    """The settings that are fixed when a kernel is compiled, as constants."""
    return [f"constexpr bool {c_name(name)} = {macro(name)};" for name in guards]

"""The stages that all rules have, in C++: a header of their own for what most rules have alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from optgen.backends.base import Rendering
from optgen.backends.c_block import BlockText
from optgen.backends.c_names import macro
from optgen.backends.c_printer import c_name
from optgen.backends.c_scalars import ScalarText, field_lines, stage_scalars, stage_type
from optgen.backends.c_statements import also_given
from optgen.backends.code import Brackets
from optgen.backends.layout import c_code, struct_lines
from optgen.backends.quoting import c_comment
from optgen.backends.stages import most_common
from optgen.backends.statements import settings_in
from optgen.ir.rule import WholeRule
from optgen.prose import Prose


@dataclass(frozen=True)
class StageText:
    """A stage of a rule as C++.

    Attributes:
        flags: The settings that it asks for.
        fields: The type of its scalars.
        functions: Those of numbers of a tensor: its scalars, and the new values of states.
        element: The head of the function of one element; `lines` are its statements.
    """

    name: str
    flags: tuple[str, ...]
    type: str
    fields: tuple[str, ...]
    functions: tuple[tuple[str, ...], ...]
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
    stage, fields = text.element.stages[name], text.stage_fields(name)
    functions = [function for function in (stage_scalars(text, name),) if function is not None]
    functions += ScalarText(text).stage_states(name).values()
    kind = stage_type(name)
    changed = stage.call.results.keys()
    parameters = [
        f"{text.element_type(value)}{'&' if variable in changed else ''} {c_name(variable)}"
        for variable, value in {**stage.call.parameters, **stage.call.results}.items()
    ]
    also = {"s": f"const {kind}& s", "terms": "Terms& terms"}
    given = also_given(stage.code)
    template = ["template <class Terms>"] if "terms" in given else []
    head = Brackets(f"OPTGEN_INLINE void {name}_stage(", (*parameters, *(also[short] for short in given)), ") {")
    guards = settings_in(stage.code.body).union(*(function.guards for function in functions))
    return StageText(
        name=name,
        flags=tuple(sorted(guards)),
        type=kind,
        fields=tuple(struct_lines(kind, field_lines(text, fields))) if fields else (),
        functions=tuple(tuple(function.whole) for function in functions),
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

    def serving(self, text: StageText) -> StageText | None:
        """The common text that a block can use for its own: the same, or one that computes states beside."""
        common = self.texts.get(text.name)
        if common is None or not set(text.functions) <= set(common.functions):
            return None
        return common if replace(common, functions=text.functions, flags=text.flags) == text else None

    def declared(self, text: StageText) -> list[str]:
        """The settings that a common header and those that it includes declare."""
        return [*text.flags, *(flag for other in self.included(text) for flag in other.flags)]

    def included(self, text: StageText) -> list[StageText]:
        """The common stages whose headers one includes, for the settings that both ask for."""
        others = list(self.texts.values())
        return [other for other in others[: others.index(text)] if not set(text.flags).isdisjoint(other.flags)]

    def renderings(self, rule: WholeRule) -> list[Rendering]:
        """The headers.

        Args:
            rule: A rule of the package, for the equations of its stages.
        """
        return [self._rendering(rule, text) for text in self.texts.values()]

    def _rendering(self, rule: WholeRule, text: StageText) -> Rendering:
        equations = Prose(getattr(rule.shared.blocks, text.name))
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

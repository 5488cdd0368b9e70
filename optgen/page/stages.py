"""The blocks of a class with the lines of them that its defaults reach, for its page and for `optgen explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optgen.explanation import LARGE_MATRIX, ClassInfo
from optgen.page.equations import Line, function_lines, lines, truth

STAGES = {"step": "The step", "apply": "Applying the update"}
PUT_ON = {"grad": "The gradient", "update": "The update", "apply": "The parameter"}
SHARED = {"step": "The gradient, as for every rule", "apply": "The update, as for every rule"}


@dataclass(frozen=True)
class Stage:
    """A block of equations: its lines, and whether each is reached under the class's defaults."""

    title: str
    lines: tuple[tuple[Line, bool], ...]


def stages(info: ClassInfo) -> list[Stage]:
    """The blocks of a step in their order, then methods. Of those that all rules share only what defaults reach."""
    nothing_given = dict.fromkeys(info.whole_rule.given)  # for one step alone
    values = {**info.defaults, **LARGE_MATRIX, **nothing_given}
    made = []
    for name, block in info.whole_rule.written_out.items():
        for title, text in ((SHARED.get(name, ""), info.whole_rule.stages.get(name)), (STAGES.get(name), block)):
            found = lines(text.raw if text else "", info.spec.entry.set)
            seen = [(line, taken) for line, taken in zip(found, _taken(found, values), strict=True)]
            seen = [one for one in seen if one[1] or text is block]
            if seen:
                made.append(Stage(title or _title(name), tuple(seen)))
    for function in info.whole_rule.functions:
        found = function_lines(function, info.spec.entry.set)
        own = {name: value for name, value in values.items() if name not in function.own}
        made.append(Stage(f"Function {function.signature}", tuple(zip(found, _taken(found, own), strict=True))))
    return made


def _title(name: str) -> str:
    """The title of a block of a stage that is put on the rule, or of a method."""
    stage, _, block = name.rpartition(".")
    return f"{PUT_ON[block]}, by the stage {stage}" if stage else f"Method {name}()"


def _taken(found: Sequence[Line], values: dict[str, object]) -> list[bool]:
    """Check for each line whether it is reached under these values; where they do not decide, it counts as reached."""
    result = []
    open_branches: list[tuple[bool, bool]] = []  # at each depth: is this branch taken, was one before it for certain
    for line in found:
        del open_branches[line.depth + bool(line.word in ("elif", "else")) :]
        outer = all(taken for taken, _ in open_branches[: line.depth])
        if line.word in ("", "return"):
            result.append(outer)
            continue
        before = open_branches[line.depth][1] if line.word != "if" else False
        del open_branches[line.depth :]
        holds = True if line.node is None else truth(line.node, values)  # type: ignore[arg-type]
        taken = not before and holds is not False
        open_branches.append((taken, before or holds is True))
        result.append(outer and taken)
    return result

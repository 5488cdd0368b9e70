"""The equations and the values of a class as plain text, for `optgen explain`."""

from __future__ import annotations

from optgen.explanation import ClassInfo, Explanation
from optgen.page.equations import INDENT
from optgen.page.stages import stages


def equations(info: ClassInfo) -> list[str]:
    """The blocks of a step line by line; a line that the class's defaults leave out begins with a minus sign."""
    shown, left_out = [], False
    for stage in stages(info):
        shown.append(f"{stage.title}:")
        for line, taken in stage.lines:
            left_out = left_out or not taken
            shown += [f"{' ' if taken else '-'}   {line.depth * INDENT}{part}" for part in line.text.split("\n")]
    return [*shown, "", "- left out for a matrix under the class's defaults"] if left_out else shown


def values(explanation: Explanation) -> list[tuple[str, str, str]]:
    """The values that the class's defaults compute; those of a stage that every rule has in one row."""
    stage_of = {name: stage for stage, names in explanation.shared.items() for name in names}
    rows = {}
    for name, kind, expression in explanation.reached:
        stage = stage_of.get(name, "")
        names = explanation.shared.get(stage, ())
        row = (f"(stage `{stage}`)", f"{len(names)} values", ", ".join(names))
        rows[stage or name] = row if stage else (name, kind, expression)
    return list(rows.values())

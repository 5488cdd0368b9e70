"""The header of a rule: what both compiled targets include.

Input: a rule's plans. Output: what `templates/c/rule.h.j2` is filled with; cpu.py and cuda.py say how memory is walked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from optgen.backends.base import Rendering, describe
from optgen.backends.c_block import BlockText, block_text
from optgen.backends.c_names import array_columns, codec_type, element_states, macro, state_columns
from optgen.backends.c_printer import c_member, c_name
from optgen.backends.c_scalars import ScalarText, field_lines
from optgen.backends.c_stages import CommonStages, flag_lines, stage_texts
from optgen.backends.code import Brackets, declared
from optgen.backends.layout import c_code, struct_lines
from optgen.backends.quoting import c_comment
from optgen.ir.nodes import Kind
from optgen.ir.rule import WholeRule
from optgen.schedule.plan import Plan


class RuleBackend:
    """Renders what both compiled targets include."""

    def __init__(self, common: CommonStages) -> None:
        self.common = common

    def render(self, rule: WholeRule, plans: Mapping[str, Plan]) -> Rendering:
        """One header a rule."""
        texts = [block_text(rule, name, plan) for name, plan in plans.items()]
        blocks = [_block_context(text, self.common) for text in texts]
        stages = (self.common.serving(stage) for text in texts for stage in stage_texts(text))
        shared = dict.fromkeys(stage for stage in stages if stage is not None)
        used = {name for text in texts for name in text.guards}
        used -= {flag for stage in shared for flag in self.common.declared(stage)}
        head = [c_comment(line) for line in describe(rule)]
        includes = [stage.header for stage in shared]
        context = {"head": head, "includes": includes, "blocks": blocks, **_head_context(rule, plans, used)}
        return Rendering(f"{rule.name}.h", "c/rule.h.j2", context)


def _head_context(rule: WholeRule, plans: Mapping[str, Plan], used: set[str]) -> dict[str, object]:
    """The constants, codecs and table columns of a rule.

    Args:
        used: The guards that the code asks for: one that only the host asks for is no constant of the kernels.
    """
    guards = [guard for guard in rule.guards.guards.values() if guard.name in used]
    return {
        "flags": flag_lines(g.name for g in guards if g.about != "codec"),
        "types": ["using ParamCodec = OPTGEN_PARAM_CODEC;", "using GradCodec = OPTGEN_GRAD_CODEC;"]
        + [f"using {codec_type(name)} = {macro(f'{name}_codec')};" for name in element_states(rule)],
        "codec_flags": [
            f"constexpr bool {c_name(g.name)} = is_tensorwise<{codec_type(g.subject)}>;"
            for g in guards
            if g.about == "codec"
        ],
        "columns": column_lines([c_member(name) for name in (*state_columns(rule), *array_columns(plans))]),
    }


def column_lines(names: Sequence[str]) -> list[str]:
    """The columns of the table of addresses, after those that all rules have."""
    first, *rest = (*names, "END")
    return struct_lines("Column", c_code(Brackets("enum { ", (f"{first} = BASE_COLUMNS", *rest), " }"), 2))


def _block_context(text: BlockText, common: CommonStages) -> dict[str, object]:
    """Variables of a block for `rule.h.j2`."""
    scalars = ScalarText(text)
    text.stored()  # asks for settings too
    terms = [c_member(item.name) for item in text.sums.all]
    tensor = [c_member(item.name) for item in text.sums.over(Kind.TENSOR)]
    stages = stage_texts(text)
    bases = ", ".join(stage.type for stage in stages if stage.fields)
    return {
        "name": c_name(text.block),
        "values": struct_lines("Values", members("double", [c_member(name) for name in text.values])),
        "sums": struct_lines("Sums", members("double", tensor)),
        "elements": struct_lines("Element", members("float", [c_member(name) for name in text.elements])),
        "terms": struct_lines("Terms", members("float", terms)),
        "stages": [stage for stage in stages if common.serving(stage) is None],
        "asks": bool(text.values or text.sums.all),
        "fields": struct_lines(f"Scalars : {bases}" if bases else "Scalars", field_lines(text, text.fields)),
        "passes": text.pass_lines(),
        "reads": text.read_lines(),
        "bands": [*_band_lines(text), *text.row_lines()],
        "scalars": scalars.scalar_lines(),
        "element": text.element_lines(),
        "finish": scalars.finish_lines(),
        "commit": scalars.commit_lines(),
    }


def _band_lines(text: BlockText) -> list[str]:
    """Condition that a pass walks bands on a GPU, and numbers of sums of a row and of a column; empty without any."""
    slots, (rows, cols) = text.band_slots, (len(text.sums.over(kind)) for kind in (Kind.ROW, Kind.COL))
    if not slots:
        return []
    when = f"pass == {slots[0]}" if len(slots) == 1 else f"is_one_of(pass, {', '.join(map(str, slots))})"
    return [
        f"template <int pass> constexpr bool in_bands = {when};",
        f"constexpr int row_sums = {rows}, col_sums = {cols};",
    ]


def members(kind: str, names: Sequence[str]) -> list[str]:
    """The members of a struct, all of one type."""
    return c_code(declared(kind, names), 2) if names else []

"""What the compiled targets share: a plan's passes as C++, statement by statement.

Everything that depends on the rule is decided here; what a target adds (how memory is walked, how a sum over many
threads is made) is in cpu.py and cuda.py, and the frame is in the templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from optgen.backends.base import describe
from optgen.backends.c_printer import CPrinter, c_all, c_formula, c_name
from optgen.backends.quoting import c_comment, identifier
from optgen.ir.family import Family
from optgen.ir.formula import FALSE, Formula
from optgen.ir.kinds import boolean_names, window_name
from optgen.ir.liveness import demands
from optgen.ir.nodes import Expr, Input, Kind, Reduce, Ref, refs
from optgen.passes.scale_tensorwise import scale_name
from optgen.schedule.plan import PassPlan, Plan, Reduction, Step, Write

BASE_FACTS = {fact: fact.upper() for fact in ("numel", "ndim", "index", "rows", "cols", "matrices")}


def macro(name: str) -> str:
    """The macro that sets a constant when the file is compiled."""
    return identifier(f"OPTGEN_{name.upper()}")


def codec_type(state: str) -> str:
    """The C++ name of a state's codec."""
    return "".join(part.capitalize() for part in state.split("_")) + "Codec"


def column(name: str) -> str:
    """The table column that holds the address of a state or scratch array."""
    return identifier(f"AT_{name.upper()}")


def source_context(family: Family, plans: Mapping[str, Plan], text: str) -> dict[str, Any]:
    """What stands at the head of a family's file: its equations, constants, codecs and table columns.

    Args:
        text: The text of the passes: a guard that only the host asks for is no constant of the kernels.
    """
    used = set(re.findall(r"\w+", text))
    guards = [guard for guard in family.guards.guards.values() if c_name(guard.name) in used]
    return {
        "head": [c_comment(line) for line in describe(family)],
        "flags": [f"constexpr bool {c_name(g.name)} = {macro(g.name)};" for g in guards if g.about != "codec"],
        "types": ["using ParamCodec = OPTGEN_PARAM_CODEC;", "using GradCodec = OPTGEN_GRAD_CODEC;"]
        + [f"using {codec_type(name)} = {macro(f'{name}_codec')};" for name in element_states(family)],
        "codec_flags": [
            f"constexpr bool {c_name(g.name)} = is_tensorwise<{codec_type(g.subject)}>;"
            for g in guards
            if g.about == "codec"
        ],
        "columns": [column(name) for name in (*state_columns(family), *array_columns(plans))],
    }


def element_states(family: Family) -> list[str]:
    """States with a number per element, in their order."""
    return [name for name, item in family.inputs.items() if item.role == "state" and item.kind is Kind.ELEMENT]


def state_columns(family: Family) -> list[str]:
    """States in the order of their table columns; every element state is followed by its scale."""
    result = []
    for name, item in family.inputs.items():
        if item.role == "state" and not item.kind.is_host:
            result.append(name)
            if item.kind is Kind.ELEMENT:
                result.append(scale_name(name))
    return result


def array_columns(plans: Mapping[str, Plan]) -> list[str]:
    """Scratch arrays of all blocks in the order of their table columns."""
    return [f"{block}_{name}" for block, plan in plans.items() for name in plan.arrays]


def pass_function(block: str, item: PassPlan) -> str:
    """The name of a pass's entry point."""
    return f"{block}_{item.name}"


class PassRenderer:
    """One pass of a block as statements of C++.

    Attributes:
        draws: What a parameter's tile is given to draw random numbers from.
    """

    draws: ClassVar[str] = "draw_of(t)"

    def __init__(self, family: Family, block: str, plan: Plan, item: PassPlan) -> None:
        self.family, self.block, self.plan, self.item = family, block, plan, item
        self.inputs = plan.program.inputs
        self.kinds = plan.kinds
        self.booleans = boolean_names(plan.program)
        self.lets = {let.name: let for let in plan.program.lets}
        self.reduced = {r.name: i for i, r in enumerate(plan.reductions)}
        self.row_sums = [r for r in item.reductions if r.reduce.over is Kind.ROW]
        self.col_sums = [r for r in item.reductions if r.reduce.over is Kind.COL]
        self.last = item is plan.passes[-1]
        self.single = CPrinter(single=True, names={})
        self.read = {*self.fields(), *self._element_arrays()}

    # What a pass is given

    def _title(self) -> str:
        position = self.plan.passes.index(self.item) + 1
        what = "writes " + ", ".join(w.input.name for w in self.item.writes) if self.last else "reduces"
        return f"{self.block}, pass {position} of {len(self.plan.passes)}: {what}"

    def fields(self) -> list[str]:
        """Values below element kind that the element code reads, arrays left out."""
        used: set[str] = set()
        for step in self.item.elements:
            used.update(refs(step.let.expr))
        for write in self.item.writes:
            used.update(refs(write.value))
            used.update(self._new_scale(write))
        order = [*self.inputs, *self.lets]
        return [n for n in order if n in used and self.kinds[n] <= Kind.TENSOR]

    def _new_scale(self, write: Write) -> list[str]:
        value = self.plan.program.outputs.get(scale_name(write.input.name))
        return list(refs(value)) if value is not None else []

    def _element_arrays(self) -> dict[str, Formula]:
        """Rows, columns and matrices that the element code reads, with the formula under which it does."""
        result: dict[str, Formula] = {}
        for step in self.item.elements:
            for name, live in demands(step.let.expr, step.live):
                if self.kinds[name].is_array:
                    result[name] = result.get(name, FALSE) | live
        return result

    def _type(self, name: str) -> str:
        return "bool" if name in self.booleans else "float"

    def _array_pointer(self, name: str) -> str:
        if name in self.inputs:
            return f"t.pointer<float>({column(name)})"
        return f"t.pointer<float>({column(f'{self.block}_{name}')})"

    # Values below element kind

    def _prepare(self, steps: Iterable[Step], roots: Iterable[str]) -> list[str]:
        steps = list(steps)
        used = set(roots)
        for step in steps:
            used.update(refs(step.let.expr))
        lines = self._host_values(used)
        for name, item in self.inputs.items():
            if name in used and not item.kind.is_host and item.kind is not Kind.ELEMENT:
                lines.append(self._input_line(item))
        lines += [
            f"const double {c_name(name)} = call.reduced[t.index * {len(self.reduced)} + {i}];"
            for name, i in self.reduced.items()
            if name in used
        ]
        computed = {step.let.name for step in steps}
        lines += [
            f"const float* const {c_name(name)} = {self._array_pointer(name)};"
            for name, let in self.lets.items()
            if name in used and name not in computed and let.kind.is_array
        ]
        source = ""
        for step in steps:
            if step.let.source and step.let.source != source:
                source = step.let.source
                lines.append(c_comment(source))
            lines += self._below_line(step)
        return lines

    def _input_line(self, item: Input) -> str:
        name, exists = c_name(item.name), c_formula(item.exists)
        if item.role == "step":
            return f"const double step = steps_of(t){' + 1.0' if self.block == 'step' else ''};"
        if item.role == "fact":
            return f"const double {name} = double(t.at({BASE_FACTS[item.name]}));"
        pointer = f"t.pointer<float>({column(item.name)})"
        if item.kind.is_array:
            return f"const float* const {name} = {pointer};"
        if item.window is not None:
            n = item.window
            return f"const Window<{n}> {name} = {exists} ? read_window<{n}>({pointer}) : Window<{n}>{{}};"
        return f"const double {name} = {exists} ? double(*{pointer}) : 0.0;"

    def _below_line(self, step: Step) -> list[str]:
        let = step.let
        name = c_name(let.name)
        if let.kind.is_array:
            return self._array_lines(step)
        past = window_name(let.expr, self.inputs, self.lets)
        if past is not None:
            window = self.inputs[past].window
            text = self._scalar(let.expr)
            return [f"const Window<{window}> {name} = {c_formula(step.live)} ? {text} : Window<{window}>{{}};"]
        if isinstance(let.expr, Reduce):
            return [f"const double {name} = {c_formula(step.live)} ? {self._array_sum(let.expr)} : 0.0;"]
        kind = "bool" if let.name in self.booleans else "double"
        return [f"const {kind} {name} = {self._scalar(let.expr)};"]

    def _scalar(self, expr: Expr) -> str:
        return CPrinter(single=False, names={}).print(expr)

    def _array_sum(self, reduce: Reduce) -> str:
        assert isinstance(reduce.x, Ref)
        rows, cols = _shape(self.kinds[reduce.x.name])
        return f"sum_of({c_name(reduce.x.name)}, t.count({rows}, {cols}))"

    def _array_lines(self, step: Step) -> list[str]:
        """A loop over the numbers of a row, column or matrix value."""
        let = step.let
        name = c_name(let.name)
        rows, cols = _shape(let.kind)
        lines = [f"float* const {name} = {self._array_pointer(let.name)};"]
        if isinstance(let.expr, Reduce):
            assert isinstance(let.expr.x, Ref)
            x = let.expr.x.name
            length = "t.at(ROWS)" if self.kinds[x] is Kind.ROW else "t.at(COLS)"
            value = f"float(line_sum({c_name(x)} + k * {length}, {length}))"
        else:
            value = self._array_value(let.expr, let.kind)
        return lines + self._loop(step.live, f"t.count({rows}, {cols})", f"{name}[k] = {value};")

    def _array_value(self, expr: Expr, kind: Kind) -> str:
        names = {}
        for name in refs(expr):
            own = self.kinds[name]
            if not own.is_array:
                names[name] = c_name(name) if name in self.booleans else f"float({c_name(name)})"
            elif own is kind:
                names[name] = f"{c_name(name)}[k]"
            else:
                length = "ROWS" if kind is Kind.ROW else "COLS"
                names[name] = f"{c_name(name)}[k / t.at({length})]"
        return CPrinter(single=True, names=names).print(expr)

    # Elements

    def _stored(self) -> list[Input]:
        """Element inputs that the pass reads or writes."""
        items = {a.input.name: a.input for a in self.item.reads} | {w.input.name: w.input for w in self.item.writes}
        return list(items.values())

    def _codec(self, item: Input) -> str:
        match item.role:
            case "param":
                return "ParamCodec"
            case "grad":
                return "GradCodec"
        return codec_type(item.name)

    def _data(self, item: Input) -> str:
        """The address of an element input."""
        return {"param": "t.pointer(PARAM)", "grad": "t.grad"}.get(item.role, f"t.pointer({column(item.name)})")

    def _aside(self, item: Input) -> str:
        """The address of what is stored beside an element input: a state's scales, a parameter's compensation."""
        return {"param": "t.pointer(COMPENSATION)", "grad": "nullptr"}.get(
            item.role, f"t.pointer({column(scale_name(item.name))})"
        )

    def _open(self, item: Input, read: str, new: str) -> str:
        """Where a tile's elements lie: decoded where they are read, room for new ones where they are written only."""
        reads = {a.input.name: a.live for a in self.item.reads}
        writes = {w.input.name: w.live for w in self.item.writes}
        live = reads.get(item.name, FALSE)
        rest = (writes.get(item.name, FALSE) & ~live).given(~live) if not live.is_true else FALSE
        name, value = c_name(item.name), "nullptr"
        for formula, call in ((rest, new), (live, read)):
            if formula.is_true:
                value = f"{name}_tile.{call}"
            elif not formula.is_false:
                value = f"{c_formula(formula)} ? {name}_tile.{call} : {value}"
        return f"auto* const {name}_at = {value};"

    def _draws(self) -> list[str]:
        """Where the random numbers of a parameter that is written come from."""
        written = any(write.input.role == "param" for write in self.item.writes)
        return [f"param_tile.draws({self.draws});"] if written else []

    def _statements(self) -> list[str]:
        """The pass's bindings, each under the equation that it comes from."""
        lines: list[str] = []
        source = ""
        for step in self.item.elements:
            if step.let.source and step.let.source != source:
                source = step.let.source
                lines.append(c_comment(source))
            text = self.single.print(step.let.expr)
            lines.append(f"const {self._type(step.let.name)} {c_name(step.let.name)} = {text};")
        return lines

    def _stores(self) -> list[str]:
        return [
            self._where(write.live, f"store({c_name(write.input.name)}_at[i], {self.single.print(write.value)});")
            for write in self.item.writes
        ]

    def _part(self, r: Reduction) -> str:
        """What elements are added to. A pass that makes a reduction may read it too, where another has made it."""
        return f"{c_name(r.name)}_part" if r.name in self.read else c_name(r.name)

    def _add(self, r: Reduction, to: str) -> str:
        """What adds an element to a sum, in double."""
        x = self.single.print(r.reduce.x)
        return f"{to} = optgen::plus_square({to}, {x});" if r.reduce.op == "squares" else f"{to} += double({x});"

    def _where(self, live: Formula, statement: str) -> str:
        """A statement under a formula."""
        text = c_formula(live)
        return statement if text == "true" else f"if ({text}) {statement}"

    # After the elements

    def _commit(self) -> list[str]:
        """What is stored below element kind, after all elements: nothing is left half done."""
        roots = [name for write in self.plan.commits for name in refs(write.value)]
        lines = self._prepare(self.plan.commit, roots)
        lines += self._before_commit()
        for write in self.plan.commits:
            pointer = f"t.pointer<float>({column(write.input.name)})"
            if write.input.kind.is_array:
                rows, cols = _shape(write.input.kind)
                value = self._array_value(write.value, write.input.kind)
                lines += self._loop(write.live, f"t.count({rows}, {cols})", f"{pointer}[k] = {value};")
                continue
            value = CPrinter(single=False, names={}).print(write.value)
            to = pointer if write.input.window is not None else f"*{pointer}"
            lines.append(self._where(write.live, f"put({to}, {value});"))
        if self.block == "step":
            lines.append("count_step(t);")
        return lines

    # What targets do in their own way

    def _loop(self, live: Formula, count: str, statement: str) -> list[str]:
        """A statement for every number k of a row, column or matrix value."""
        return [f"for (int64_t k = 0; {c_all(c_formula(live), f'k < {count}')}; ++k) {statement}"]

    def _before_commit(self) -> list[str]:
        """What must happen between reading old values and storing new ones."""
        return []

    def _host_values(self, used: Iterable[str]) -> list[str]:
        """Values of global and group kind that a function reads."""
        used = set(used)
        if not any(name in used for name in self.plan.values):
            return []
        lines = [f"const double* const value = call.values + t.at(GROUP) * {len(self.plan.values)};"]
        return lines + [
            f"const double {c_name(name)} = value[{i}];"
            if name not in self.booleans
            else f"const bool {c_name(name)} = value[{i}] != 0.0;"
            for i, name in enumerate(self.plan.values)
            if name in used
        ]


def _shape(kind: Kind) -> tuple[str, str]:
    """Whether an array of a kind has a number for every row and for every column, as C++."""
    return ("true" if kind is Kind.ROW else "false", "true" if kind is Kind.COL else "false")

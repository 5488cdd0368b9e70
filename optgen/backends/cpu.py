"""The cpu target: a plan as C++, one function a pass.

Everything that depends on the rule is decided here; the template holds the frame.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from optgen.backends.base import Rendering, describe
from optgen.backends.c_printer import CPrinter, c_formula, c_name
from optgen.backends.layout import c_lines
from optgen.ir.family import Family
from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.kinds import boolean_names
from optgen.ir.liveness import demands
from optgen.ir.nodes import Call, Expr, Input, Kind, Let, Reduce, Ref, Select, refs
from optgen.passes.scale_tensorwise import scale_name
from optgen.schedule.plan import PassPlan, Plan, Reduction, Step, Write

BASE_FACTS = {fact: fact.upper() for fact in ("numel", "ndim", "index", "rows", "cols", "matrices")}


def macro(name: str) -> str:
    """The macro that sets a constant when the file is compiled."""
    return f"OPTGEN_{name.upper()}"


def codec_type(state: str) -> str:
    """The C++ name of a state's codec."""
    return "".join(part.capitalize() for part in state.split("_")) + "Codec"


def column(name: str) -> str:
    """The table column that holds the address of a state or scratch array."""
    return f"AT_{name.upper()}"


@dataclass(frozen=True)
class PassText:
    """One pass as C++, ready for the template."""

    function: str
    title: str
    fields: tuple[str, ...]
    prepare: tuple[str, ...]
    locals: tuple[str, ...]
    opens: tuple[str, ...]
    segment: tuple[str, ...]
    pragma: tuple[str, ...]
    body: tuple[str, ...]
    after_segment: tuple[str, ...]
    closes: tuple[str, ...]
    results: tuple[str, ...]
    finish: tuple[str, ...]


class CpuBackend:
    """Renders C++ for g++ and clang."""

    def render(self, family: Family, plans: Mapping[str, Plan]) -> Rendering:
        """One .cpp file a family."""
        states = state_columns(family)
        arrays = array_columns(plans)
        passes = [
            _PassRenderer(family, name, plan, item).render() for name, plan in plans.items() for item in plan.passes
        ]
        elements = [name for name, item in family.inputs.items() if item.role == "state" and item.kind is Kind.ELEMENT]
        used = _words(passes)
        guards = [guard for guard in family.guards.guards.values() if c_name(guard.name) in used]
        context = {
            # A comment that ends in a backslash would go on in the next line.
            "head": [f"{line} (continued)" if line.endswith("\\") else line for line in describe(family)],
            "flags": [
                f"constexpr bool {c_name(guard.name)} = {macro(guard.name)};"
                for guard in guards
                if guard.about != "codec"
            ],
            "types": ["using ParamCodec = OPTGEN_PARAM_CODEC;", "using GradCodec = OPTGEN_GRAD_CODEC;"]
            + [f"using {codec_type(name)} = {macro(f'{name}_codec')};" for name in elements],
            "codec_flags": [
                f"constexpr bool {c_name(guard.name)} = is_tensorwise<{codec_type(guard.subject)}>;"
                for guard in guards
                if guard.about == "codec"
            ],
            "columns": [column(name) for name in (*states, *arrays)],
            "passes": passes,
        }
        return Rendering(f"{family.name}.cpp", "cpu/kernel.cpp.j2", context)


def _words(passes: Sequence[PassText]) -> set[str]:
    """All names in the text of the passes: a guard that only the host asks for is no constant of the kernels."""
    return set(re.findall(r"\w+", " ".join(str(part) for item in passes for part in astuple(item))))


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


class _PassRenderer:
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

    def render(self) -> PassText:
        fields = self._fields()
        arrays = self._element_arrays()
        lines = bool(self.row_sums or self.col_sums)
        scalars = f"{pass_function(self.block, self.item)}_scalars"
        values = [c_name(n) if n in self.booleans else f"float({c_name(n)})" for n in fields]
        prepare = [*self._prepare(self.item.prepare, fields), f"return {scalars}{{{', '.join(values)}}};"]
        return PassText(
            function=pass_function(self.block, self.item),
            title=self._title(),
            fields=tuple(f"{self._type(name)} {c_name(name)};" for name in fields),
            prepare=tuple(c_lines(prepare, 2)),
            locals=tuple(c_lines(self._locals(fields, lines), 2)),
            opens=tuple(c_lines(self._opens(), 4)),
            segment=tuple(c_lines(self._segment(arrays), 6)),
            pragma=tuple(c_lines([f"#pragma omp simd{self._clauses()}"], 0)),
            body=tuple(c_lines(self._body(arrays), 8)),
            after_segment=tuple(c_lines(self._after_segment(), 6)),
            closes=tuple(c_lines(self._closes(), 4)),
            results=tuple(c_lines(self._results(), 2)),
            finish=tuple(c_lines(self._commit() if self.last else self._finish(), 2)),
        )

    # What a pass is given

    def _title(self) -> str:
        position = self.plan.passes.index(self.item) + 1
        what = "writes " + ", ".join(w.input.name for w in self.item.writes) if self.last else "reduces"
        return f"{self.block}, pass {position} of {len(self.plan.passes)}: {what}"

    def _fields(self) -> list[str]:
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
        lines = []
        if any(name in used for name in self.plan.values):
            lines.append(f"const double* const value = call.values + t.at(GROUP) * {len(self.plan.values)};")
        lines += [
            f"const double {c_name(name)} = value[{i}];"
            if name not in self.booleans
            else f"const bool {c_name(name)} = value[{i}] != 0.0;"
            for i, name in enumerate(self.plan.values)
            if name in used
        ]
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
                lines.append(f"// {source}")
            lines += self._below_line(step)
        return lines

    def _input_line(self, item: Input) -> str:
        name, exists = c_name(item.name), c_formula(item.exists)
        if item.role == "step":
            return f"const double step = double(*t.pointer<float>(STEP)){' + 1.0' if self.block == 'step' else ''};"
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
        window = self._window(let.expr)
        if window is not None:
            text = self._scalar(let.expr)
            return [f"const Window<{window}> {name} = {c_formula(step.live)} ? {text} : Window<{window}>{{}};"]
        if isinstance(let.expr, Reduce):
            return [f"const double {name} = {c_formula(step.live)} ? {self._array_sum(let.expr)} : 0.0;"]
        kind = "bool" if let.name in self.booleans else "double"
        return [f"const {kind} {name} = {self._scalar(let.expr)};"]

    def _scalar(self, expr: Expr) -> str:
        return CPrinter(single=False, names={}).print(expr)

    def _window(self, expr: Expr) -> int | None:
        """The length of the window that an expression is, if it is one."""
        match expr:
            case Call(op="push", args=(window, _, _)):
                return self._window(window)
            case Ref(name=name):
                return self.inputs[name].window if name in self.inputs else self._window(self.lets[name].expr)
            case Select(then=then):
                return self._window(then)
        return None

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
        live = c_formula(step.live)
        if isinstance(let.expr, Reduce):
            assert isinstance(let.expr.x, Ref)
            x = let.expr.x.name
            length = "t.at(ROWS)" if self.kinds[x] is Kind.ROW else "t.at(COLS)"
            value = f"float(sum_of({c_name(x)} + k * {length}, {length}))"
        else:
            value = self._array_value(let.expr, let.kind)
        lines.append(f"for (int64_t k = 0; {live} && k < t.count({rows}, {cols}); ++k) {name}[k] = {value};")
        return lines

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

    def _locals(self, fields: list[str], lines: bool) -> list[str]:
        result = [f"const {self._type(name)} {c_name(name)} = s.{c_name(name)};" for name in fields]
        for item in self._stored():
            result.append(f"Tile<{self._tile(item)}> {item.name}_tile;")
        for r in self.item.reductions:
            if r.reduce.over is Kind.TENSOR:
                start = "uint32_t {} = 0;" if r.reduce.op == "max" else "double {} = 0.0;"
                result.append(start.format(c_name(r.name)))
        if lines:
            result.append(f"const Lines lines = lines_of(call, t, c, {len(self.row_sums)});")
            result.append(f"for (int64_t k = 0; k < lines.size({len(self.col_sums)}); ++k) lines.base[k] = 0.0;")
        return result

    def _stored(self) -> list[Input]:
        """Element inputs that the pass reads or writes."""
        items = {a.input.name: a.input for a in self.item.reads} | {w.input.name: w.input for w in self.item.writes}
        return list(items.values())

    def _tile(self, item: Input) -> str:
        match item.role:
            case "param":
                return "ParamCodec"
            case "grad":
                return "GradCodec"
        return codec_type(item.name)

    def _opens(self) -> list[str]:
        reads = {a.input.name: a.live for a in self.item.reads}
        result = []
        for item in self._stored():
            data = {"param": "t.pointer(PARAM)", "grad": "const_cast<void*>(t.grad)"}.get(
                item.role, f"t.pointer({column(item.name)})"
            )
            scale = f"t.pointer<float>({column(scale_name(item.name))})" if item.role == "state" else "nullptr"
            how = "open" if item.name in reads else "open_new"
            live = c_formula(reads.get(item.name, item.exists))
            call = f"{item.name}_tile.{how}({data}, {scale}, at, n)"
            result.append(f"auto* const {item.name}_at = {call if live == 'true' else f'{live} ? {call} : nullptr'};")
        return result

    def _segment(self, arrays: Mapping[str, Formula]) -> list[str]:
        formulas = [r.live for r in (*self.row_sums, *self.col_sums)] + list(arrays.values())
        lines = FALSE
        for some in formulas:
            lines = lines | some
        result = [f"const Segment segment = segment_at<{c_formula(lines.given(TRUE))}>(t, at, begin, n);"]
        for name, live in arrays.items():
            pointer, formula = self._array_pointer(name), c_formula(live)
            match self.kinds[name]:
                case Kind.ROW:
                    result.append(f"const float {c_name(name)} = {formula} ? {pointer}[segment.row] : 0.0f;")
                case Kind.MATRIX:
                    result.append(f"const float {c_name(name)} = {formula} ? {pointer}[segment.matrix] : 0.0f;")
                case _:
                    place = "segment.matrix * t.at(COLS) + segment.col - segment.begin"
                    result.append(f"const float* const {c_name(name)}_at = {formula} ? {pointer} + {place} : nullptr;")
        for r in self.row_sums:
            result.append(f"double {c_name(r.name)} = 0.0;")
        for k, r in enumerate(self.col_sums):
            place = "(segment.matrix - lines.first_matrix) * lines.cols + segment.col - segment.begin"
            result.append(f"double* const {c_name(r.name)}_at = lines.col({k}) + {place};")
        return result

    def _clauses(self) -> str:
        sums = [c_name(r.name) for r in self.item.reductions if r.reduce.op != "max" and r.reduce.over is not Kind.COL]
        largest = [c_name(r.name) for r in self.item.reductions if r.reduce.op == "max"]
        return (f" reduction(+ : {', '.join(sums)})" if sums else "") + (
            f" reduction(max : {', '.join(largest)})" if largest else ""
        )

    def _body(self, arrays: Mapping[str, Formula]) -> list[str]:
        lines = []
        for access in self.item.reads:
            name, live = access.input.name, c_formula(access.live)
            value = f"load({name}_at[i])"
            lines.append(f"const float {c_name(name)} = {value if live == 'true' else f'{live} ? {value} : 0.0f'};")
        for name, formula in arrays.items():
            if self.kinds[name] is Kind.COL:
                live = c_formula(formula)
                lines.append(f"const float {c_name(name)} = {live} ? {c_name(name)}_at[i] : 0.0f;")
        source = ""
        for step in self.item.elements:
            if step.let.source and step.let.source != source:
                source = step.let.source
                lines.append(f"// {source}")
            lines.append(f"const {self._type(step.let.name)} {c_name(step.let.name)} = {self._element(step.let)};")
        lines += [self._accumulate(r) for r in self.item.reductions]
        for write in self.item.writes:
            live = c_formula(write.live)
            text = f"store({write.input.name}_at[i], {self.single.print(write.value)});"
            lines.append(text if live == "true" else f"if ({live}) {text}")
        return lines

    def _element(self, let: Let) -> str:
        return self.single.print(let.expr)

    def _accumulate(self, r: Reduction) -> str:
        name, x, live = c_name(r.name), self.single.print(r.reduce.x), c_formula(r.live)
        if r.reduce.op == "max":
            return f"{name} = {live} && magnitude_bits({x}) > {name} ? magnitude_bits({x}) : {name};"
        value = f"double({x}) * double({x})" if r.reduce.op == "squares" else f"double({x})"
        if r.reduce.over is Kind.COL:
            return f"if ({live}) {name}_at[i] += {value};"
        return f"{name} += {value if live == 'true' else f'{live} ? {value} : 0.0'};"

    def _after_segment(self) -> list[str]:
        return [
            f"if ({c_formula(r.live)}) lines.row({k})[segment.row - lines.first_row] += {c_name(r.name)};"
            for k, r in enumerate(self.row_sums)
        ]

    def _closes(self) -> list[str]:
        """All scales are found before anything is encoded."""
        result = []
        for write in self.item.writes:
            if write.input.role == "state":
                result.append(self._where(write.live, f"{write.input.name}_tile.measure();"))
        for write in self.item.writes:
            scales = self._new_scale(write)
            scale = c_name(scales[0]) if scales else "0.0f"
            result.append(self._where(write.live, f"{write.input.name}_tile.close({scale});"))
        return result

    def _where(self, live: Formula, statement: str) -> str:
        """A statement under a formula."""
        text = c_formula(live)
        return statement if text == "true" else f"if ({text}) {statement}"

    # After the elements

    def _results(self) -> list[str]:
        return [
            f"call.partials[c.index * {len(self.reduced)} + {self.reduced[r.name]}] = "
            + (f"from_bits({c_name(r.name)});" if r.reduce.op == "max" else f"{c_name(r.name)};")
            for r in self.item.reductions
            if r.reduce.over is Kind.TENSOR
        ]

    def _finish(self) -> list[str]:
        """Results of the pass; one made in another pass under these settings is left as it is there."""
        result = []
        summed = {name for _, name in self.plan.sums.values()}
        for r in self.item.reductions:
            if r.reduce.over is Kind.TENSOR:
                how = "finished_max" if r.reduce.op == "max" else "finished_sum"
                count, i = len(self.reduced), self.reduced[r.name]
                text = f"call.reduced[t.index * {count} + {i}] = {how}(call, t, {count}, {i});"
                result.append(text if r.live.is_true or r.name in summed else f"if ({c_formula(r.live)}) {text}")
        for how, sums in (("finish_rows", self.row_sums), ("finish_cols", self.col_sums)):
            for k, r in enumerate(sums):
                call = f"{how}(call, t, {len(self.row_sums)}, {k}, {self._array_pointer(r.name)});"
                result.append(f"if ({c_formula(r.live)}) {call}")
        return result

    def _commit(self) -> list[str]:
        """What is stored below element kind, after all elements: nothing is left half done."""
        roots = [name for write in self.plan.commits for name in refs(write.value)]
        lines = self._prepare(self.plan.commit, roots)
        for write in self.plan.commits:
            pointer = f"t.pointer<float>({column(write.input.name)})"
            live = c_formula(write.live)
            if write.input.kind.is_array:
                rows, cols = _shape(write.input.kind)
                value = self._array_value(write.value, write.input.kind)
                count = f"t.count({rows}, {cols})"
                lines.append(f"for (int64_t k = 0; {live} && k < {count}; ++k) {pointer}[k] = {value};")
            elif write.input.window is not None:
                value = CPrinter(single=False, names={}).print(write.value)
                lines.append(f"if ({live}) memcpy({pointer}, {value}.values, sizeof {value}.values);")
            else:
                value = CPrinter(single=False, names={}).print(write.value)
                lines.append(f"if ({live}) *{pointer} = float({value});")
        if self.block == "step":
            lines.append("*t.pointer<float>(STEP) += 1.0f;")
        return lines


def _shape(kind: Kind) -> tuple[str, str]:
    """Whether an array of a kind has a number for every row and for every column, as C++."""
    return ("true" if kind is Kind.ROW else "false", "true" if kind is Kind.COL else "false")

"""The cpu target: a plan as C++, one function a pass, its loops vectorised by the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import ClassVar

from optgen.backends.base import Rendering
from optgen.backends.c_passes import PassRenderer, pass_function, source_context
from optgen.backends.c_printer import c_all, c_formula, c_name
from optgen.backends.layout import c_lines
from optgen.ir.family import Family
from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.nodes import Kind
from optgen.schedule.plan import Plan, Reduction


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
        passes = [_CpuPass(family, name, plan, item).render() for name, plan in plans.items() for item in plan.passes]
        text = " ".join(str(part) for item in passes for part in astuple(item))
        context = {**source_context(family, plans, text), "passes": passes}
        return Rendering(f"{family.name}.cpp", "cpu/kernel.cpp.j2", context)


class _CpuPass(PassRenderer):
    draws: ClassVar[str] = "draw_of(t), t.at(START)"  # parts of a tensor draw what their elements draw in the whole one

    def render(self) -> PassText:
        fields = self.fields()
        self.single = replace(self.single, masks=frozenset(self.booleans.intersection(fields)))
        arrays = self._element_arrays()
        lines = bool(self.row_sums or self.col_sums)
        scalars = f"{pass_function(self.block, self.item)}_scalars"
        values = [c_name(n) if n in self.booleans else f"float({c_name(n)})" for n in fields]
        prepare = [*self._prepare(self.item.prepare, fields), f"return {scalars}{{{', '.join(values)}}};"]
        return PassText(
            function=pass_function(self.block, self.item),
            title=self._title(),
            fields=tuple(f"{self._field_type(name)} {c_name(name)};" for name in fields),
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

    # Elements

    def _field_type(self, name: str) -> str:
        return "Mask" if name in self.booleans else "float"

    def _locals(self, fields: list[str], lines: bool) -> list[str]:
        result = [f"const {self._field_type(name)} {c_name(name)} = s.{c_name(name)};" for name in fields]
        for item in self._stored():
            result.append(f"Tile<{self._codec(item)}> {c_name(item.name)}_tile;")
        result += self._draws()
        for r in self.item.reductions:
            if r.reduce.over is Kind.TENSOR:
                start = "uint32_t {} = 0;" if r.reduce.op == "max" else "double {} = 0.0;"
                result.append(start.format(self._part(r)))
        if lines:
            result.append(f"const Lines lines = lines_of(call, t, c, {len(self.row_sums)});")
            result.append(f"for (int64_t k = 0; k < lines.size({len(self.col_sums)}); ++k) lines.base[k] = 0.0;")
        return result

    def _opens(self) -> list[str]:
        result = []
        for item in self._stored():
            given = f"{self._data(item)}, {self._aside(item)}, at, n"
            result.append(self._open(item, f"open({given})", f"open_new({given})"))
        return [*result, *self._prefetch()]

    def _prefetch(self) -> list[str]:
        """Asks ahead where the gradient alone is read: processors do so for several streams, but not far for one."""
        alone = FALSE
        for access in self.item.reads:
            if access.input.role == "grad":
                alone = access.live
        for access in self.item.reads:
            if access.input.role != "grad":
                alone = alone & ~access.live
        return [] if self.last or alone.is_false else [self._where(alone, "grad_tile.prefetch(t.grad, at, n);")]

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
            result.append(f"double {self._part(r)} = 0.0;")
        for k, r in enumerate(self.col_sums):
            place = "(segment.matrix - lines.first_matrix) * lines.cols + segment.place - segment.begin"
            result.append(f"double* const {self._part(r)}_at = lines.col({k}) + {place};")
        return result

    def _clauses(self) -> str:
        sums = [self._part(r) for r in self.item.reductions if r.reduce.op != "max" and r.reduce.over is not Kind.COL]
        largest = [self._part(r) for r in self.item.reductions if r.reduce.op == "max"]
        return (f" reduction(+ : {', '.join(sums)})" if sums else "") + (
            f" reduction(max : {', '.join(largest)})" if largest else ""
        )

    def _body(self, arrays: Mapping[str, Formula]) -> list[str]:
        lines = []
        for access in self.item.reads:
            name, live = access.input.name, c_formula(access.live)
            value = f"load({c_name(name)}_at[i])"
            lines.append(f"const float {c_name(name)} = {value if live == 'true' else f'{live} ? {value} : 0.0f'};")
        for name, formula in arrays.items():
            if self.kinds[name] is Kind.COL:
                live = c_formula(formula)
                lines.append(f"const float {c_name(name)} = {live} ? {c_name(name)}_at[i] : 0.0f;")
        return [*lines, *self._statements(), *(self._accumulate(r) for r in self.item.reductions), *self._stores()]

    def _accumulate(self, r: Reduction) -> str:
        name, live = self._part(r), c_formula(r.live)
        if r.reduce.op == "max":
            x = self.single.print(r.reduce.x)
            larger = c_all(live, f"magnitude_bits({x}) > {name}")
            return f"{name} = {larger} ? magnitude_bits({x}) : {name};"
        return self._where(r.live, self._add(r, f"{name}_at[i]" if r.reduce.over is Kind.COL else name))

    def _after_segment(self) -> list[str]:
        return [
            f"if ({c_formula(r.live)}) lines.row({k})[segment.line - lines.first_row] += {self._part(r)};"
            for k, r in enumerate(self.row_sums)
        ]

    def _closes(self) -> list[str]:
        """All scales are found before anything is encoded."""
        result = []
        for write in self.item.writes:
            if write.input.role == "state":
                result.append(self._where(write.live, f"{c_name(write.input.name)}_tile.measure();"))
        for write in self.item.writes:
            scales = self._new_scale(write)
            scale = c_name(scales[0]) if scales else "0.0f"
            result.append(self._where(write.live, f"{c_name(write.input.name)}_tile.close({scale});"))
        return result

    # After the elements

    def _results(self) -> list[str]:
        return [
            f"call.partials[c.index * {len(self.reduced)} + {self.reduced[r.name]}] = "
            + (f"from_bits({self._part(r)});" if r.reduce.op == "max" else f"{self._part(r)};")
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
                text = f"put(call.reduced[t.index * {count} + {i}], {how}(call, t, {count}, {i}));"
                result.append(text if r.live.is_true or r.name in summed else f"if ({c_formula(r.live)}) {text}")
        for how, sums in (("finish_rows", self.row_sums), ("finish_cols", self.col_sums)):
            for k, r in enumerate(sums):
                call = f"{how}(call, t, {len(self.row_sums)}, {k}, {self._array_pointer(r.name)});"
                result.append(f"if ({c_formula(r.live)}) {call}")
        return result

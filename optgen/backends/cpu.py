"""The cpu target: how a rule walks over memory, its loops vectorised by the compiler."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from optgen.backends.base import Rendering
from optgen.backends.c_block import BlockText, block_text, way_of
from optgen.backends.c_kinds import number_of
from optgen.backends.c_names import pass_of
from optgen.backends.c_printer import c_member, c_name
from optgen.backends.code import Brackets, Chain, Code, Labelled, both, call, choice, declared, guarded, negated
from optgen.backends.layout import c_code, c_lines, c_pragma
from optgen.ir.nodes import Kind
from optgen.ir.rule import WholeRule
from optgen.schedule.plan import Plan
from optgen.schedule.sums import ElementSum


class CpuBackend:
    """Renders C++ for g++ and clang."""

    def render(self, rule: WholeRule, plans: Mapping[str, Plan]) -> Rendering:
        """One .cpp file a rule."""
        blocks = [CpuWalk(block_text(rule, name, plan)).context() for name, plan in plans.items()]
        return Rendering(f"{rule.name}.cpp", "cpu/kernel.cpp.j2", {"rule": rule.name, "blocks": blocks})


class CpuWalk:
    """A block's way over memory."""

    def __init__(self, text: BlockText) -> None:
        self.text = text
        self.sums = text.sums
        self.tensor, self.rows, self.cols = (text.sums.over(kind) for kind in (Kind.TENSOR, Kind.ROW, Kind.COL))

    def context(self) -> dict[str, Any]:
        """Variables for the template."""
        text = self.text
        return {
            "name": c_name(text.block),
            "passes": [(f"{text.block}_{item.name}", item.slot) for item in text.plan.passes],
            "by_rows": text.goes_by_rows,
            "call": f"{'' if self.sums.all else '[[maybe_unused]] '}const Call& call",
            "sums": c_lines(text.sum_lines(), 2),
            "tiles": c_lines(self._tiles(), 2),
            "begins": self._begins(),
            "walk": "cpu/segments.j2" if self.walks_segments else "cpu/tile.j2",
            "opens": c_lines(self._opens(), 4),
            "segment": c_lines(self._segment(), 6),
            "element": c_code(Brackets("Element x{", tuple(self.loads().values()), "}"), 8),
            "stores": c_lines(text.stores(), 8),
            "clauses": self._clauses(),
            "adds": c_lines(text.adds(self.sums.all, "_to[i]"), 8),
            "row_ends": c_lines(self._row_ends(), 6),
            "closes": c_lines(text.closes(), 6),
            "results": c_lines(self._results(), 2),
        }

    @property
    def walks_segments(self) -> bool:
        """True if it walks pieces of one row each, rather than whole tiles."""
        return bool(self.rows or self.cols or self.text.element_arrays)

    def _begins(self) -> list[str]:
        """First statements of a chunk."""
        result = []
        if self.text.is_written("param"):
            result.append("if constexpr (pass == APPLY) param_tile.draws(draw_of(t), t.at(START));")
        if lines := (*self.rows, *self.cols):
            passes = [pass_of(item.name) for item in lines]
            taken = f"pass == {passes[0]}" if len(passes) == 1 else call("is_one_of", "pass", *passes)
            result += [
                "const Lines lines = lines_of(call, t, c, row_sums);",
                *c_code(Brackets("if constexpr (", (taken,)), 2, " {"),
                "  for (int64_t k = 0; k < lines.size(col_sums); ++k) lines.base[k] = 0.0;",
                "}",
            ]
        return result

    def _tiles(self) -> list[Code]:
        kinds = groupby(self.text.stored(), lambda item: item.codec)
        return [declared(f"Tile<{codec}>", [f"{item.name}_tile" for item in items]) for codec, items in kinds]

    def _opens(self) -> list[Code]:
        result: list[Code] = []
        for item in self.text.stored():
            given = (item.data, item.aside, "at", "n")
            otherwise: Code = "nullptr"
            if item.is_new:
                otherwise = choice(self.text.is_last, call(f"{item.name}_tile.open_new", *given), "nullptr")
            opened = choice(item.reads, call(f"{item.name}_tile.open", *given), otherwise)
            result.append(Labelled(f"auto* const {item.name}_at = ", opened))
        for name in self.text.matrices:
            begin = Chain(self.text.array(name), (("+", "at"),))
            result.append(
                Labelled(f"float* const {c_member(name)}_at = ", choice(self.text.is_used(name), begin, "nullptr"))
            )
        ahead = [item for item in self.text.stored() if item.role in ("grad", "param")]
        states = [item.reads for item in self.text.stored() if item not in ahead]
        for item in ahead if self.sums.all else ():
            alone = both(item.reads, *map(negated, (self.text.is_last, *states)))
            result += guarded(alone, call(f"{item.name}_tile.prefetch", item.data, "at", "n"))
        return result

    def _segment(self) -> list[Code]:
        result: list[Code] = []
        for name in self.text.element_arrays:
            when, pointer = self.text.is_read(name), self.text.array(name)
            kind, head, none = self.text.kinds[name], f"const float {c_member(name)}_here = ", "0.0f"
            match kind:
                case Kind.COL | Kind.LAST:
                    head, none = f"const float* const {c_member(name)}_at = ", "nullptr"
                    matrix = (("+", "segment.matrix * t.at(COLS)"),) if kind is Kind.COL else ()
                    value: Code = Chain(pointer, (*matrix, ("+", "segment.col"), ("-", "segment.begin")))
                case Kind.ROW | Kind.MATRIX:
                    value = f"{pointer}[segment.{kind.name.lower()}]"
                case Kind.CHANNEL | Kind.LAST2:
                    value = f"{pointer}[{number_of(kind, Kind.ROW, 'segment.row')}]"
                case _:
                    value = f"{pointer}[{number_of(kind, Kind.MATRIX, 'segment.matrix')}]"
            result.append(Labelled(head, choice(when, value, none)))
        result += [f"double {c_name(item.name)} = 0.0" for item in self.rows]
        for k, item in enumerate(self.cols):
            own = "(segment.matrix - lines.first_matrix) * lines.cols"
            place = Chain(f"lines.col({k})", (("+", own), ("+", "segment.place"), ("-", "segment.begin")))
            value = choice(self.text.is_taken(item), place, "nullptr")
            result.append(Labelled(f"double* const {c_member(item.name)}_to = ", value))
        return result

    def loads(self) -> dict[str, Code]:
        """Reads of the values that an element is computed from, by name."""
        result: dict[str, Code] = {}
        for name in self.text.elements:
            kind = self.text.kinds[name]
            if kind.is_array and kind not in (Kind.COL, Kind.LAST):
                result[name] = f"{c_member(name)}_here"
                continue
            value = f"{c_member(name)}_at[i]"
            value = value if kind.is_array or name in self.text.matrices else f"load({value})"
            result[name] = choice(self.text.is_read(name), value, "0.0f")
        return result

    def _clauses(self) -> str:
        sums = [c_name(item.name) for item in (*self.tensor, *self.rows) if not item.is_largest]
        largest = [c_name(item.name) for item in (*self.tensor, *self.rows) if item.is_largest]
        clauses = [Brackets(f"reduction({how} : ", tuple(n)) for how, n in (("+", sums), ("max", largest)) if n]
        return "\n".join(c_pragma("#pragma omp simd", clauses))

    def _row_ends(self) -> list[Code]:
        place = "lines.row({})[segment.line - lines.first_row]"

        def ended(k: int, item: ElementSum) -> Code:
            if item.is_largest:
                return call(f"join_to{way_of(item.reduce)}", place.format(k), c_name(item.name))
            return Labelled(f"{place.format(k)} += ", c_name(item.name))

        return self.text.taking(self.rows, ended)

    def _results(self) -> list[Code]:
        def found(_: int, item: ElementSum) -> Code:
            name = c_name(item.name)
            value = call("bits_float", name) if item.reduce.op == "max" else name
            value = call("Greatest::value", name) if item.reduce.op == "greatest" else value
            return Labelled(f"partial.{c_member(item.name)} = ", value)

        results = self.text.taking(self.tensor, found)
        first: list[Code] = ["Sums& partial = partials_of<Sums>(call, c)"] if results else []
        return [*first, *results]

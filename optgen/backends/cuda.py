"""The cuda target: a plan as CUDA C++, three kernels a pass.

`prepare` computes what is below element kind, the pass itself walks the elements, `finish` adds up what blocks found.
A pass that sums rows or columns walks bands of whole rows, all others tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

from optgen.backends.base import Rendering
from optgen.backends.c_passes import PassRenderer, codec_type, element_states, pass_function, source_context
from optgen.backends.c_printer import CPrinter, c_all, c_formula, c_name
from optgen.backends.layout import c_lines
from optgen.backends.quoting import c_comment
from optgen.ir.family import Family
from optgen.ir.formula import Formula
from optgen.ir.nodes import Kind, Let, refs
from optgen.schedule.plan import Plan, Reduction


@dataclass(frozen=True)
class KernelText:
    """One pass as CUDA C++, ready for the template."""

    function: str
    title: str
    bands: bool
    shared: str
    fields: tuple[str, ...]
    prepare: tuple[str, ...]
    locals: tuple[str, ...]
    opens: tuple[str, ...]
    body: tuple[str, ...]
    closes: tuple[str, ...]
    row_begins: tuple[str, ...]
    row_ends: tuple[str, ...]
    col_ends: tuple[str, ...]
    band_ends: tuple[str, ...]
    results: tuple[str, ...]
    stores: tuple[str, ...]
    finish: tuple[str, ...]


class CudaBackend:
    """Renders CUDA C++ for nvcc."""

    def render(self, family: Family, plans: Mapping[str, Plan]) -> Rendering:
        """One .cu file a family."""
        passes = [_CudaPass(family, name, plan, item).render() for name, plan in plans.items() for item in plan.passes]
        text = " ".join(str(part) for item in passes for part in astuple(item))
        codecs = [codec_type(name) for name in element_states(family)]
        context = {
            **source_context(family, plans, text),
            "facts": c_lines([_books(codecs), _blocks(codecs)], 0),
            "passes": passes,
        }
        return Rendering(f"{family.name}.cu", "cuda/kernel.cu.j2", context)


def _books(codecs: Iterable[str]) -> str:
    return f"using KernelBooks = Books<{', '.join(codecs)}>;"


def _guarded(live: str, value: str) -> str:
    """A value read only where a condition holds."""
    return value if live == "true" else f"{live} ? {value} : 0.0f"


def _blocks(codecs: Iterable[str]) -> str:
    return f"constexpr int BLOCKS = blocks_with<{', '.join(['ParamCodec', 'GradCodec', *codecs])}>;"


class _CudaPass(PassRenderer):
    def render(self) -> KernelText:
        fields = self.fields()
        bands = bool(self.row_sums or self.col_sums)
        scalars = f"{pass_function(self.block, self.item)}_scalars"
        values = [c_name(n) if n in self.booleans else f"float({c_name(n)})" for n in fields]
        prepare = self._prepare(self.item.prepare, fields)
        prepare.append(f"return {scalars}{{{', '.join(values)}}};")
        deep = 8 if bands else 6
        return KernelText(
            function=pass_function(self.block, self.item),
            title=self._title(),
            bands=bands,
            shared=self._shared(bands),
            fields=tuple(f"{self._type(name)} {c_name(name)};" for name in fields),
            prepare=tuple(c_lines(prepare, 2)),
            locals=tuple(c_lines(self._locals(fields, bands), 2)),
            opens=tuple(c_lines(self._opens(bands), 4)),
            body=tuple(c_lines(self._body(bands), deep)),
            closes=tuple(c_lines(self._closes(), 4)),
            row_begins=tuple(c_lines([f"double {self._part(r)} = 0.0;" for r in self.row_sums], 6)),
            row_ends=tuple(c_lines(self._row_ends(), 6)),
            col_ends=tuple(c_lines(self._col_ends(), 4)),
            band_ends=tuple(c_lines(self._band_ends(), 2)),
            results=tuple(c_lines(self._results(), 2)),
            stores=tuple(c_lines(self._partials(), 4)),
            finish=tuple(c_lines(self._commit() if self.last else self._finish(), 2)),
        )

    def _shared(self, bands: bool) -> str:
        """The type of what a block shares."""
        sums = len(self._tensor_sums())
        return f"BandShared<KernelBooks, {sums}, {len(self.row_sums)}>" if bands else f"Shared<KernelBooks, {sums}>"

    def _tensor_sums(self) -> list[Reduction]:
        return [r for r in self.item.reductions if r.reduce.over is Kind.TENSOR]

    # Elements

    def _locals(self, fields: list[str], bands: bool) -> list[str]:
        result = [f"const {self._type(name)} {c_name(name)} = s.{c_name(name)};" for name in fields]
        if not bands:
            for item in self._stored():
                place = f"{self._data(item)}, {self._aside(item)}, first"
                result.append(f"Tile<{self._codec(item)}, RUN> {c_name(item.name)}_tile({place});")
            result += self._draws()
            moved = [self._data(item) for item in self._stored()]
            moved += [self._aside(item) for item in self._stored() if item.role == "param"]
            result.append(f"const bool aligned = are_aligned({', '.join(moved)});")
        for r in self._tensor_sums():
            start = "uint32_t {} = 0;" if r.reduce.op == "max" else "double {} = 0.0;"
            result.append(start.format(self._part(r)))
        return result

    def _opens(self, bands: bool) -> list[str]:
        if bands:
            return [f"double {self._part(r)} = 0.0;" for r in self.col_sums]
        return [self._open(item, "open(place, shared.books)", "open_new()") for item in self._stored()]

    def _body(self, bands: bool) -> list[str]:
        lines = []
        for access in self.item.reads:
            item = access.input
            value = f"load({c_name(item.name)}_at[i])"
            if bands:
                value = f"read<{self._codec(item)}>({self._data(item)}, {self._aside(item)}, at, shared.books)"
            lines.append(f"const float {c_name(item.name)} = {_guarded(c_formula(access.live), value)};")
        lines += self._array_reads(bands)
        lines += self._statements()
        lines += [self._accumulate(r, bands) for r in self.item.reductions]
        return lines + self._stores()

    def _array_reads(self, bands: bool) -> list[str]:
        """Rows, columns and matrices at an element."""
        arrays = self._element_arrays()
        if not arrays:
            return []
        place = {Kind.ROW: "line.row", Kind.COL: "line.col", Kind.MATRIX: "line.matrix"}
        lines = [] if bands else ["const Line line = line_at(t, place.first + place.position(i));"]
        for name, formula in arrays.items():
            live, value = c_formula(formula), f"{self._array_pointer(name)}[{place[self.kinds[name]]}]"
            # A tile's last elements may lie beyond the tensor.
            live = live if bands else ("place.inside(i)" if live == "true" else f"place.inside(i) && ({live})")
            lines.append(f"const float {c_name(name)} = {_guarded(live, value)};")
        return lines

    def _accumulate(self, r: Reduction, bands: bool) -> str:
        name = self._part(r)
        conditions = [c_formula(r.live)] if not r.live.is_true else []
        if not bands:
            conditions.append("place.inside(i)")
        if r.reduce.op == "max":
            x = self.single.print(r.reduce.x)
            conditions.append(f"magnitude_bits({x}) > {name}")
            statement = f"{name} = magnitude_bits({x});"
        else:
            statement = self._add(r, name)
        return f"if ({c_all(*conditions)}) {statement}" if conditions else statement

    def _closes(self) -> list[str]:
        """All scales are found before anything is encoded."""
        result = []
        for write in self.item.writes:
            if write.input.role == "state":
                result.append(self._where(write.live, f"{c_name(write.input.name)}_tile.measure(place);"))
        for write in self.item.writes:
            scales = self._new_scale(write)
            scale = c_name(scales[0]) if scales else "0.0f"
            statement = f"{c_name(write.input.name)}_tile.close({scale}, place, shared.books);"
            result.append(self._where(write.live, statement))
        return result + [f"{c_name(item.name)}_tile.advance(STRIDE);" for item in self._stored()]

    # Rows and columns of a band

    def _row_ends(self) -> list[str]:
        return [
            self._where(r.live, f"band.add_row({k}, row, {self._part(r)}, shared.rows);")
            for k, r in enumerate(self.row_sums)
        ]

    def _col_ends(self) -> list[str]:
        return [
            self._where(r.live, f"if (inside) call.lines[c.line + {k} * t.at(COLS) + col] = {self._part(r)};")
            for k, r in enumerate(self.col_sums)
        ]

    def _band_ends(self) -> list[str]:
        return [
            self._where(r.live, f"band.store_rows({k}, {self._array_pointer(r.name)}, shared.rows);")
            for k, r in enumerate(self.row_sums)
        ]

    # After the elements

    def _results(self) -> list[str]:
        return [
            self._where(
                r.live, f"shared.partial.{'add_max' if r.reduce.op == 'max' else 'add'}({slot}, {self._part(r)});"
            )
            for slot, r in enumerate(self._tensor_sums())
        ]

    def _partials(self) -> list[str]:
        count = len(self.reduced)
        return [
            self._where(
                r.live,
                f"call.partials[c.index * {count} + {self.reduced[r.name]}] = "
                f"shared.partial.{'largest' if r.reduce.op == 'max' else 'sum'}({slot});",
            )
            for slot, r in enumerate(self._tensor_sums())
        ]

    def _finish(self) -> list[str]:
        """Results of the pass; one made in another pass under these settings is left as it is there."""
        summed = {name for _, name in self.plan.sums.values()}
        parts = "finished_{}(call, t, {}, {}, {})"
        bands = "true" if self.row_sums or self.col_sums else "false"
        count = len(self.reduced)
        result = []
        for r in self._tensor_sums():
            i = self.reduced[r.name]
            value = parts.format("max" if r.reduce.op == "max" else "sum", bands, count, i)
            text = f"put(call.reduced[t.index * {count} + {i}], {value});"
            # Not made under these settings: 0 for sums over all parameters, else what another pass has made.
            if not r.live.is_true and r.name in summed:
                text = f"put(call.reduced[t.index * {count} + {i}], {c_formula(r.live)} ? {value} : 0.0);"
            elif not r.live.is_true:
                text = f"if ({c_formula(r.live)}) {text}"
            result.append(text)
        for k, r in enumerate(self.col_sums):
            call = f"finish_cols(call, t, {k}, {self._array_pointer(r.name)});"
            result.append(self._where(r.live, call))
        return result

    # Values below element kind

    def _host_values(self, used: Iterable[str]) -> list[str]:
        """Values of global and group kind, from the settings that the host hands over."""
        needed = set(used)
        lets: list[Let] = []
        for let in reversed(self.plan.host):
            if let.name in needed:
                needed.update(refs(let.expr))
                lets.insert(0, let)
        inputs = self.plan.host_inputs
        if not any(name in needed for name in inputs) and not lets:
            return []
        lines = []
        if any(name in needed for name in inputs):
            lines.append(f"const double* const value = call.values + t.at(GROUP) * {len(inputs)};")
        lines += [f"const double {c_name(name)} = value[{i}];" for i, name in enumerate(inputs) if name in needed]
        source = ""
        for let in lets:
            if let.source and let.source != source:
                source = let.source
                lines.append(c_comment(source))
            text = CPrinter(single=False, names={}).print(let.expr)
            lines.append(f"const {'bool' if let.name in self.booleans else 'double'} {c_name(let.name)} = {text};")
        return lines

    def _loop(self, live: Formula, count: str, statement: str) -> list[str]:
        head = f"for (int64_t k = threadIdx.x; {c_all(c_formula(live), f'k < {count}')}; k += blockDim.x)"
        return [f"{head} {statement}", "__syncthreads();"]

    def _before_commit(self) -> list[str]:
        return ["__syncthreads();  // every thread has read what is written now"]

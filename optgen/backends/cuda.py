"""The cuda target: how a rule walks over a GPU's memory.

A pass that may sum rows or columns walks bands of whole rows, all others tiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optgen.backends.base import Rendering
from optgen.backends.c_block import BlockText
from optgen.backends.c_names import codec_type, element_states, pass_of
from optgen.backends.c_printer import c_member, c_name
from optgen.backends.c_statements import under
from optgen.backends.layout import c_lines
from optgen.ir.family import Family
from optgen.ir.formula import FALSE
from optgen.ir.nodes import Kind
from optgen.schedule.plan import Plan
from optgen.schedule.sums import ElementSum


class CudaBackend:
    """Renders CUDA C++ for nvcc."""

    def render(self, family: Family, plans: Mapping[str, Plan]) -> Rendering:
        """One .cu file a family."""
        codecs = [codec_type(name) for name in element_states(family)]
        context = {
            "rule": family.name,
            "books": c_lines([f"using KernelBooks = Books<{', '.join(codecs)}>;"], 0),
            "occupancy": c_lines(
                [f"constexpr int BLOCKS = blocks_with<{', '.join(['ParamCodec', 'GradCodec', *codecs])}>;"], 0
            ),
            "blocks": [_Walk(BlockText(family, name, plan)).context() for name, plan in plans.items()],
        }
        return Rendering(f"{family.name}.cu", "cuda/kernel.cu.j2", context)


class _Walk:
    """A block's way over memory."""

    def __init__(self, text: BlockText) -> None:
        self.text = text
        self.tensor, self.rows, self.cols = (text.sums.over(kind) for kind in (Kind.TENSOR, Kind.ROW, Kind.COL))

    def context(self) -> dict[str, Any]:
        """What the template is filled with."""
        text = self.text
        bands = [
            item.slot
            for item in text.plan.passes
            if any(r.reduce.over in (Kind.ROW, Kind.COL) for r in item.reductions)
        ]
        return {
            "name": c_name(text.block),
            "passes": [(f"{text.block}_{item.name}", item.slot) for item in text.plan.passes],
            "bands": bool(bands),
            "tiles_too": any(item.slot not in bands for item in text.plan.passes),
            "count": len(self.tensor),
            "sums": c_lines(text.sum_lines(), 2),
            "draws": text.is_written("param"),
            "tiles": c_lines(self._tiles(), 2),
            "aligned": c_lines([f"const bool aligned = are_aligned({', '.join(self._moved())});"], 2),
            "opens": c_lines(self._opens(), 4),
            "element": c_lines([f"Element x{{{', '.join(self._element(False))}}};"], 6),
            "line": bool(text.element_arrays),
            "stores": [
                under(item.writes, f"store({item.name}_at[i], x.{item.name});")
                for item in text.stored()
                if item.writes is not None
            ],
            "adds": c_lines(text.adds(self.tensor), 8),
            "closes": c_lines(self._closes(), 6),
            "advances": [f"{item.name}_tile.advance(STRIDE);" for item in text.stored()],
            "partials": c_lines(self._partials(), 2),
            "results": c_lines(self._results(), 4),
            "band_element": c_lines([f"Element x{{{', '.join(self._element(True))}}};"], 8),
            "band_adds": c_lines(text.adds((*self.tensor, *self.rows, *self.cols)), 8),
            "row_begins": [f"double {c_name(item.name)} = 0.0;" for item in self.rows],
            "col_begins": [f"double {c_name(item.name)} = 0.0;" for item in self.cols],
            "row_ends": self._each(self.rows, "band.add_row({k}, row, {name}, shared.rows);", 6),
            "col_ends": self._each(self.cols, "if (inside) call.lines[c.line + {k} * t.at(COLS) + col] = {name};", 4),
            "band_ends": self._each(self.rows, "band.store_rows({k}, {array}, shared.rows);", 2),
        }

    def _each(self, sums: tuple[ElementSum, ...], statement: str, indent: int) -> list[str]:
        lines = []
        for k, item in enumerate(sums):
            text = statement.format(k=k, name=c_name(item.name), array=self.text.array(item.name))
            lines.append(f"if constexpr (pass == {pass_of(item.name)}) {text}")
        return c_lines(lines, indent)

    def _tiles(self) -> list[str]:
        return [
            f"Tile<{item.codec}, RUN> {item.name}_tile({item.data}, {item.aside}, first);"
            for item in self.text.stored()
        ]

    def _moved(self) -> list[str]:
        """The addresses that 16 bytes are moved from or to at once."""
        stored = self.text.stored()
        return [item.data for item in stored] + [item.aside for item in stored if item.codec == "ParamCodec"]

    def _opens(self) -> list[str]:
        result = []
        for item in self.text.stored():
            else_ = f"{item.name}_tile.open_new()" if item.is_new else "nullptr"
            value = f"{item.reads} ? {item.name}_tile.open(place, shared.books) : {else_}"
            result.append(f"auto* const {item.name}_at = {value};")
        return result

    def _element(self, bands: bool) -> list[str]:
        stored = {item.name: item for item in self.text.stored()}
        place = {Kind.ROW: "line.row", Kind.COL: "line.col", Kind.MATRIX: "line.matrix"}
        result = []
        for name in self.text.elements:
            kind, reads = self.text.kinds[name], f"reads_{c_member(name)}<pass>"
            if kind.is_array:
                inside = "" if bands else " && place.inside(i)"  # a tile's last elements may lie beyond the tensor
                result.append(f"{reads}{inside} ? {self.text.array(name)}[{place[kind]}] : 0.0f")
            elif bands:
                item = stored[c_member(name)]
                result.append(f"{reads} ? read<{item.codec}>({item.data}, {item.aside}, at, shared.books) : 0.0f")
            else:
                result.append(f"{reads} ? load({c_member(name)}_at[i]) : 0.0f")
        return result

    def _closes(self) -> list[str]:
        """All scales are found before anything is encoded."""
        written = [item for item in self.text.stored() if item.writes is not None]
        result = [under(item.writes or FALSE, f"{item.name}_tile.measure(place);") for item in written if item.is_state]
        return result + [
            under(item.writes or FALSE, f"{item.name}_tile.close({item.scale}, place, shared.books);")
            for item in written
        ]

    def _partials(self) -> list[str]:
        return [
            f"if constexpr (pass == {pass_of(item.name)}) "
            f"shared.partial.{'add_max' if item.is_largest else 'add'}({k}, {c_name(item.name)});"
            for k, item in enumerate(self.tensor)
        ]

    def _results(self) -> list[str]:
        return [
            f"if constexpr (pass == {pass_of(item.name)}) "
            f"partial.{c_member(item.name)} = shared.partial.{'largest' if item.is_largest else 'sum'}({k});"
            for k, item in enumerate(self.tensor)
        ]

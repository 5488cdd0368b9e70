"""The cuda target: how a rule walks over a GPU's memory.

A pass that may sum rows or columns walks bands of whole rows, all others tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optgen.backends.base import Rendering
from optgen.backends.c_block import NOWHERE, BlockText, block_text, way_of
from optgen.backends.c_kinds import number_of
from optgen.backends.c_names import codec_type, element_states
from optgen.backends.c_printer import c_member, c_name
from optgen.backends.code import Brackets, Code, Labelled, Operand, both, call, choice
from optgen.backends.layout import c_code, c_lines
from optgen.ir.nodes import Kind, MatrixCall
from optgen.ir.rule import WholeRule
from optgen.schedule.plan import Plan
from optgen.schedule.sums import ElementSum

ELEMENT = "place.first + place.position(i)"
"""Place of an element in the tensor."""


class CudaBackend:
    """Renders CUDA C++ for nvcc."""

    def render(self, rule: WholeRule, plans: Mapping[str, Plan]) -> Rendering:
        """One .cu file a rule."""
        codecs = [codec_type(name) for name in element_states(rule)]
        lets = (let for plan in plans.values() for let in plan.program.lets)
        results = ["float"] if any(isinstance(let.expr, MatrixCall) for let in lets) else []
        if results and any(kind in (Kind.ROW, Kind.COL) for plan in plans.values() for kind in plan.kinds.values()):
            results.append("float")  # numbers of rows or columns beside them
        context = {
            "rule": rule.name,
            "books": c_code(Brackets("using KernelBooks = Books<", tuple(codecs), ">"), 0),
            "occupancy": c_code(
                Brackets("constexpr int BLOCKS = blocks_with<", ("ParamCodec", "GradCodec", *codecs, *results), ">"), 0
            ),
            "blocks": [CudaWalk(block_text(rule, name, plan)).context() for name, plan in plans.items()],
        }
        return Rendering(f"{rule.name}.cu", "cuda/kernel.cu.j2", context)


class CudaWalk:
    """A block's way over memory."""

    def __init__(self, text: BlockText) -> None:
        self.text = text
        self.tensor, self.rows, self.cols = (text.sums.over(kind) for kind in (Kind.TENSOR, Kind.ROW, Kind.COL))

    def context(self) -> dict[str, Any]:
        """Variables for the template."""
        text = self.text
        draws = ["if constexpr (pass == APPLY) param_tile.draws(draw_of(t));"] if text.is_written("param") else []
        aligned = c_code(Labelled("const bool aligned = ", call("are_aligned", *self._moved())), 2)
        line = [f"const Line line = line_at(t, {ELEMENT});"] if text.element_arrays else []
        matrices = text.sums.over(Kind.ELEMENT)
        adds = c_lines(text.adds((*self.tensor, *matrices), element=ELEMENT), 8)
        partials = c_lines(self._partials(), 2)
        stored = [*partials, "store_sums<pass>(call, c, shared);"] if self.tensor else []
        return {
            "name": c_name(text.block),
            "passes": [(f"{text.block}_{item.name}", item.slot) for item in text.plan.passes],
            "shared": self._shared(),
            **self._frames(),
            "count": len(self.tensor),
            "sums": c_lines(text.sum_lines(), 2),
            "tiles": c_lines(self._tiles(), 2),
            "matrices": c_lines(self._matrices(), 2),
            "aligned": aligned,
            "begins": [*draws, *aligned],
            "opens": c_lines(self._opens(), 4),
            "element": [*line, *c_code(Brackets("Element x{", tuple(self.loads(False).values()), "}"), 6)],
            "stores": c_lines(text.stores(), 8),
            "adds": ["} else if (place.inside(i)) {", *_below(adds)] if adds else [],
            "closes": c_lines(text.closes("place", "shared.books"), 6),
            "advances": c_lines([call(f"{item.name}_tile.advance", "STRIDE") for item in text.stored()], 4),
            "partials": partials,
            "tile_results": ["if constexpr (pass != APPLY) {", *_below(stored), "}"] if stored else [],
            "band_results": stored,
            "results": c_lines(self._results(), 4),
            "band_element": c_code(Brackets("Element x{", tuple(self.loads(True).values()), "}"), 8),
            "band_adds": c_lines(text.adds((*self.tensor, *self.rows, *self.cols, *matrices), element="at"), 8),
            "row_begins": c_lines([f"double {c_name(item.name)} = 0.0" for item in self.rows], 6),
            "col_begins": c_lines([f"double {c_name(item.name)} = 0.0" for item in self.cols], 4),
            "row_ends": c_lines(
                text.taking(
                    self.rows,
                    lambda k, item: call(
                        f"band.add_row{way_of(item.reduce)}", f"{k}", "row", c_name(item.name), "shared.rows"
                    ),
                ),
                6,
            ),
            "col_ends": c_lines(
                text.taking(
                    self.cols,
                    lambda k, item: f"if (inside) call.lines[c.line + {k} * t.at(COLS) + col] = {c_name(item.name)}",
                ),
                4,
            ),
            "band_ends": c_lines(
                text.taking(
                    self.rows,
                    lambda k, item: call(
                        f"band.store_rows{way_of(item.reduce)}", f"{k}", text.array(item.name), "shared.rows"
                    ),
                ),
                2,
            ),
        }

    def _shared(self) -> str:
        count = len(self.tensor)
        return (
            f"BandShared<KernelBooks, {count}, row_sums>" if self.text.band_slots else f"Shared<KernelBooks, {count}>"
        )

    def _frames(self) -> dict[str, Any]:
        """The ways over memory that its passes take; a function chooses where there are both."""
        bands = bool(self.text.band_slots)
        tiles = any(item.slot not in self.text.band_slots for item in self.text.plan.passes)
        both_ways = bands and tiles
        frames = {
            "cuda/store_sums.j2": bool(self.text.sums.over(Kind.TENSOR)),
            "cuda/tiles.j2": tiles,
            "cuda/bands.j2": bands,
            "cuda/tiles_or_bands.j2": both_ways,
        }
        return {
            "frames": [frame for frame, there in frames.items() if there],
            "tiles_function": "run_tiles" if both_ways else "run_chunk",
            "bands_function": "run_bands" if both_ways else "run_chunk",
        }

    def _tiles(self) -> list[Code]:
        return [
            call(f"Tile<{item.codec}, RUN> {item.name}_tile", item.data, item.aside, "first")
            for item in self.text.stored()
        ]

    def _moved(self) -> list[str]:
        """The addresses that 16 bytes are moved from or to at once."""
        stored = self.text.stored()
        return [item.data for item in stored] + [
            item.aside for item in stored if item.role == "param" and item.aside != NOWHERE
        ]

    def _opens(self) -> list[Code]:
        result: list[Code] = []
        for item in self.text.stored():
            otherwise = f"{item.name}_tile.open_new()" if item.is_new else "nullptr"
            opened = call(f"{item.name}_tile.open", "place", "shared.books")
            result.append(Labelled(f"auto* const {item.name}_at = ", choice(item.reads, opened, otherwise)))
        return result

    def loads(self, bands: bool) -> dict[str, Code]:
        """Reads of the values that an element is computed from, by name, in a pass over bands or over tiles."""
        stored = {item.name: item for item in self.text.stored()}
        place = {Kind.ROW: "line.row", Kind.COL: "line.col", Kind.MATRIX: "line.matrix"}
        place |= {kind: number_of(kind, Kind.ROW, "line.row") for kind in (Kind.CHANNEL, Kind.LAST2)}
        place |= {kind: number_of(kind, Kind.MATRIX, "line.matrix") for kind in (Kind.LAST3, Kind.LAST4)}
        place[Kind.LAST] = number_of(Kind.LAST, Kind.COL, "line.col")
        result: dict[str, Code] = {}
        for name in self.text.elements:
            kind, reads = self.text.kinds[name], self.text.is_read(name)
            value: Code = call("load", f"{c_member(name)}_at[i]")
            if name in self.text.matrices:
                value = f"{c_member(name)}_at[{'at' if bands else ELEMENT}]"
                reads = reads if bands else both(reads, Operand("place.inside(i)"))
            elif kind.is_array:
                value = f"{self.text.array(name)}[{place[kind]}]"
                # A tile's last elements may lie beyond the tensor.
                reads = reads if bands else both(reads, Operand("place.inside(i)"))
            elif bands:
                item = stored[c_member(name)]
                value = call(f"read<{item.codec}>", item.data, item.aside, "at", "shared.books")
            result[name] = choice(reads, value, "0.0f")
        return result

    def _matrices(self) -> list[Code]:
        """Addresses of what functions of matrices take and leave."""
        return [Labelled(f"float* const {c_member(n)}_at = ", self.text.array(n)) for n in self.text.matrices]

    def _partials(self) -> list[Code]:
        def added(k: int, item: ElementSum) -> Code:
            how = f"{'add_max' if item.is_largest else 'add'}{_greatest(item)}"
            return call(f"shared.partial.{how}", f"{k}", c_name(item.name))

        return self.text.taking(self.tensor, added)

    def _results(self) -> list[Code]:
        def found(k: int, item: ElementSum) -> Code:
            value = call(f"shared.partial.{'largest' if item.is_largest else 'sum'}{_greatest(item)}", f"{k}")
            return Labelled(f"partial.{c_member(item.name)} = ", value)

        return self.text.taking(self.tensor, found)


def _greatest(item: ElementSum) -> str:
    """The argument of a template for what takes the largest magnitude otherwise."""
    return way_of(item.reduce) if item.reduce.op == "greatest" else ""


def _below(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]

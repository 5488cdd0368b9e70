"""The kernel of one class alone, for both compiled targets: what an expert would have written for it by hand.

The statements and the way over memory are those that all classes of a rule share. Here a pass is told what it is, so
that nothing of it is left to ask, and stands by itself with what it needs of the equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from optgen.backends.alone import Alone
from optgen.backends.assignments import Assignments, Part
from optgen.backends.base import Rendering
from optgen.backends.c_block import NOWHERE, BlockText, Stored, added
from optgen.backends.c_names import codec_type
from optgen.backends.c_printer import c_member, c_name
from optgen.backends.c_rule import column_lines, members
from optgen.backends.c_scalars import ScalarText, field_lines
from optgen.backends.code import ALWAYS, NEVER, Brackets, Code, Labelled, Operand, call, declared, prefixed
from optgen.backends.cpu import CpuWalk
from optgen.backends.cuda import CudaWalk
from optgen.backends.layout import WIDTH, c_code, struct_lines
from optgen.backends.quoting import c_comment
from optgen.backends.statements import assigned
from optgen.codecs import PARAMETER_CODECS
from optgen.ir.formula import TRUE
from optgen.ir.liveness import needed
from optgen.ir.nodes import Kind, refs
from optgen.passes.rewrite import replaced
from optgen.passes.scale_tensorwise import scale_name
from optgen.schedule.plan import PassPlan
from optgen.schedule.sums import ElementSum, Sums

Compiled = Literal["cpu", "cuda"]
NUMBERS = PARAMETER_CODECS["nearest"].cpp_type("float32")
"""Codec of parameters and gradients."""


def c_alone(alone: Alone, target: Compiled) -> Rendering:
    """The kernel of a class: all its passes, in their order."""
    several = len(alone.plans) > 1
    blocks = [_block(alone, name, target, several) for name in alone.plans]
    scales = {name: scale_name(name) for name in alone.element_states if alone.codecs[name].scaled}
    addresses = [kept for name in alone.states for kept in (name, scales.get(name)) if kept is not None]
    arrays = [f"{block}_{name}" for block, plan in alone.plans.items() for name in plan.arrays]
    context: dict[str, Any] = {
        "head": [c_comment(line) for line in alone.head()],
        "columns": column_lines([c_member(name) for name in (*addresses, *arrays)]),
        "blocks": blocks,
    }
    if target == "cuda":
        types = {"ParamCodec": NUMBERS, "GradCodec": NUMBERS}
        types |= {codec_type(name): _codec(alone, name) for name in alone.element_states}
        context["types"] = [f"using {name} = {kind};" for name, kind in types.items()]
        context["books"] = c_code(Brackets("using KernelBooks = Books<", tuple(list(types)[2:]), ">"), 0)
        context["occupancy"] = c_code(Brackets("constexpr int BLOCKS = blocks_with<", tuple(types), ">"), 0)
    return Rendering(alone.name, f"alone/kernel.{'cpp' if target == 'cpu' else 'cu'}.j2", context)


def _codec(alone: Alone, state: str) -> str:
    return alone.codecs[state].cpp_type(alone.rule.inputs[state].signed)


def _block(alone: Alone, block: str, target: Compiled, several: bool) -> dict[str, Any]:
    """A block: what its passes share, then these."""
    plan = alone.plans[block]
    text = BlockText(alone.rule, block, plan)
    structs = {
        "Values": members("double", [c_member(name) for name in text.values]),
        "Sums": members("double", [c_member(item.name) for item in text.sums.over(Kind.TENSOR)]),
    }
    return {
        **_scope(c_name(block) if several else ""),
        "structs": [line for name, fields in structs.items() if fields for line in ("", *struct_lines(name, fields))],
        "passes": [PassText(alone, block, item, target).context() for item in plan.passes],
    }


class PassText(BlockText):
    """One pass of a block as C++, where all that it may ask is known.

    Attributes:
        bands: Whether it walks bands of whole rows, as GPUs do where rows or columns are summed.
    """

    def __init__(self, alone: Alone, block: str, item: PassPlan, target: Compiled) -> None:
        plan = alone.plans[block]
        super().__init__(alone.rule, block, plan)
        self.alone, self.item, self.target, self.names_fields = alone, item, target, False
        self.ends = item is plan.passes[-1]
        taken = {reduction.name for reduction in item.reductions}
        own = tuple(each for each in self.sums.all if each.name in taken)
        self.sums = Sums(own, self.sums.last_reads if self.ends else {})
        self.last = item
        self.at_hand = frozenset(
            step.let.name
            for earlier in plan.passes[: plan.passes.index(item)]
            for step in earlier.prepare
            if step.let.kind.is_array
        )
        self.bands = target == "cuda" and any(each.reduce.over in (Kind.ROW, Kind.COL) for each in own)

    def context(self) -> dict[str, Any]:
        """Variables of the pass for its template."""
        scalars = ScalarText(self)
        walk = CpuWalk(self) if self.target == "cpu" else CudaWalk(self)
        context = walk.context()
        loads = walk.loads() if isinstance(walk, CpuWalk) else walk.loads(self.bands)
        segmented = isinstance(walk, CpuWalk) and walk.walks_segments
        indent = 8 if self.bands or segmented else 6
        return context | {
            **_scope(self.item.name if len(self.plan.passes) > 1 else ""),
            **(self._gpu_variables(context) if self.target == "cuda" else self._cpu_variables(segmented)),
            "exported": self._exported(),
            "fields": struct_lines("Scalars", field_lines(self, self.fields)),
            "chunk_head": self._chunk_head(),
            "scalars_head": self._scalars_head(),
            "scalars": scalars.scalar_lines(),
            "element": [*self._load_lines(loads, indent), *self.element_statements(self.element, indent)],
            "finish": self._finish(scalars),
        }

    def _cpu_variables(self, segmented: bool) -> dict[str, Any]:
        """Parts of its walk over a CPU's memory: whole tiles or pieces of one row, and the sums of rows and columns."""
        rows, cols = (len(self.sums.over(kind)) for kind in (Kind.ROW, Kind.COL))
        counts = ["", f"constexpr int row_sums = {rows}, col_sums = {cols};"]
        cleared = [
            "const Lines lines = lines_of(call, t, c, row_sums);",
            "for (int64_t k = 0; k < lines.size(col_sums); ++k) lines.base[k] = 0.0;",
        ]
        return {
            "walk": "alone/segments.j2" if segmented else "alone/tile.j2",
            "line_sums": counts if rows or cols else [],
            "lines_cleared": cleared if rows or cols else [],
        }

    def _gpu_variables(self, context: Mapping[str, Any]) -> dict[str, Any]:
        """Variables of a pass on a GPU: the walk over memory, and what the threads of a block share."""
        rows, count = len(self.sums.over(Kind.ROW)), context["count"]
        line = "band.line(row, col)" if self.bands else "line_at(t, place.first + place.position(i))"
        kind = f"BandShared<KernelBooks, {count}, row_sums>" if self.bands else f"Shared<KernelBooks, {count}>"
        stored = [
            *context["partials"],
            "__syncthreads();",
            "if (threadIdx.x == 0) {",
            "  Sums& partial = partials_of<Sums>(call, c);",
            *(f"  {result}" for result in context["results"]),
            "}",
            "__syncthreads();",
        ]
        return {
            "walk": "alone/bands.j2" if self.bands else "alone/tiles.j2",
            "shared_memory": [*([f"constexpr int row_sums = {rows};"] * self.bands), f"using PassShared = {kind};"],
            "line": [f"const Line line = {line};"] if self.element_arrays else [],
            "sums_stored": stored if context["partials"] else [],
        }

    def _chunk_head(self) -> str:
        """The parameters of the function that runs a chunk, named where it reads them."""
        call, scalars = " call" * bool(self.sums.all), " s" * bool(self.fields)
        return f"const Call&{call}, const Tensor& t, const Chunk& c, const Scalars{scalars}"

    def _scalars_head(self) -> str:
        """The parameters of the function that finds its values, named where it reads them."""
        roots = [(name, TRUE) for name in (*self.fields, *self.filled)]
        read = needed(self.lets, roots, stop=lambda let: let.name in self.names or let.name in self.at_hand)
        of_call = any(n in self.values or (n in self.names and not self.kinds[n].is_array) for n in read)
        return f"const Call&{' call' if of_call else ''}, const Tensor&{' t' if read else ''}"

    def _finish(self, scalars: ScalarText) -> list[str]:
        """The function that ends it for a tensor, in one line where it has one statement."""
        sums, stored = scalars.finish_lines(), scalars.commit_lines() if self.ends else []
        named = " call" if sums or len(stored) > 1 else ""
        unused = "[[maybe_unused]] " if named and not sums else ""
        head = f"void finish({unused}const Call&{named}, const Tensor&{' t' if sums or stored else ''})"
        return _function(f"__device__ {head}" if self.target == "cuda" else head, [*sums, *stored])

    def _exported(self) -> list[str]:
        """Exported entry points of the pass: one function on the CPU, three kernels in a row on a GPU."""
        scope = f"{c_name(self.block)}::" * (len(self.alone.plans) > 1)
        scope += f"{self.item.name}::" * (len(self.plan.passes) > 1)
        name = f"{c_name(self.block)}_{self.item.name}"
        if self.target == "cpu":
            parts = ("*call", *(f"{scope}{part}" for part in ("scalars", "run_chunk", "finish")))
            run = c_code(call(f"run_pass<Column::END, {scope}Scalars>", *parts), 2)
            return _function(f"OPTGEN_EXPORT void {name}(const Call* call)", run)
        head = 'extern "C" __global__ void __launch_bounds__({}) {}(const Call call)'
        prepare = call(f"prepare_tensors<Column::END, {scope}Scalars>", "call", f"{scope}scalars")
        launch = call(f"run_chunks<Column::END, {scope}Scalars, {scope}PassShared>", "call", f"{scope}run_chunk")
        finish = call("finish_tensors<Column::END>", "call", f"{scope}finish")
        return [
            *_function(head.format("WARP", f"{name}_prepare"), c_code(prepare, 2)),
            *_function(head.format("THREADS, BLOCKS", name), c_code(launch, 2)),
            *_function(head.format("THREADS", f"{name}_finish"), c_code(finish, 2)),
        ]

    # Conditions, constants here

    @property
    def is_last(self) -> Operand:
        """Condition that this pass is the last one, a constant here."""
        return ALWAYS if self.ends else NEVER

    def is_taken(self, item: ElementSum) -> Operand:
        """Condition that the pass takes a sum: always, for its own sums."""
        return ALWAYS

    def is_found(self, name: str) -> Operand:
        """Condition that the pass has a sum's result: always, for its own arrays."""
        return ALWAYS

    def is_read(self, name: str) -> Operand:
        """Condition that this pass reads a stored number or an array, a constant here."""
        return ALWAYS if name in self._read else NEVER

    @cached_property
    def _read(self) -> set[str]:
        return {name for item in self.sums.all for name in item.reads} | self.sums.last_reads.keys()

    @property
    def filled(self) -> list[str]:
        """Arrays that it needs."""
        prepared = {step.let.name for step in self.item.prepare} - self.at_hand
        return [name for name in super().filled if name in prepared]

    def finished(self, item: ElementSum) -> Code:
        """A sum over a tensor, from the partial results of this pass."""
        how, name = "finished_max" if item.is_largest else "finished_sum", c_member(item.name)
        greatest = ", Greatest" if item.reduce.op == "greatest" else ""
        value = call(f"{how}<{'true' if self.bands else 'false'}{greatest}>", "call", "t", f"&Sums::{name}")
        return call("put", f"sums_of<Sums>(call, t).{name}", value)

    # Its elements

    @cached_property
    def element(self) -> Assignments:
        """Statements that compute an element."""
        wanted = {step.let.name for step in self.item.elements} | {item.name for item in self.sums.all}
        part = Part(
            [let for let in self.lets if let.name in wanted],
            self.plan.live,
            outside=lambda name: f"s.{name}",
            sort=lambda let: let.name in self.booleans,
            given={name: name for name in self.elements if name in self._read},
            takes={item.name: item.name for item in self.sums.all},
            taken=self.names,
        )
        return part.code(asked=[(name, TRUE) for write in self.item.writes for name in refs(write.value)])

    def _load_lines(self, loads: Mapping[str, Code], indent: int) -> list[str]:
        """The variables that hold what it reads."""
        names = [name for name in loads if name in self._read and name in self.element.read]
        changed = assigned(self.element.body)
        kinds = (("const float", [n for n in names if n not in changed]), ("float", [n for n in names if n in changed]))
        return [
            line
            for kind, own in kinds
            if own
            for line in c_code(declared(kind, [Labelled(f"{c_name(name)} = ", loads[name]) for name in own]), indent)
        ]

    def take(self, name: str, term: Code) -> Code:
        """The statement that adds an element's term to a sum."""
        item = next(item for item in self.sums.all if item.name == name)
        if self.target == "cpu":
            return added(item, term, "_to[i]")
        # A tile's last elements may lie beyond the tensor.
        return prefixed("" if self.bands else "if (place.inside(i)) ", added(item, term))

    def stores(self) -> list[Code]:
        """Stores of an element into its tiles."""
        values = {write.input.name: replaced(write.value, self.element.values) for write in self.item.writes}
        printer = self.element_printer(self.element)
        return [call("store", f"{c_member(name)}_at[i]", printer.code(values[name])) for name in values]

    def stored(self) -> list[Stored]:
        """Element inputs as they are stored."""
        names: dict[str, str] = {c_member(name): name for name in self.elements}
        return [self._as_stored(item, names[item.name]) for item in super().stored()]

    def _as_stored(self, item: Stored, name: str) -> Stored:
        cuda = self.target == "cuda"
        if item.role != "state":
            return replace(item, codec=item.codec if cuda else NUMBERS, aside=NOWHERE, measured=False, closed=cuda)
        codec = self.alone.codecs[name]
        return replace(
            item,
            codec=item.codec if cuda else _codec(self.alone, name),
            aside=item.aside if codec.scaled else NOWHERE,
            measured=codec.block > 0,
            closed=cuda or codec.scaled or codec.storage == "float16",
        )


def _function(head: str, body: list[str]) -> list[str]:
    """A function, in one line where it has one statement that fits."""
    one = f"{head} {{ {body[0]} }}" if len(body) == 1 else f"{head} {{}}"
    if len(body) < 2 and len(one) <= WIDTH:
        return [one]
    return [f"{head} {{", *(f"  {line}" for line in body), "}"]


def _scope(name: str) -> dict[str, list[str]]:
    """Lines that open and close a namespace; empty without a name."""
    return {
        "opened": ["", f"namespace {name} {{"] if name else [],
        "closed": ["", f"}}  // namespace {name}"] if name else [],
    }

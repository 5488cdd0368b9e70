"""A block of a rule in C++: its sums, what it does to an element, and where that lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from optgen.backends.assignments import Assignments, Output, Part
from optgen.backends.c_names import codec_type, column, member, pass_of
from optgen.backends.c_printer import CPrinter, c_condition, c_member, c_name
from optgen.backends.c_statements import CStatements, spelled, under
from optgen.backends.code import (
    NEVER,
    Chain,
    Code,
    Labelled,
    Operand,
    both,
    call,
    choice,
    declared,
    either,
    guarded,
    joined,
    negated,
)
from optgen.backends.layout import c_code, c_lines
from optgen.backends.statements import Block, assigned, names_of, settings_in
from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.kinds import boolean_names
from optgen.ir.liveness import resolve
from optgen.ir.nodes import Kind, MatrixCall, OfAllElements, Reduce, Ref, Role, refs
from optgen.ir.rule import WholeRule
from optgen.operations import Binds
from optgen.passes.mask_writes import masked
from optgen.passes.rename import NUMBER, stem_of
from optgen.passes.scale_tensorwise import scale_name
from optgen.schedule.plan import Plan
from optgen.schedule.sums import ElementSum, Sums, element_sums
from optgen.schedule.visits import goes_by_rows

NOWHERE = "nullptr"


@dataclass(frozen=True)
class Stored:
    """Numbers of elements in memory, as both targets walk them.

    Attributes:
        role: Whether they are the parameter, the gradient or a state.
        reads: Condition under which a pass reads them.
        writes: Condition under which the last pass writes them; None where it never does.
        data: The address.
        aside: The address of what is kept beside the numbers.
        measured: Whether scales may have to be found.
        closed: Whether there may be something to do after the last element of a tile.
    """

    name: str
    role: Role
    codec: str
    reads: Operand
    writes: Formula | None
    reads_last: Formula
    data: str
    aside: str
    scale: str
    measured: bool = True
    closed: bool = True

    @property
    def is_new(self) -> bool:
        """True if the last pass may write what it does not read."""
        return self.writes is not None and not self.writes.implies(self.reads_last)


class BlockText:
    """A block of a rule as C++: the lines that the templates put into their frames.

    Attributes:
        names_fields: Whether scalars are assigned by the names of their fields.
        at_hand: Arrays that a pass does not compute, as one before it has.
    """

    def __init__(self, rule: WholeRule, block: str, plan: Plan) -> None:
        self.rule, self.block, self.plan = rule, block, plan
        self.inputs, self.kinds = plan.program.inputs, plan.kinds
        self.booleans = boolean_names(plan.program)
        self.lets = [
            replace(let, expr=resolve(let.expr, plan.live[let.name]))
            for let in plan.program.lets
            if let.name in plan.live
        ]
        self.by_name = {let.name: let for let in self.lets}
        self.sums: Sums = element_sums(plan)
        self.names = {item.name for item in self.sums.all}
        self.last = plan.passes[-1]
        self.guards: set[str] = set()
        self.at_hand: frozenset[str] = frozenset()
        self.names_fields = True

    # Names

    @cached_property
    def values(self) -> list[str]:
        """Numbers that are the same for all parameters of a group, which the host hands over."""
        return list(self.plan.host_inputs)

    @cached_property
    def elements(self) -> list[str]:
        """Names that an element is computed from: stored numbers, those of functions of matrices, then those of its
        row, column and matrix."""
        found = self._read_by_elements | {write.input.name for write in self.last.writes}
        stored = [name for name in self.inputs if name in found and not self.kinds[name].is_array]
        return [*stored, *(name for name in self.matrices if name in found), *self.element_arrays]

    @cached_property
    def _read_by_elements(self) -> set[str]:
        return {name for item in self.sums.all for name in item.reads} | self.sums.last_reads.keys()

    @cached_property
    def matrices(self) -> list[str]:
        """Results of functions of matrices that elements read, or that passes take."""
        found = self._read_by_elements | {item.name for item in self.sums.all}
        return [name for name, let in self.by_name.items() if name in found and isinstance(let.expr, MatrixCall)]

    @cached_property
    def element_arrays(self) -> list[str]:
        """Rows, columns and matrices of which an element reads its own number."""
        found = self._read_by_elements
        return [name for name in (*self.inputs, *self.by_name) if name in found and self.kinds[name].is_array]

    def is_written(self, name: str) -> bool:
        """Check whether the last pass writes an element input."""
        return any(write.input.name == name for write in self.last.writes)

    # Conditions

    @property
    def is_last(self) -> Operand:
        """Condition that a pass is the last one."""
        return Operand(Chain("pass", (("==", "APPLY"),)), Binds.EQUAL)

    def is_taken(self, item: ElementSum) -> Operand:
        """Condition that a pass takes a sum."""
        return Operand(f"pass == {pass_of(item.name)}")

    def is_found(self, name: str) -> Operand:
        """Condition that a pass has a sum's result, or needs none."""
        return Operand(call("is_found", "pass", pass_of(name)))

    def is_read(self, name: str) -> Operand:
        """Condition that a pass reads a stored number or an array."""
        return Operand(f"reads_{c_member(name)}<pass>")

    def is_used(self, matrix: str) -> Operand:
        """Condition that a pass reads the result of a function of matrices, or stores what it takes."""
        taken = [self.is_taken(item) for item in self.sums.all if item.name == matrix]
        read = self.is_read(matrix) if matrix in self._read_by_elements else NEVER
        return either(read, *taken) if taken else read

    def condition(self, formula: Formula) -> Operand:
        """A condition over the rule's constants."""
        self.guards |= formula.names
        return c_condition(formula)

    def pass_lines(self) -> list[str]:
        """The pass in which each sum is taken."""
        result: list[Code] = [f"constexpr int APPLY = {self.last.slot}"]
        for item in reversed(self.sums.all):
            if item.fixed is not None:
                number: Code = str(item.fixed)
            else:
                number = call("before", *(self._waiting(name, formula) for name, formula in reversed(item.waiting)))
            number = choice(self.condition(item.live), number, "NEVER")
            result.append(Labelled(f"constexpr int {pass_of(item.name)} = ", number))
        return c_lines(result, 0)

    def _waiting(self, name: str | None, formula: Formula) -> Code:
        return choice(self.condition(formula), "APPLY" if name is None else pass_of(name), "NEVER")

    @cached_property
    def goes_by_rows(self) -> bool:
        """True if passes take a few rows one after the other under any settings."""
        return not goes_by_rows(self.plan).is_false

    def row_lines(self) -> list[str]:
        """Definition of the condition under which a pass goes by rows: it sums nothing else; empty if none does."""
        if not self.goes_by_rows:
            return []
        rows = [pass_of(item.name) for item in self.sums.over(Kind.ROW)]
        others = [pass_of(item.name) for item in self.sums.all if item.reduce.over is not Kind.ROW]
        others += [str(item.fixed) for item in self.sums.all if item.fixed is not None]
        taken = Operand(f"pass == {rows[0]}" if len(rows) == 1 else call("is_one_of", "pass", *rows))
        apart = [negated(Operand(call("is_one_of", "pass", *dict.fromkeys(others))))] if others else []
        when = both(self.condition(goes_by_rows(self.plan)), taken, *apart)
        return c_lines([Labelled("template <int pass> constexpr bool by_rows = ", when.code)], 0)

    def read_lines(self) -> list[str]:
        """Definitions of the conditions under which a pass reads each of the stored numbers and arrays."""
        head = "template <int pass> constexpr bool reads_{} = "
        lines = [Labelled(head.format(c_member(name)), self._reads(name)) for name in self.elements]
        walked = [f"pass == {pass_of(item.name)}" for kind in (Kind.ROW, Kind.COL) for item in self.sums.over(kind)]
        walked += [f"reads_{c_member(name)}<pass>" for name in self.element_arrays]
        if walked:
            lines.append(Labelled("template <int pass> constexpr bool walks_lines = ", joined("||", walked)))
        return c_lines(lines, 0)

    def _reads(self, name: str) -> Code:
        places: dict[Formula, list[str]] = {}
        if name in self.sums.last_reads:
            places.setdefault(self.sums.last_reads[name].given(TRUE), []).append("APPLY")
        for item in self.sums.all:
            if name in item.reads:
                places.setdefault(item.reads[name], []).append(pass_of(item.name))
        when = []
        for formula, numbers in places.items():
            taken = Operand(f"pass == {numbers[0]}" if len(numbers) == 1 else call("is_one_of", "pass", *numbers))
            when.append(both(self.condition(formula), taken))
        if len(when) < 2:
            return when[0].code if when else "false"
        return joined("||", [condition.within(Binds.NOT) for condition in when])

    # An element

    @cached_property
    def element(self) -> Assignments:
        """Statements of an element for all passes; the compiler keeps those that a pass uses."""
        lets = [let for let in self.lets if let.kind is Kind.ELEMENT or let.name in self.names]
        given = {name: name for name in self.elements} | {f"x.{name}": name for name in self.elements}
        variables = {}
        for write in self.last.writes:
            let = self.by_name.get(write.value.name) if isinstance(write.value, Ref) else None
            if let is not None and masked(let) == write.input.name:
                variables[let.name] = f"x.{write.input.name}"
        part = Part(
            lets,
            self.plan.live,
            outside=lambda name: f"s.{name}",
            sort=lambda let: let.name in self.booleans,
            given=given,
            variables=variables,
            takes={name: name for name in self.names},
            taken=self.rule.guards.guards,
            calls_stages=True,
        )
        outputs = [Output(f"x.{write.input.name}", write.value, write.live) for write in self.last.writes]
        return part.code(outputs)

    @cached_property
    def fields(self) -> dict[str, Formula]:
        """Values below element kind that elements read, in the order of the program, each with its formula.

        Those that a stage of all rules reads are not among them.
        """
        used = set(_fields(self.element))
        for write in self.last.writes:
            scale = self.plan.program.outputs.get(scale_name(write.input.name))
            used |= set(refs(scale)) if scale is not None else set()
        return self.in_order(used)

    def in_order(self, names: Collection[str]) -> dict[str, Formula]:
        """Names in the order of the program, each with the formula under which it is needed."""
        return {name: self.plan.live.get(name, TRUE) for name in (*self.inputs, *self.by_name) if name in names}

    def field(self, name: str) -> str:
        """A field of the scalars: without the number of its binding, where no other of them is called so."""
        return f"s.{c_member(self._field_names.get(name, name))}"

    @cached_property
    def _field_names(self) -> dict[str, str]:
        names = [*self.fields, *(name for stage in self.element.stages for name in self.stage_fields(stage))]
        stems = {name: stem_of(self.by_name[name]) if name in self.by_name else name for name in names}
        numbered = {name: stem for name, stem in stems.items() if NUMBER.sub("", name) == stem}
        counts = Counter(numbered.get(name, name) for name in names)
        return {name: stem for name, stem in numbered.items() if counts[stem] == 1}

    def stage_fields(self, stage: str) -> dict[str, Formula]:
        """Values below element kind that a stage of all rules reads."""
        return self.in_order(set(_fields(self.element.stages[stage].code)))

    @property
    def scalar_count(self) -> int:
        """Number of the values, conditions included, that elements read of a tensor."""
        return len(self.fields) + sum(len(self.stage_fields(stage)) for stage in self.element.stages)

    def element_lines(self) -> list[str]:
        """The statements of an element."""
        used = names_of(self.asked(self.element))
        locals_ = [f"{c_name(name)} = x.{c_member(name)}" for name in self.elements if name in used]
        lines = c_code(declared("float", locals_), 2) if locals_ else []
        return lines + self.element_statements(self.element)

    def element_printer(self, code: Assignments) -> CPrinter:
        """A printer of the values of one element."""
        names = code.read | assigned(code.body)
        texts = {name: member(name) for name in names if name.startswith("x.")}
        texts |= {name: self.field(name.removeprefix("s.")) for name in names if name.startswith("s.")}
        masks = frozenset(f"s.{name}" for name in self.booleans)
        return CPrinter(single=True, names={}, spell=spelled(texts, c_name), masks=masks)

    def element_statements(self, code: Assignments, indent: int = 2) -> list[str]:
        """Statements about one element."""

        def type_of(variable: str) -> str:
            let = code.types.get(variable)
            return self.element_type(let.name if let is not None else variable)

        statements = CStatements(self.element_printer(code), type_of, stages=self.element.stages, take=self.take)
        return statements.lines(self.asked(code), indent)

    def take(self, name: str, term: Code) -> Code:
        """The statement that takes an element's term of a sum."""
        return Labelled(f"terms.{c_member(name)} = ", term)

    def element_type(self, name: str) -> str:
        """The type of a value of one element."""
        return "bool" if name in self.booleans else "float"

    def asked(self, code: Assignments) -> Block:
        """The same statements; their conditions are constants of the kernel."""
        self.guards |= settings_in(code.body, code.values.values())
        return code.body

    # Sums of a chunk

    def sum_lines(self) -> list[Code]:
        """The variables that elements are added to."""
        tensor = self.sums.over(Kind.TENSOR)
        sums = [f"{c_name(item.name)} = 0.0" for item in tensor if not item.is_largest]
        largest = [f"{c_name(item.name)} = 0" for item in tensor if item.is_largest]
        return [declared(kind, names) for kind, names in (("double", sums), ("uint32_t", largest)) if names]

    def adds(self, sums: Iterable[ElementSum], of_column: str = "", element: str = "i") -> list[Code]:
        """An element's terms added to the sums, or stored.

        Args:
            of_column: Follows the name of what is a sum for each column.
            element: Place of the element in what is stored for functions of matrices.
        """
        return self.taking(sums, lambda _, item: added(item, f"terms.{c_member(item.name)}", of_column, element))

    def taking(self, sums: Iterable[ElementSum], statement: Callable[[int, ElementSum], Code]) -> list[Code]:
        """A statement for each of some sums, in the pass that takes it."""
        numbered = enumerate(sums)
        return [line for k, item in numbered for line in guarded(self.is_taken(item), statement(k, item))]

    def finished(self, item: ElementSum) -> Code:
        """A sum over a tensor, from the partial results of the pass that takes it."""
        how, bands = "finish_max" if item.is_largest else "finish_sum", ", in_bands<pass>" if self.band_slots else ""
        if item.reduce.op == "greatest":
            bands = f"{bands or ', false'}, Greatest"
        return call(f"{how}<pass == {pass_of(item.name)}{bands}>", "call", "t", f"&Sums::{c_member(item.name)}")

    @cached_property
    def band_slots(self) -> list[int]:
        """The passes that may sum rows or columns under some settings: they walk bands on a GPU."""
        lines = (Kind.ROW, Kind.COL)
        return [item.slot for item in self.plan.passes if any(r.reduce.over in lines for r in item.reductions)]

    # Memory

    @cached_property
    def arrays(self) -> list[str]:
        """Arrays of rows, columns and matrices: states, sums and what is computed from them."""
        return [name for name in (*self.inputs, *self.by_name) if self.kinds[name].is_array]

    @property
    def filled(self) -> list[str]:
        """Arrays that a pass computes, for its elements or to be stored."""
        return [name for name in self.plan.arrays if name in self.by_name and name not in self.names]

    def array(self, name: str) -> str:
        """The address of an array's numbers."""
        return f"t.pointer<float>({column(name if name in self.inputs else f'{self.block}_{name}')})"

    def stores(self) -> list[Code]:
        """Stores of an element into its tiles."""
        written = [item for item in self.stored() if item.writes is not None]
        return [under(item.writes or FALSE, call("store", f"{item.name}_at[i]", f"x.{item.name}")) for item in written]

    def closes(self, *place: str) -> list[Code]:
        """Steps after the last element of a tile: all scales are found before anything is encoded."""
        written = [item for item in self.stored() if item.writes is not None]
        measures = [item for item in written if item.role == "state" and item.measured]
        steps = [(item, call(f"{item.name}_tile.measure", *place[:1])) for item in measures]
        steps += [(item, call(f"{item.name}_tile.close", item.scale, *place)) for item in written if item.closed]
        return [under(item.writes or FALSE, statement) for item, statement in steps]

    def stored(self) -> list[Stored]:
        """Element inputs, as the targets walk them."""
        writes = {write.input.name: write for write in self.last.writes}
        result = []
        for name in self.elements:
            item = self.inputs.get(name)
            if item is None or item.kind is not Kind.ELEMENT:
                continue
            write = writes.get(name)
            scale = self.plan.program.outputs.get(scale_name(name))
            scales = list(refs(scale)) if scale is not None and write is not None else []
            match item.role:
                case "param":
                    codec, data, aside = "ParamCodec", "t.pointer(PARAM)", "t.pointer(COMPENSATION)"
                case "grad":
                    codec, data, aside = "GradCodec", "t.grad", NOWHERE
                case _:
                    codec, data = codec_type(name), f"t.pointer({column(name)})"
                    aside = f"t.pointer({column(scale_name(name))})"
            if write is not None:
                self.guards |= write.live.names
            result.append(
                Stored(
                    name=c_member(name),
                    role=item.role,
                    codec=codec,
                    reads=self.is_read(name),
                    writes=None if write is None else write.live,
                    reads_last=self.sums.last_reads.get(name, FALSE),
                    data=data,
                    aside=aside,
                    scale=self.field(scales[0]) if scales else "0.0f",
                )
            )
        return result


@lru_cache(maxsize=128)
def block_text(rule: WholeRule, block: str, plan: Plan) -> BlockText:
    """A block's text: one for the header and both targets."""
    return BlockText(rule, block, plan)


def added(item: ElementSum, term: Code, of_column: str = "", element: str = "i") -> Code:
    """An element's term added to a sum, or stored; `of_column` follows what is a sum for each column."""
    to = f"{c_member(item.name)}{of_column}" if item.reduce.over is Kind.COL and of_column else str(c_name(item.name))
    match item.reduce:
        case MatrixCall():
            return Labelled(f"{c_member(item.name)}_at[{element}] = ", term)
        case Reduce(op="max" | "greatest" as op, over=Kind.TENSOR):
            return Labelled(f"{to} = ", call("larger" if op == "max" else "greater", to, term))
        case Reduce(op="max" | "greatest"):
            how = how_of(item.reduce)
            return Labelled(f"{to} = ", call(f"{how}::join", to, call(f"{how}::term", term)))
        case Reduce(op="squares"):
            return Labelled(f"{to} = ", call("plus_square", to, term))
    return Labelled(f"{to} += ", call("double", term))


def how_of(reduce: OfAllElements) -> str:
    """The type of how a reduction is taken, in math.h."""
    return {"max": "Largest", "greatest": "Greatest"}.get(reduce.op, "Added")


def way_of(reduce: OfAllElements) -> str:
    """The same as an argument of a template, of which sums are the default."""
    return f"<{how_of(reduce)}>" if reduce.is_maximum else ""


def _fields(code: Assignments) -> Iterator[str]:
    return (name.removeprefix("s.") for name in code.read if name.startswith("s."))

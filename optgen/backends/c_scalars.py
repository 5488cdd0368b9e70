"""A rule's values below element kind in C++: what elements read, and what is stored after them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby

from optgen.backends.assignments import Assignments, Part
from optgen.backends.c_block import BlockText, way_of
from optgen.backends.c_kinds import COUNTS, number_of, reduced
from optgen.backends.c_names import FACTS, column, member, pass_of
from optgen.backends.c_printer import CPrinter, c_condition, c_member, c_name
from optgen.backends.c_statements import CStatements, spelled, under
from optgen.backends.code import (
    ALWAYS,
    Brackets,
    Code,
    Labelled,
    Lambda,
    Operand,
    both,
    call,
    choice,
    declared,
    flat,
    guarded,
    prefixed,
)
from optgen.backends.layout import c_code, c_lines
from optgen.backends.quoting import c_comment, identifier
from optgen.backends.statements import Block, Fill, assigned, settings_in, walk_statements
from optgen.ir.formula import TRUE, Formula
from optgen.ir.kinds import window_name
from optgen.ir.liveness import demands, needed
from optgen.ir.nodes import Expr, Input, Kind, Let, Reduce, Ref, refs
from optgen.operations import Binds
from optgen.passes.rewrite import replaced
from optgen.schedule.sums import ElementSum

TABLES = (("Values", "values"), ("Sums", "sums"))
"""Types of the numbers that a tensor is given, with their names: those of the host, and what passes have summed."""


@dataclass(frozen=True)
class StageFunction:
    """A function of a stage that all rules have, about what is one number for a tensor.

    Attributes:
        templates: The types that differ between rules.
        about: Comment before it.
        parameters: Declarations of its parameters, by their names.
        reads: The names that it asks for.
        guards: The settings that it asks for.
    """

    name: str
    returns: str
    templates: list[str]
    parameters: Mapping[str, str]
    reads: set[str]
    guards: set[str]
    lines: list[str]
    about: str = ""

    @property
    def whole(self) -> list[str]:
        """The function with its head."""
        template = [f"template <{', '.join(f'class {kind}' for kind in self.templates)}>"] if self.templates else []
        head = Brackets(f"OPTGEN_TARGET {self.returns} {self.name}(", tuple(self.parameters.values()), ") {")
        about = [c_comment(self.about)] if self.about else []
        return [*about, *template, *c_code(head, 0, ""), *(f"  {line}" for line in self.lines), "}"]


class ScalarText:
    """Statements of values that exist once for a tensor, or once for each of its rows, columns or matrices."""

    def __init__(self, text: BlockText) -> None:
        self.text = text

    def _part(self, roots: Iterable[tuple[str, Formula]], arrays: bool) -> Part:
        """The bindings that these follow from, sums of elements and inputs excluded."""

        def given(let: Let) -> bool:
            known = let.name in self.text.names or let.name in self.text.plan.sums or let.name in self.text.at_hand
            return known or (let.kind.is_array and not arrays)

        live = needed(self.text.lets, roots, stop=given)
        states = {
            name: name for name, item in self.text.inputs.items() if item.role == "state" and item.kind is Kind.TENSOR
        }
        hosts = set(self.text.values)  # which are written `values.lr`
        return Part(
            [let for let in self.text.lets if let.name in live and not given(let) and let.kind is not Kind.ELEMENT],
            live,
            outside=self._outside,
            sort=lambda let: (
                let.name in self.text.booleans,
                window_name(let.expr, self.text.inputs, self.text.by_name),
            ),
            given=states,
            arrays=self.text.arrays,
            taken={*self.text.rule.guards.guards, *self.text.arrays, *self.text.inputs} - states.keys() - hosts,
        )

    def _outside(self, name: str) -> str:
        if name in self.text.values:
            return f"values.{name}"
        return f"sums.{name}" if name in self.text.names and not self.text.kinds[name].is_array else name

    def scalar_lines(self) -> list[str]:
        """The statements that compute what elements read."""
        if not self.text.names_fields:
            return self._list_lines()
        stages = [function for n in self.text.element.stages if (function := stage_scalars(self.text, n)) is not None]
        code, held = self._computed(self.text.fields, [(name, TRUE) for name in self.text.filled])
        used = (_used(code) | held.keys()).union(*(stage.reads for stage in stages))
        lines = c_lines(self._given(code, used), 2)
        if not self.text.fields and not stages:
            return [*lines, *self._statements(code, 2), "return {};"]
        calls = c_lines([call(stage.name, *stage.parameters) for stage in stages], 2)
        fields = c_lines(self._fields(code, held), 2)
        return [*lines, "Scalars s{};", *fields, *self._statements(code, 2), *calls, "return s;"]

    def _computed(
        self, fields: Mapping[str, Formula], roots: Iterable[tuple[str, Formula]] = ()
    ) -> tuple[Assignments, Mapping[str, str]]:
        """The statements that compute fields, and those fields that hold what is given, by its name."""
        part = self._part([*fields.items(), *roots], arrays=True)
        read = {name for let in part.lets for name in refs(let.expr)}
        for let in part.lets:
            if let.name in fields:
                kept = part.stored if let.name in read or let.joins else part.variables
                kept[let.name] = f"s.{let.name}"
        return part.code(), {self._outside(name): name for name in fields if name not in part.by_name}

    def _list_lines(self) -> list[str]:
        """The same where scalars are few: they are listed as their struct has them."""
        fields = self.text.fields
        code = self._part([*fields.items(), *((name, TRUE) for name in self.text.filled)], arrays=True).code(
            asked=fields.items()
        )
        printer = self._scalar_printer(code)
        items = tuple(self._stored(f"s.{name}", printer.code(code.values[name])) for name in fields)
        lines = c_lines(self._given(code, _used(code)), 2) + self._statements(code, 2)
        return lines + c_code(Brackets("return {", items, "}"), 2)

    def _fields(self, code: Assignments, held: Mapping[str, str]) -> list[Code]:
        """Fields that hold what is given."""
        spell = self._scalar_printer(code, held).spell
        return [Labelled(f"{self.text.field(name)} = ", call("float", spell(given))) for given, name in held.items()]

    def _statements(self, code: Assignments, indent: int) -> list[str]:
        printer = self._scalar_printer(code)
        statements = CStatements(
            printer, lambda variable: self._scalar_type(code, variable), self._fill, store=self._stored
        )
        return statements.lines(self.text.asked(code), indent)

    def _stored(self, variable: str, value: Code) -> Code:
        """A value as its variable takes it: elements read numbers in float32."""
        is_field = variable.startswith("s.") and variable.removeprefix("s.") not in self.text.booleans
        return call("float", value) if is_field else value

    def stage(self, name: str) -> StageFunction | None:
        """Scalars that a stage of all rules computes for its elements, as a function of its own; None without any."""
        fields = self.text.stage_fields(name)
        if not fields:
            return None
        code, held = self._computed(fields)
        lines = [*c_lines(self._fields(code, held), 2), *self._statements(code, 2)]
        return self._function(f"{name}_scalars", "void", {"s": f"{stage_type(name)}& s"}, code, held, lines)

    def _function(
        self,
        name: str,
        returns: str,
        first: Mapping[str, str],
        code: Assignments,
        given: Collection[str],
        lines: list[str],
    ) -> StageFunction:
        """A function of these statements, which reads what is given beside what they do."""
        used = _used(code).union(given)
        tables = [(kind, short) for kind, short in TABLES if any(name.startswith(f"{short}.") for name in used)]
        inputs = [item for n, item in self.text.inputs.items() if n in used and not _is_value(item)]
        return StageFunction(
            name=name,
            returns=returns,
            templates=[kind for kind, _ in tables],
            parameters={
                **first,
                **{short: f"const {kind}& {short}" for kind, short in tables},
                **{c_name(item.name): f"{self._input_type(item)} {c_name(item.name)}" for item in inputs},
            },
            reads=used,
            guards=settings_in(code.body, code.values.values()),
            lines=lines,
        )

    def stage_states(self, stage: str) -> dict[str, StageFunction]:
        """New values that a stage gives states of a tensor, each as a function of its own."""
        result = {}
        for write in self.text.plan.commits:
            part = self._part(demands(write.value, write.live), arrays=False)
            if not part.lets or write.input.kind.is_array or any(let.stage != stage for let in part.lets):
                continue
            code = part.code(asked=demands(write.value, write.live))
            value = self._scalar_printer(code).code(replaced(write.value, code.values))
            lines = [*self._statements(code, 2), *c_code(Labelled("return ", value), 2)]
            name, kind = write.input.name, self._input_type(write.input)
            function = self._function(identifier(f"{stage}_stage_{name}"), kind, {}, code, (), lines)
            result[name] = replace(function, about=f"The state `{name}` after a step.")
        return result

    def _scalar_printer(self, code: Assignments, also: Collection[str] = ()) -> CPrinter:
        names = _used(code).union(also)
        texts = {name: member(name) for name in names if name.startswith(("values.", "sums."))}
        texts |= {name: self.text.field(name.removeprefix("s.")) for name in names if name.startswith("s.")}
        arrays = {name: c_name(name) for name in self.text.arrays}
        return _Scalars(
            single=False,
            names={},
            spell=spelled({**texts, **arrays}, c_name),
            kinds=self.text.kinds,
            exists={**{name: item.exists for name, item in self.text.inputs.items()}, **self.text.plan.arrays},
        )

    def _scalar_type(self, code: Assignments, variable: str) -> str:
        let = code.types.get(variable)
        if let is not None and let.name in self.text.booleans:
            return "bool"
        held = let.expr if let is not None else Ref(next(n for n, v in code.holders.items() if v == variable))
        past = window_name(held, self.text.inputs, self.text.by_name)
        return "double" if past is None else f"Window<{self.text.inputs[past].window}>"

    def _given(self, code: Assignments, used: Collection[str]) -> list[Code]:
        """Declarations before statements below element kind."""
        lines: list[Code] = []
        for kind, short in TABLES:
            if any(name.startswith(f"{short}.") for name in used):
                lines.append(f"const {kind}& {short} = {short}_of<{kind}>(call, t)")
        written = assigned(code.body)
        for name, item in self.text.inputs.items():
            if name in used and not _is_value(item):
                lines.append(prefixed("" if name in written else "const ", self._input(item)))
        for name in self.text.by_name:
            if name in self.text.arrays and (name in used or name in _filled(code.body)):
                lines.append(f"float* const {c_name(name)} = {self.text.array(name)}")
        return lines

    def _input(self, item: Input) -> Code:
        name = c_name(item.name)
        if item.role == "step":
            return f"double step = steps_of(t){' + 1.0' if self.text.block == 'step' else ''}"
        if item.role == "fact":
            return f"double {name} = double(t.at({FACTS[item.name]}))"
        if item.kind.is_array:
            return f"float* const {name} = t.pointer<float>({column(item.name)})"
        return Labelled(f"{self._input_type(item)} {name} = ", self._stored_value(item))

    def _stored_value(self, item: Input) -> Code:
        """A state of the tensor as it is stored."""
        pointer, exists = f"t.pointer<float>({column(item.name)})", self.text.condition(item.exists)
        if item.window is not None:
            asked = "" if exists == ALWAYS else f", {flat(exists.within(Binds.OR))}"
            return call(f"read_window<{item.window}{asked}>", pointer)
        return choice(exists, call("double", f"*{pointer}"), "0.0")

    def _input_type(self, item: Input) -> str:
        return "double" if item.window is None else f"Window<{item.window}>"

    def _fill(self, let: Let) -> Code:
        """An array's numbers, once the sums are there from which they follow."""
        value = self._array_value(let.expr, let.kind)
        numbers = _each(let.kind, c_name(let.name), value, self.text.goes_by_rows)
        known = TRUE
        for arm in let.arms:
            known = known & (arm.formula if arm.holds else ~arm.formula)
        live = self.text.condition(self.text.plan.arrays[let.name].given(known))
        found = map(self.text.is_found, self._sums_before(let.name))
        (statement,) = guarded(both(live, *found), numbers)
        return statement

    def _sums_before(self, name: str) -> list[str]:
        """The sums that must be there before an array can be computed; of those that wait for others, no more."""
        found = needed(self.text.lets, [(name, TRUE)], stop=lambda let: let.name in self.text.names)
        return [item.name for item in self.text.sums.all if item.name in found and item.fixed is None]

    def _array_value(self, expr: Expr, kind: Kind) -> Code:
        if isinstance(expr, Reduce):
            assert isinstance(expr.x, Ref)
            whole = self.text.kinds[expr.x.name]
            return call("float", reduced(str(c_name(expr.x.name)), expr.over, whole, way_of(expr)))
        names = {}
        for name in refs(expr):
            text = member(name) if name.startswith(("values.", "sums.")) else c_name(name)
            own = self.text.kinds.get(name, Kind.STEP)
            if name not in self.text.arrays:
                names[name] = text if name in self.text.booleans else f"float({text})"
            elif own is kind:
                names[name] = f"{text}[i]"
            else:
                names[name] = f"{text}[{number_of(own, kind, 'i')}]"
        return CPrinter(single=True, names=names).code(expr)

    # After a pass

    def finish_lines(self) -> list[str]:
        """Statements that combine the partial results of a pass."""
        lines: list[Code] = []
        over_all = {reduction for _, reduction in self.text.plan.sums.values()}
        for item in self.text.sums.over(Kind.TENSOR):
            lines.append(self.text.finished(item))
            if item.name in over_all and not item.live.is_true:
                untaken = f"finish_untaken<pass == {item.fixed} && {pass_of(item.name)} == NEVER>"
                lines.append(call(untaken, "call", "t", f"&Sums::{c_member(item.name)}"))
        return c_lines(
            [*lines, *self._line_sums(Kind.ROW, "finish_rows"), *self._line_sums(Kind.COL, "finish_cols")], 2
        )

    def _line_sums(self, kind: Kind, how: str) -> list[Code]:
        def finished(k: int, item: ElementSum) -> Code:
            return call(f"{how}{way_of(item.reduce)}", "call", "t", "row_sums", f"{k}", self.text.array(item.name))

        return self.text.taking(self.text.sums.over(kind), finished)

    def commit_lines(self) -> list[str]:
        """Statements that store values below element kind, after all elements, so that nothing is left half done."""
        commits = self.text.plan.commits
        of_stages = {
            name: function for stage in self.text.element.stages for name, function in self.stage_states(stage).items()
        }
        own = [write for write in commits if write.input.name not in of_stages]
        roots = [root for write in own for root in demands(write.value, write.live)]
        asked = [(name, write.live) for write in own for name in refs(write.value) if name not in self.text.arrays]
        code = self._part(roots, arrays=False).code(asked=asked)
        printer = self._scalar_printer(code)
        used = {name for write in own if write.input.kind.is_array for name in refs(write.value)} | _used(code)
        used |= {name for function in of_stages.values() for name in function.reads} - of_stages.keys()
        lines = c_lines([*self._given(code, used), *self._from_stages(of_stages)], 4) + self._statements(code, 4)
        if lines and commits:
            lines.append("wait_for_all();  // what is written now has been read")
        for write in commits:
            value = Ref(write.input.name) if write.input.name in of_stages else replaced(write.value, code.values)
            lines += c_code(under(write.live, self._put(write.input, value, printer)), 4)
            self.text.guards |= write.live.names
        if self.text.block == "step":
            lines.append("count_step(t);")
        return lines

    def _from_stages(self, states: Mapping[str, StageFunction]) -> Iterator[Code]:
        """New values of states that functions of stages compute."""
        for name, function in states.items():
            item = self.text.inputs[name]
            own = c_name(name)
            given = [self._stored_value(item) if parameter == own else parameter for parameter in function.parameters]
            value = call(function.name, *given)
            yield Labelled(f"const {function.returns} {c_name(name)} = ", value)

    def _put(self, item: Input, value: Expr, printer: CPrinter) -> Code:
        pointer = f"t.pointer<float>({column(item.name)})"
        if item.kind.is_array:
            return _each(item.kind, pointer, self._array_value(value, item.kind))
        return call("put", pointer if item.window is not None else f"*{pointer}", printer.code(value))


@lru_cache(maxsize=256)
def stage_scalars(text: BlockText, name: str) -> StageFunction | None:
    """Scalars that a stage of all rules computes for the elements of a block."""
    return ScalarText(text).stage(name)


@dataclass(frozen=True)
class _Scalars(CPrinter):
    """Prints numbers below element kind; sums over arrays are loops of their own, where there are such arrays.

    Attributes:
        exists: The condition under which an array is there.
        known: A condition that holds where the text stands.
    """

    kinds: Mapping[str, Kind] = field(default_factory=dict)
    exists: Mapping[str, Formula] = field(default_factory=dict)
    known: Formula = TRUE

    def where(self, formula: Formula) -> _Scalars:
        """The printer of what stands below a condition."""
        return replace(self, known=self.known & formula)

    def operand(self, expr: Expr) -> Operand:
        """The expression, to be an operand of another."""
        match expr:
            case Reduce(x=Ref(name=name)):
                value = call(f"sum_of{way_of(expr)}", self.spell(name), COUNTS[self.kinds[name]])
                exists = self.exists[name].given(self.known)
                chosen = choice(c_condition(exists), value, "0.0")
                return Operand(chosen, Binds.ATOM if exists.is_true else Binds.CHOICE)
        return super().operand(expr)


def stage_type(stage: str) -> str:
    """The type of the scalars of a stage that all rules have."""
    return f"{stage.capitalize()}Scalars"


def _used(code: Assignments) -> set[str]:
    """The names that statements and the values after them read or assign."""
    return code.read | assigned(code.body)


def _is_value(item: Input) -> bool:
    """Check whether an input is computed by the host, or is one number for each element."""
    return item.kind.is_host or item.kind is Kind.ELEMENT


def field_lines(text: BlockText, names: Iterable[str]) -> list[str]:
    """The members of scalars in their order; conditions are as wide as what they choose between."""
    types = groupby(names, lambda name: "Condition" if name in text.booleans else "float")
    members = [(kind, [text.field(name).removeprefix("s.") for name in own]) for kind, own in types]
    return c_lines([declared(kind, own) for kind, own in members], 2)


def _filled(block: Block) -> set[str]:
    return {s.let.name for s in walk_statements(block) if isinstance(s, Fill)}


def _each(kind: Kind, array: str, value: Code, by_rows: bool = False) -> Code:
    """All numbers of an array, or those of the rows at hand."""
    head = "each_row(t" if by_rows else f"each({COUNTS[kind]}"
    return Lambda(f"{head}, [&](int64_t i) {{", Labelled(f"{array}[i] = ", value))

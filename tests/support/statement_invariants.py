"""Invariants of statements before they are printed; a violation is a fault of optgen, not of a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from optgen.backends.assignments import Assignments
from optgen.backends.statements import (
    Assign,
    Block,
    Declare,
    Fill,
    If,
    Invoke,
    Take,
    assigned_by,
    names_of,
    values_in,
    walk_statements,
)
from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.liveness import demands
from optgen.ir.nodes import Call, Const, Expr, MatrixCall, Reduce, Ref, Select, refs, walk
from optgen.ir.verifier import VerificationError
from optgen.operations import OPERATIONS, Sort


def verify_statements(code: Assignments) -> None:
    """Check what must hold of the statements of a function, and of the stages that it calls.

    Raises:
        VerificationError: naming the variable.
    """
    for check in INVARIANTS:
        for violation in check(code):
            raise VerificationError(violation)
    for stage in code.stages.values():
        verify_statements(stage.code)


def _declared_once(code: Assignments) -> Iterator[str]:
    """A variable is declared once in a scope, before it is assigned; a constant is assigned there alone."""

    def look(block: Block, scope: set[str]) -> Iterator[str]:
        for statement in block:
            match statement:
                case Assign(variable=variable, declares=declares):
                    if declares and variable in scope:
                        yield f"{variable} is declared twice"
                    elif not declares and variable not in scope:
                        yield f"{variable} is assigned before it is declared"
                    scope.add(variable)
                case Declare(variable=variable):
                    if variable in scope:
                        yield f"{variable} is declared twice"
                    scope.add(variable)
                case If(then=then, other=other):
                    yield from look(then, set(scope))
                    yield from look(other, set(scope))
                case Invoke(results=results):
                    yield from (f"{name} is assigned before it is declared" for name in {*results.values()} - scope)

    yield from look(code.body, {*code.given, *code.left})
    yield from _constants(code.body)


def _constants(block: Block) -> Iterator[str]:
    for at, statement in enumerate(block):
        match statement:
            case Assign(variable=variable, constant=True, declares=declares):
                if not declares:
                    yield f"{variable} is a constant that is not declared there"
                if any(variable in assigned_by(later) for later in walk_statements(block[at + 1 :])):
                    yield f"{variable} is a constant and assigned again"
            case If(then=then, other=other):
                yield from _constants(then)
                yield from _constants(other)


def _assigned_before_read(code: Assignments) -> Iterator[str]:
    """Check that variables are assigned before they are read, under all settings that lead to the statement."""
    assigned = dict.fromkeys(code.given, TRUE)
    without_value: set[str] = set()

    def missing(expr: Expr, path: Formula) -> Iterator[str]:
        for name, needs in demands(expr, path, path):
            if name in code.reached or needs.implies(assigned.get(name, FALSE)):
                continue
            if name not in code.loose or name in without_value:
                yield f"{name} is read where it may not be assigned"

    def assign(variable: str, path: Formula) -> None:
        assigned[variable] = assigned.get(variable, FALSE) | path

    def look(block: Block, path: Formula) -> Iterator[str]:
        for statement in block:
            match statement:
                case Assign(variable=variable, value=value):
                    yield from missing(value, path)
                    assign(variable, path)
                case Declare(variable=variable, always_assigned=True):
                    without_value.add(variable)
                case If(formula=formula, then=then, other=other):
                    yield from look(then, path & formula)
                    yield from look(other, path & ~formula)
                case Take(value=value):
                    yield from missing(value, path)
                case Fill(let=let, live=live):
                    yield from missing(let.expr, path & live)
                case Invoke(arguments=arguments, results=results):
                    for name in arguments.values():
                        yield from missing(Ref(name), path)
                    for name in results.values():
                        assign(name, path)

    yield from look(code.body, TRUE)
    for name, live in code.asked.items():
        yield from missing(code.values[name], live)
    for name in sorted(code.left - assigned.keys()):
        yield f"{name} is never assigned"


def _sorts(code: Assignments) -> Iterator[str]:
    """A variable holds values of one sort, and operations have operands of the sorts that they take."""
    sorts: dict[str, Sort] = {}
    for statement in walk_statements(code.body):
        if isinstance(statement, Assign):
            sort = _sort(statement.value, sorts)
            if sort is not None and sorts.setdefault(statement.variable, sort) != sort:
                yield f"{statement.variable} is a {sorts[statement.variable]} and cannot take a {sort}"
    for value in (*values_in(code.body), *code.values.values()):
        for part in walk(value):
            if isinstance(part, Call):
                yield from _wrong_operands(part, sorts)


def _wrong_operands(call: Call, sorts: dict[str, Sort]) -> Iterator[str]:
    wanted: dict[Sort, Sort] = dict.fromkeys(("elements", "tensor", "matrix", "dimension"), "number")
    for (_, takes), arg in zip(OPERATIONS[call.op].takes, call.args, strict=False):
        sort = _sort(arg, sorts)
        if takes != "value" and sort is not None and sort != wanted.get(takes, takes):
            yield f"`{call.op}` takes a {takes}, not a {sort}"


def _sort(expr: Expr, sorts: dict[str, Sort]) -> Sort | None:
    """Sort of an expression; None of what comes from elsewhere."""
    match expr:
        case Const(value=value):
            return "condition" if isinstance(value, bool) else "number"
        case Ref(name=name):
            return sorts.get(name)
        case Select(then=then, other=other):
            return _sort(then, sorts) or _sort(other, sorts)
        case Reduce() | MatrixCall():
            return "number"
        case Call(op=op, args=args):
            gives = OPERATIONS[op].gives
            return gives if gives != "value" else next((s for arg in args[1:] if (s := _sort(arg, sorts))), None)


@dataclass
class _Reads:
    """A walk from the last statement to the first.

    Attributes:
        wanted: The variables that are read later.
    """

    wanted: set[str]
    violations: list[str] = field(default_factory=list)

    def before(self, block: Block) -> None:
        """Go on to what is read from the start of a block."""
        for at in range(len(block) - 1, -1, -1):
            match block[at]:
                case Assign(variable=variable, value=value):
                    if variable not in self.wanted:
                        self.violations.append(f"{variable} is assigned, and not read after it")
                    if value == Ref(variable):
                        self.violations.append(f"{variable} is assigned to itself")
                    self.wanted = (self.wanted - {variable}).union(refs(value))
                case Declare(variable=variable):
                    if variable not in names_of(block[at + 1 :]):
                        self.violations.append(f"{variable} is declared, and not used")
                    self.wanted.discard(variable)
                case If(then=then, other=other):
                    if not then:
                        self.violations.append("an `if` has no statements")
                    after, self.wanted = self.wanted, set(self.wanted)
                    self.before(then)
                    first, self.wanted = self.wanted, set(after)
                    self.before(other)
                    self.wanted |= first
                case Take(value=value):
                    self.wanted.update(refs(value))
                case Fill(let=let):
                    self.wanted.update(refs(let.expr))
                case Invoke(stage=stage, arguments=arguments, results=results):
                    if results and self.wanted.isdisjoint(results.values()):
                        self.violations.append(f"nothing that the stage {stage} leaves is read")
                    self.wanted = (self.wanted - set(results.values())).union(arguments.values())


def _has_effect(code: Assignments) -> Iterator[str]:
    """Check that every assigned variable is read, or is left to later statements."""
    reads = _Reads({*code.left, *(name for value in code.values.values() for name in refs(value))})
    reads.before(code.body)
    yield from reads.violations


def _calls(code: Assignments) -> Iterator[str]:
    """A stage that is called is there, and is given what it takes."""
    for statement in walk_statements(code.body):
        if isinstance(statement, Invoke):
            stage = code.stages.get(statement.stage)
            if stage is None:
                yield f"{statement.stage} is no stage"
            elif stage.call.parameters.keys() != statement.arguments.keys():
                yield f"the stage {statement.stage} is not given what it takes"
            elif stage.call.results.keys() != statement.results.keys():
                yield f"the stage {statement.stage} does not leave what is expected of it"


INVARIANTS: tuple[Callable[[Assignments], Iterator[str]], ...] = (
    _declared_once,
    _assigned_before_read,
    _sorts,
    _has_effect,
    _calls,
)

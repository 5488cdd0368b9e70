"""Statements: what stands between a plan and the text of a target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from optgen.ir.formula import Formula
from optgen.ir.nodes import Expr, Let, Select, refs, walk


@dataclass(frozen=True)
class Assign:
    """A variable gets a value; with a declaration where it is a new one.

    Attributes:
        declares: Whether it declares the variable.
        constant: Whether that is all it is ever assigned.
    """

    variable: str
    value: Expr
    declares: bool = False
    constant: bool = False


@dataclass(frozen=True)
class Declare:
    """A variable that the sides of the next `if` assign; both do, or it has a value where one does not."""

    variable: str
    always_assigned: bool


@dataclass(frozen=True)
class If:
    """Statements under settings that are fixed before a kernel is compiled."""

    formula: Formula
    then: Block
    other: Block


@dataclass(frozen=True)
class Take:
    """An element's term of a reduction, where its value is at hand."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Fill:
    """An array of rows, columns or matrices gets its numbers, under the settings that need them."""

    let: Let
    live: Formula


@dataclass(frozen=True)
class Invoke:
    """A stage that all rules have is called.

    Attributes:
        arguments: The variables that it is given, by its names of them.
        results: The variables that it leaves values in, likewise; one that is an argument too is changed.
    """

    stage: str
    arguments: Mapping[str, str]
    results: Mapping[str, str]


Statement = Assign | Declare | If | Take | Fill | Invoke
Block = tuple[Statement, ...]


def walk_statements(block: Block) -> Iterator[Statement]:
    """All statements, those within others too."""
    for statement in block:
        yield statement
        if isinstance(statement, If):
            yield from walk_statements(statement.then)
            yield from walk_statements(statement.other)


def names_in(statement: Statement) -> set[str]:
    """The variables that a statement reads or assigns."""
    match statement:
        case Assign(variable=variable, value=value):
            return {variable, *refs(value)}
        case Declare(variable=variable):
            return {variable}
        case If(then=then, other=other):
            return names_of(then) | names_of(other)
        case Take(value=value):
            return set(refs(value))
        case Fill(let=let):
            return set(refs(let.expr))
        case Invoke(arguments=arguments, results=results):
            return {*arguments.values(), *results.values()}


def assigned_by(statement: Statement) -> set[str]:
    """The variables that a statement assigns by itself, not within its sides."""
    match statement:
        case Assign(variable=variable):
            return {variable}
        case Invoke(results=results):
            return set(results.values())
    return set()


def assigned(block: Block) -> set[str]:
    """The variables that statements assign."""
    return {name for statement in walk_statements(block) for name in assigned_by(statement)}


def names_of(block: Sequence[Statement]) -> set[str]:
    """The variables that statements read or assign."""
    return {name for statement in block for name in names_in(statement)}


def values_in(block: Block) -> Iterator[Expr]:
    """The values that statements compute."""
    for statement in walk_statements(block):
        match statement:
            case Assign(value=value) | Take(value=value):
                yield value
            case Fill(let=let):
                yield let.expr


def takes_sums(block: Block) -> bool:
    """Check whether statements add to sums, after which a pass may end."""
    return any(isinstance(statement, Take) for statement in walk_statements(block))


def settings_in(block: Block, values: Iterable[Expr] = ()) -> set[str]:
    """The guards that statements, and the values after them, ask for."""
    result = {name for s in walk_statements(block) if isinstance(s, If) for name in s.formula.names}
    for value in (*values_in(block), *values):
        result.update(name for node in walk(value) if isinstance(node, Select) for name in node.formula.names)
    return result


def reads(block: Block) -> set[str]:
    """The names that statements read."""
    result = {name for value in values_in(block) for name in refs(value)}
    return result.union(*(s.arguments.values() for s in walk_statements(block) if isinstance(s, Invoke)))


def reads_first(block: Block, variable: str) -> bool:
    """Check whether statements may read a variable before they assign it."""
    for statement in block:
        match statement:
            case Assign(variable=name, value=value):
                if variable in refs(value):
                    return True
                if name == variable:
                    return False
            case If(then=then, other=other):
                if reads_first(then, variable) or reads_first(other, variable):
                    return True
            case Invoke(arguments=arguments, results=results):
                if variable in arguments.values():
                    return True
                if variable in results.values():
                    return False
            case _:
                if variable in names_in(statement):
                    return True
    return False

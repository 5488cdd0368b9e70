"""Statements: what stands between a plan and the text of a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optgen.ir.formula import Formula
from optgen.ir.nodes import Expr, Let, refs


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
    """An array of rows, columns or matrices gets its numbers."""

    let: Let


Statement = Assign | Declare | If | Take | Fill
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


def names_of(block: Sequence[Statement]) -> set[str]:
    """The variables that statements read or assign."""
    return {name for statement in block for name in names_in(statement)}


def reads(block: Block) -> set[str]:
    """The names that statements read."""
    result: set[str] = set()
    for statement in walk_statements(block):
        match statement:
            case Assign(value=value):
                result.update(refs(value))
            case Take(value=value):
                result.update(refs(value))
            case Fill(let=let):
                result.update(refs(let.expr))
    return result


def reads_first(block: Block, variable: str) -> bool:
    """Whether statements may read a variable before they assign it."""
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
            case _:
                if variable in names_in(statement):
                    return True
    return False

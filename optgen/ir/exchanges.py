"""States that are exchanged, as in `a, b = b, a`: their memory changes places after the step, and nothing is copied.

An exchange is of whole tensors. Where elements may be left out of it (`active`), in steps that are recorded, and of
states that are not stored alike, the values are copied.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.nodes import Call, Const, Expr, Input, Kind, Let, Program, Ref, Select

Pair = tuple[ast.Name, ast.expr]
"""A name of a statement that assigns several, with its value."""


@dataclass(frozen=True)
class Exchange:
    """Two states that get the values of each other.

    Attributes:
        live: Under which settings, and on which steps.
    """

    first: str
    second: str
    live: Formula

    @property
    def names(self) -> tuple[str, str]:
        """The states."""
        return self.first, self.second


def paired(targets: Sequence[ast.expr], values: Sequence[ast.expr]) -> list[Pair]:
    """The names of a statement with their values; none if these are not different names with a value for each."""
    names = [target for target in targets if isinstance(target, ast.Name)]
    alike = len({name.id for name in names}) == len(targets) == len(values)
    return list(zip(names, values, strict=True)) if alike else []


def exchanged(pairs: Sequence[Pair], path: Formula) -> list[Exchange]:
    """The exchange that a statement asks for, if it is one of two names."""
    match pairs:
        case [(ast.Name(id=first), ast.Name(id=one)), (ast.Name(id=second), ast.Name(id=other))]:
            return [Exchange(first, second, path)] if (first, second) == (other, one) else []
    return []


def exchanges(
    asked: Iterable[Exchange], program: Program, active: Expr, recorded: Formula, stored_as: Mapping[str, str | None]
) -> tuple[Exchange, ...]:
    """The exchanges of a block that memory can make: of states that are stored alike, each in one of them alone.

    Args:
        recorded: The settings under which a step may be recorded.
        stored_as: Of states that have one, the option that says how they are stored.
    """
    found = []
    every = list(asked)
    whole = _holds(program.lets, active) & ~recorded
    for one in every:
        first, second = (program.inputs.get(name) for name in one.names)
        taken = [name for other in every for name in other.names]
        alike = first is not None and second is not None and _stored(first, stored_as) == _stored(second, stored_as)
        if alike and first is not None and second is not None and all(taken.count(name) == 1 for name in one.names):
            live = one.live & whole & first.exists & second.exists
            found += [] if live.is_false else [Exchange(one.first, one.second, live)]
    return tuple(found)


def _stored(item: Input, stored_as: Mapping[str, str | None]) -> object:
    """All that decides how a state of elements is stored; anything else is like nothing."""
    if item.role != "state" or item.kind is not Kind.ELEMENT:
        return item
    return item.codecs, item.signed, stored_as.get(item.name)


def _holds(lets: Iterable[Let], condition: Expr) -> Formula:
    """The settings under which a condition of the program is true for all elements."""
    found: dict[str, Formula] = {}

    def holds(expr: Expr) -> Formula:
        match expr:
            case Const(value=value):
                return TRUE if value is True else FALSE
            case Ref(name=name):
                return found.get(name, FALSE)
            case Select(formula=formula, then=then, other=other):
                return (formula & holds(then)) | (~formula & holds(other))
            case Call(op="and", args=(first, second)):
                return holds(first) & holds(second)
        return FALSE

    for let in lets:
        found[let.name] = holds(let.expr)
    return holds(condition)

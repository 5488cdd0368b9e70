"""Chooses the places where the variables of statements are declared."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from optgen.backends.statements import (
    Assign,
    Declare,
    If,
    Invoke,
    Statement,
    assigned,
    assigned_by,
    names_in,
    names_of,
    reads_first,
    walk_statements,
)


def declared(body: Sequence[Statement], own: Collection[str], ends: Collection[str]) -> list[Statement]:
    """The statements with a declaration of every variable but `own`.

    It stands where the variable is first assigned, or before the `if` whose sides assign what is read after it.

    Args:
        ends: The variables that are read after the last statement.
    """
    waiting = assigned(tuple(body)) - set(own)
    return _place(body, waiting, ends)


def _place(body: Sequence[Statement], waiting: Collection[str], ends: Collection[str] = ()) -> list[Statement]:
    named = [names_in(statement) for statement in body]
    result: list[Statement] = []
    declared: set[str] = set()
    for index, statement in enumerate(body):
        here = sorted(named[index] & set(waiting) - declared)
        if isinstance(statement, Invoke):
            declared.update(here)
            result += [Declare(name, always_assigned=True) for name in here]
        elif not isinstance(statement, If):
            for name in here:
                if reads_first((statement,), name):
                    declared.add(name)
                    result.append(Declare(name, always_assigned=False))
        if isinstance(statement, Assign):
            if statement.variable in here and statement.variable not in declared:
                declared.add(statement.variable)
                assigning = [s for s in walk_statements(tuple(body)) if statement.variable in assigned_by(s)]
                statement = replace(statement, declares=True, constant=len(assigning) == 1)
            result.append(statement)
            continue
        if isinstance(statement, If):
            outer = [
                name
                for name in here
                if name in ends
                or any(name in names for names in named[index + 1 :])
                or any(reads_first(side, name) for side in (statement.then, statement.other))
            ]
            inner = set(here) - set(outer)
            for name in outer:
                declared.add(name)
                result.append(Declare(name, _always_assigns(statement, name)))
            then, other = (tuple(_place(side, inner & names_of(side))) for side in (statement.then, statement.other))
            statement = replace(statement, then=then, other=other)
        result.append(statement)
    return result


def _always_assigns(statement: Statement, variable: str) -> bool:
    match statement:
        case Assign(variable=name):
            return name == variable
        case If(then=then, other=other):
            return all(any(_always_assigns(s, variable) for s in side) for side in (then, other))
    return False

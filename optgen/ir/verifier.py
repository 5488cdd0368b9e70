"""Properties that a program must have, each in one function, with the stage from which on it holds.

A violation is a fault of optgen, not of a spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum

from optgen.ir.kinds import kind_of
from optgen.ir.nodes import (
    Call,
    Const,
    Expr,
    Input,
    Kind,
    MatrixCall,
    OfAllElements,
    Program,
    Reduce,
    Ref,
    Select,
    refs,
    takes,
    walk,
)
from optgen.operations import OPERATIONS, Sort


class VerificationError(AssertionError):
    """A pass broke the program."""


class Stage(IntEnum):
    """Stage of a program. Properties of one stage hold at all later ones."""

    BUILT = 0
    """Program as the equations give it."""
    HOISTED = 1
    """Every binding computes at its own kind."""
    READY = 2
    """Program that is ready for scheduling."""


def verify(program: Program, stage: Stage = Stage.BUILT) -> None:
    """Check what must hold of a program at a stage.

    Raises:
        VerificationError: naming the binding.
    """
    for since, check in INVARIANTS:
        if since <= stage:
            for violation in check(program):
                raise VerificationError(violation)


def _bound_once_and_before(program: Program) -> Iterator[str]:
    """Single assignment: every name is bound once, and before it is read."""
    known = set(program.inputs)
    for let in program.lets:
        if let.name in known:
            yield f"{let.name} is bound twice"
        for name in refs(let.expr):
            if name not in known:
                yield f"{let.name} reads {name}, which is not bound before it"
        known.add(let.name)
    for target, value in program.outputs.items():
        if target not in program.inputs:
            yield f"{target} is written but is no input"
        for name in refs(value):
            if name not in known:
                yield f"{target} reads {name}, which is not bound"


def _fits(program: Program) -> Iterator[str]:
    """A binding has room for the numbers of its value, and so has what is written."""
    kinds = program.kinds()
    for let in program.lets:
        if not takes(let.kind, kind_of(let.expr, kinds)):
            yield f"{let.name} is of kind {let.kind.name}, its value is not"
    for target, value in program.outputs.items():
        if not takes(program.inputs[target].kind, kind_of(value, kinds)):
            yield f"{target} cannot take a value of kind {kind_of(value, kinds).name}"


def _operands(program: Program) -> Iterator[str]:
    """Operations have the operands that the table says: conditions, windows and numbers in their places."""
    sorts: dict[str, Sort] = {name: _sort_of_input(item) for name, item in program.inputs.items()}
    for name, expr in _values(program):
        for part in walk(expr):
            if isinstance(part, Call) and (wrong := _wrong_operands(part, sorts)):
                yield f"{name}: {wrong}"
            if isinstance(part, Select) and _sort(part.then, sorts) != _sort(part.other, sorts):
                yield f"{name} chooses between a {_sort(part.then, sorts)} and a {_sort(part.other, sorts)}"
            if isinstance(part, OfAllElements) and _sort(part.x, sorts) != "number":
                yield f"{name} reduces a {_sort(part.x, sorts)}"
        found = _sort(expr, sorts)
        if sorts.setdefault(name, found) != found:
            yield f"{name} is a {sorts[name]} and cannot take a {found}"


def _wrong_operands(call: Call, sorts: Mapping[str, Sort]) -> str:
    row = OPERATIONS.get(call.op)
    if row is None:
        return f"`{call.op}` is no operation"
    if len(call.args) != row.arity + len(row.beside):
        return f"`{call.op}` has {len(call.args)} operands"
    found = [_sort(arg, sorts) for arg in call.args]
    for (_, wanted), sort in zip(row.takes, found, strict=False):
        numbers = dict.fromkeys(("elements", "tensor", "matrix", "dimension"), "number")
        if sort != {**numbers, "value": found[row.arity - 1]}.get(wanted, wanted):
            return f"`{call.op}` takes a {wanted}, not a {sort}"
    return ""


def _sort(expr: Expr, sorts: Mapping[str, Sort]) -> Sort:
    """Sort of an expression: number, condition or window."""
    match expr:
        case Const(value=value):
            return "condition" if isinstance(value, bool) else "number"
        case Ref(name=name):
            return sorts[name]
        case Select(then=then):
            return _sort(then, sorts)
        case Reduce() | MatrixCall():
            return "number"
        case Call(op=op, args=args):
            gives = OPERATIONS[op].gives if op in OPERATIONS else "number"
            return _sort(args[-1], sorts) if gives == "value" else gives


def _sort_of_input(item: Input) -> Sort:
    return "window" if item.window is not None else "number"


def _reductions(program: Program) -> Iterator[str]:
    """A reduction goes from more numbers to fewer; a function of matrices takes elements, and settings of a group."""
    kinds = program.kinds()
    for name, expr in _values(program):
        for part in walk(expr):
            if isinstance(part, MatrixCall):
                if kind_of(part.x, kinds) is not Kind.ELEMENT:
                    yield f"{name} takes a {kind_of(part.x, kinds).name} as a matrix"
                if any(not kind_of(setting, kinds).is_host for setting in part.settings):
                    yield f"{name} has settings that differ within a group"
            if isinstance(part, Reduce):
                kind = kinds[part.x.name] if isinstance(part.x, Ref) else kind_of(part.x, kinds)
                if kind is part.over or not takes(kind, part.over):
                    yield f"{name} reduces {kind.name} over {part.over.name}"


def _choices(program: Program) -> Iterator[str]:
    """A choice is open: what always holds is no choice."""
    for name, expr in _values(program):
        if any(isinstance(part, Select) and (part.formula.is_true or part.formula.is_false) for part in walk(expr)):
            yield f"{name} has a choice that is decided"


def _own_kind(program: Program) -> Iterator[str]:
    """Check that parts of a binding have its kind: a part of a smaller kind must be a binding of its own."""
    kinds = program.kinds()
    for let in program.lets:
        for part in walk(let.expr):
            if part is not let.expr and isinstance(part, Call | Select) and kind_of(part, kinds) is not let.kind:
                yield f"{let.name} computes a {kind_of(part, kinds).name} among {let.kind.name}"


def _reductions_alone(program: Program) -> Iterator[str]:
    """A reduction is a binding of its own, of a named value, so that the planner can place it."""
    for name, expr in _values(program):
        for part in walk(expr):
            if isinstance(part, OfAllElements) and (part is not expr or name in program.outputs):
                yield f"{name} has a reduction within its value"
            if isinstance(part, OfAllElements) and not isinstance(part.x, Ref | Const):
                yield f"{name} reduces what has no name"


def _needed(program: Program) -> Iterator[str]:
    """Every binding is read by what is written."""
    wanted = {name for value in program.outputs.values() for name in refs(value)}
    for let in reversed(program.lets):
        if let.name not in wanted:
            yield f"nothing needs {let.name}"
        wanted.update(refs(let.expr))


def _values(program: Program) -> Iterator[tuple[str, Expr]]:
    """All expressions, with the name of the binding or of what is written."""
    yield from ((let.name, let.expr) for let in program.lets)
    yield from program.outputs.items()


INVARIANTS: tuple[tuple[Stage, Callable[[Program], Iterator[str]]], ...] = (
    (Stage.BUILT, _bound_once_and_before),
    (Stage.BUILT, _fits),
    (Stage.BUILT, _operands),
    (Stage.BUILT, _reductions),
    (Stage.BUILT, _choices),
    (Stage.HOISTED, _reductions_alone),
    (Stage.HOISTED, _own_kind),
    (Stage.READY, _needed),
)

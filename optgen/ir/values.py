"""Values of names and expressions while the statements of a block are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optgen.ir.formula import FALSE, TRUE, Formula
from optgen.ir.nodes import Call, Const, Expr

ERROR = Const(float("nan"))


@dataclass(frozen=True)
class Value:
    """Value of a name at one point of a block.

    Attributes:
        missing: Under which guards it stands for nothing.
        mixed: Whether it is a number under some guards, and a condition or a window under others.
    """

    expr: Expr
    missing: Formula = FALSE
    mixed: bool = False


def call(op: str, *args: Expr) -> Expr:
    """An operation; with something that was refused it is refused too, of which no more is said."""
    return ERROR if ERROR in args else Call(op, args)


def also(active: Expr, expr: Expr) -> Expr:
    """A condition on top of the ones before: what left an element out of a step stays."""
    match expr:
        case Call(op="and", args=(first, _)) if first == active:
            return expr
    return Call("and", (active, expr))


def finite(value: float) -> float | None:
    """A number as a float; None if it is too large for one."""
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def merged(
    first: tuple[Formula, Mapping[str, Value]],
    second: tuple[Formula, Mapping[str, Value]],
    sort: Callable[[Value], object],
    joined: Callable[[str, Expr, Expr], Expr],
) -> dict[str, Value]:
    """The names behind an `if`, of which each side has values where its formula holds.

    Args:
        sort: Tells numbers, conditions and windows apart.
        joined: Binds the choice between two values of a name.
    """
    (here, ours), (there, theirs) = first, second
    result: dict[str, Value] = {}
    for name in {**ours, **theirs}:
        a = ours.get(name, Value(ERROR, TRUE))
        b = theirs.get(name, Value(ERROR, TRUE))
        if a == b:
            result[name] = a
            continue
        if a.missing.is_true or b.missing.is_true:
            # Defined on one side only: that side's value serves wherever the name may be read.
            missing = (~here | a.missing) if b.missing.is_true else (~there | b.missing)
            result[name] = Value(b.expr if a.missing.is_true else a.expr, missing)
            continue
        missing = (here & a.missing) | (there & b.missing)
        if ERROR in (a.expr, b.expr) or sort(a) != sort(b):
            mixed = ERROR not in (a.expr, b.expr) or a.mixed or b.mixed
            result[name] = Value(ERROR, missing, mixed)
            continue
        result[name] = Value(joined(name, a.expr, b.expr), missing)
    return result

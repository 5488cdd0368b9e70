"""Values of names and expressions while the statements of a block are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optgen.ir.formula import FALSE, Formula
from optgen.ir.nodes import MATRICES, Call, Const, Expr, MatrixCall, Ref

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


def direction(
    env: Mapping[str, Value], bind_part: Callable[[str, Expr], Expr], bind: Callable[[str, Expr], Expr]
) -> dict[str, Value]:
    """The direction that a step on matrices gives, and what is active: a matrix without a finite one stays as it was.

    Args:
        bind_part: Binds a part of a statement to a name.
        bind: Binds a variable's value.
    """
    x = env["grad"].expr
    x = x if isinstance(x, Ref) else bind_part("grad", x)
    update = bind("update", bind_part("update_matrix", MatrixCall(MATRICES, x)))
    active = bind("active", also(env["active"].expr, call("isfinite", update)))
    return {"update": Value(update), "active": Value(active)}

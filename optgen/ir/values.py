"""Values of names and expressions while the statements of a block are read."""

from __future__ import annotations

from dataclasses import dataclass

from optgen.ir.formula import FALSE, Formula
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

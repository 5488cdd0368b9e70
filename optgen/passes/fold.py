"""Constant folding, in float64, and the identities that hold for every float."""

from __future__ import annotations

from collections.abc import Sequence

from optgen.ir.nodes import Call, Const, Expr, Program, Select
from optgen.operations import OPERATIONS
from optgen.passes.rewrite import rewrite_program


def fold(program: Program) -> Program:
    """Evaluate what is constant."""
    return rewrite_program(program, fold_expression)


def fold_expression(expr: Expr) -> Expr:
    """One step of folding; operands are folded already."""
    match expr:
        case Select(then=then, other=other) if then == other:
            return then
        case Call(op="and", args=(Const(value=True), x)) | Call(op="and", args=(x, Const(value=True))):
            return x
        case Call(op="or", args=(Const(value=False), x)) | Call(op="or", args=(x, Const(value=False))):
            return x
        case Call(op="where", args=(Const(value=condition), then, other)):
            return then if condition else other
        case Call(op="*", args=(Const(value=1.0), x)) | Call(op="*" | "/", args=(x, Const(value=1.0))):
            return x
        case Call(op=op, args=args):
            return _evaluated(op, args) or expr
        case _:
            return expr


def _evaluated(op: str, args: Sequence[Expr]) -> Const | None:
    """The number that an operation on numbers gives; None where it gives none, or Python does not say which."""
    value, numbers = OPERATIONS[op].value, [arg.value for arg in args if isinstance(arg, Const)]
    if value is None or len(numbers) < len(args):
        return None
    try:
        result = value(*numbers)
    except (ZeroDivisionError, OverflowError, ValueError):
        return None
    return Const(result) if isinstance(result, float) else None

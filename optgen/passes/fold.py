"""Constant folding, in float64, and the identities that hold for every float."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

from optgen.ir.nodes import Call, Const, Expr, Program, Select
from optgen.passes.rewrite import rewrite_program

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
}


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
        case Call(op=op, args=(Const(value=float(a)), Const(value=float(b)))) if op in OPERATORS:
            return _arithmetic(expr, op, a, b)
        case Call(op="neg", args=(Const(value=value),)):
            return Const(-value)
        case Call(op="sqrt", args=(Const(value=value),)) if value >= 0:
            return Const(math.sqrt(value))
        case _:
            return expr


def _arithmetic(expr: Expr, op: str, a: float, b: float) -> Expr:
    try:
        result = OPERATORS[op](a, b)
    except (ZeroDivisionError, OverflowError):
        return expr
    return Const(float(result)) if isinstance(result, float) else expr

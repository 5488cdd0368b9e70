"""Rewriting expressions from the leaves up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from optgen.ir.nodes import Call, Const, Expr, Program, Reduce, Ref, Select


def rewrite(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """The expression with `change` applied to every node, operands first."""
    match expr:
        case Const() | Ref():
            return change(expr)
        case Call(args=args):
            return change(replace(expr, args=tuple(rewrite(arg, change) for arg in args)))
        case Select(then=then, other=other):
            return change(replace(expr, then=rewrite(then, change), other=rewrite(other, change)))
        case Reduce(x=x):
            return change(replace(expr, x=rewrite(x, change)))


def rewrite_program(program: Program, change: Callable[[Expr], Expr]) -> Program:
    """The program with every expression rewritten."""
    lets = tuple(replace(let, expr=rewrite(let.expr, change)) for let in program.lets)
    outputs = {name: rewrite(value, change) for name, value in program.outputs.items()}
    return replace(program, lets=lets, outputs=outputs)

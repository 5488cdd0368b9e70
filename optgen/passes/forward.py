"""Bindings that only rename another value are replaced by it."""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.nodes import Const, Expr, Program, Ref
from optgen.passes.rewrite import rewrite


def forward(program: Program) -> Program:
    """Replace reads of `b = a` and of `b = 1.0` by what they stand for."""
    known: dict[str, Expr] = {}

    def change(expr: Expr) -> Expr:
        return known.get(expr.name, expr) if isinstance(expr, Ref) else expr

    lets = []
    for let in program.lets:
        expr = rewrite(let.expr, change)
        if isinstance(expr, Ref | Const):
            known[let.name] = expr
        else:
            lets.append(replace(let, expr=expr))
    outputs = {name: rewrite(value, change) for name, value in program.outputs.items()}
    return replace(program, lets=tuple(lets), outputs=outputs)

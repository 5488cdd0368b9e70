"""Dividing elements by one number becomes multiplying by its reciprocal, taken once in float64.

The quotient is then rounded once more (the reciprocal to float32, then the product): one unit in the last place
instead of half a unit, the same on every target.
"""

from __future__ import annotations

from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Call, Const, Expr, Kind, Program
from optgen.passes.rewrite import rewrite_program


def multiply_reciprocal(program: Program) -> Program:
    """Replace `element / scalar` by `element * (1 / scalar)`."""
    kinds = program.kinds()

    def change(expr: Expr) -> Expr:
        match expr:
            case Call("/", (x, y), named) if kind_of(x, kinds) > Kind.TENSOR and kind_of(y, kinds) <= Kind.TENSOR:
                return Call("*", (x, Call("/", (Const(1.0), y))), named)
        return expr

    return rewrite_program(program, change)

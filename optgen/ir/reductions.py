"""What reductions are taken over, over how many numbers, and what they are made of."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from optgen.ir.nodes import Call, Expr, Kind, Reduce, ReduceOp, Ref


def count_of(kind: Kind, over: Kind) -> Expr:
    """How many numbers a mean is taken over."""
    match kind, over:
        case Kind.ELEMENT, Kind.ROW:
            return Ref("cols")
        case Kind.ELEMENT, Kind.COL:
            return Ref("rows")
        case Kind.ELEMENT, Kind.MATRIX:
            return Call("*", (Ref("rows"), Ref("cols")))
        case Kind.ROW, Kind.MATRIX:
            return Ref("rows")
        case Kind.COL, Kind.MATRIX:
            return Ref("cols")
        case Kind.ROW, _:
            return Call("*", (Ref("matrices"), Ref("rows")))
        case Kind.COL, _:
            return Call("*", (Ref("matrices"), Ref("cols")))
        case Kind.MATRIX, _:
            return Ref("matrices")
        case _:
            return Ref("numel")


def over_of(keywords: Sequence[ast.keyword]) -> Kind | None:
    """What a call reduces over, from `over=...`; None if that is nothing there is."""
    match list(keywords):
        case []:
            return Kind.TENSOR
        case [ast.keyword(arg="over", value=ast.Name(id="all"))]:
            return Kind.GLOBAL
        case [ast.keyword(arg="over", value=ast.Name(id="matrix"))]:
            return Kind.MATRIX
        case [ast.keyword(arg="over", value=ast.Name(id="tensor"))]:
            return Kind.TENSOR
    return None


def lowered(name: str, over: Kind, kind: Kind, x: Expr, bind: Callable[[str, Expr], Expr]) -> Expr:
    """A reduction in terms of `sum` and `max`: means divide by the count, norms take the root.

    Args:
        kind: Of `x`.
        bind: Makes a binding of a value.
    """

    def reduced(op: ReduceOp, value: Expr) -> Expr:
        """Elements reduce to one number per tensor before they reduce over all, to rows before matrices."""
        outer: ReduceOp = "max" if op == "max" else "sum"
        if kind is not Kind.ELEMENT:
            return Reduce(outer, over, Call("*", (value, value)) if op == "squares" else value)
        if over is Kind.GLOBAL:
            return Reduce(outer, Kind.GLOBAL, bind("tensor", Reduce(op, Kind.TENSOR, value)))
        if over is Kind.MATRIX:
            return Reduce(outer, Kind.MATRIX, bind("row", Reduce(op, Kind.ROW, value)))
        return Reduce(op, over, value)

    match name:
        case "absmax":
            return reduced("max", Call("abs", (x,)))
        case "sum" | "row_sum" | "col_sum":
            return reduced("sum", x)
        case "norm":
            return Call("sqrt", (reduced("squares", x),))
        case "rms":
            return Call("sqrt", (Call("/", (reduced("squares", x), count_of(kind, over))),))
        case _:
            return Call("/", (reduced("sum", x), count_of(kind, over)))

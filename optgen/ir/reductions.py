"""Reductions in terms of sums and maxima, and over how many numbers they are taken."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from optgen.ir.nodes import Call, Expr, Kind, Reduce, ReduceOp, Ref
from optgen.operations import Reduction

WORDS = {"tensor": Kind.TENSOR, "all": Kind.GLOBAL, "matrix": Kind.MATRIX}
"""Kinds by the words of `over=`."""
KINDS = {**WORDS, "row": Kind.ROW, "col": Kind.COL}


def count_of(kind: Kind, over: Kind) -> Expr:
    """Expression of the number of values that a mean is taken over."""
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


def over_of(row: Reduction, keywords: Sequence[ast.keyword]) -> Kind | None:
    """Kind that a call reduces over, from its `over=...`; None if the reduction does not take that."""
    match list(keywords):
        case []:
            return KINDS[row.over[0]]
        case [ast.keyword(arg="over", value=ast.Name(id=name))] if row.over[0] in WORDS:
            return WORDS.get(name)
    return None


REDUCED: dict[ReduceOp, str] = {"sum": "sum", "squares": "squares", "max": "largest"}
"""Endings of the names of reductions."""


def lowered(row: Reduction, over: Kind, kind: Kind, x: Expr, stem: str, bind: Callable[[str, Expr], Expr]) -> Expr:
    """A reduction in terms of `sum` and `max`: means divide by the count, norms take the root.

    Args:
        kind: Of `x`.
        stem: Stem of the name of `x`.
        bind: Makes a binding of a value.
    """
    match row.of:
        case "numbers":
            result = _reduced("sum", over, kind, x, stem, bind)
        case "squares":
            result = _reduced("squares", over, kind, x, stem, bind)
        case "magnitudes":
            result = _reduced("max", over, kind, Call("abs", (x,)), stem, bind)
    if row.is_mean:
        of = "" if over is Kind.TENSOR else f"{over.name.lower()}_"
        named = f"{stem}_{of}{'mean_square' if row.of == 'squares' else 'mean'}"
        result = Call("/", (result, count_of(kind, over)), named)
    return Call("sqrt", (result,)) if row.is_root else result


def _reduced(op: ReduceOp, over: Kind, kind: Kind, x: Expr, stem: str, bind: Callable[[str, Expr], Expr]) -> Expr:
    """Elements reduce to one number per tensor before they reduce over all, to rows before matrices."""
    outer: ReduceOp = "max" if op == "max" else "sum"
    if kind is not Kind.ELEMENT:
        return Reduce(outer, over, Call("*", (x, x)) if op == "squares" else x)
    if over is Kind.GLOBAL:
        return Reduce(outer, Kind.GLOBAL, bind(f"{stem}_{REDUCED[op]}", Reduce(op, Kind.TENSOR, x)))
    if over is Kind.MATRIX:
        return Reduce(outer, Kind.MATRIX, bind(f"{stem}_row_{REDUCED[op]}", Reduce(op, Kind.ROW, x)))
    return Reduce(op, over, x)

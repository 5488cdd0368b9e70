"""What reductions are taken over, and over how many numbers."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from optgen.ir.nodes import Call, Expr, Kind, Ref


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

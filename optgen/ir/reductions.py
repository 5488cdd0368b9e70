"""Reductions in terms of sums and maxima, and over how many numbers they are taken."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optgen.ir.kinds import unit_of
from optgen.ir.nodes import Call, Const, Expr, Kind, Reduce, ReduceOp, Ref, takes
from optgen.operations import REDUCTIONS, Reduction

DIMENSIONS = {kind.name.lower(): kind for kind in (Kind.CHANNEL, Kind.LAST, Kind.LAST2, Kind.LAST3, Kind.LAST4)}
"""Kinds of one dimension by their words."""
WORDS = {
    "tensor": Kind.TENSOR,
    "all": Kind.GLOBAL,
    "group": Kind.GROUP,
    "matrix": Kind.MATRIX,
    "row": Kind.ROW,
    "col": Kind.COL,
    **DIMENSIONS,
}
"""Kinds by the words of `over=`."""


def least_rank(kind: Kind) -> int:
    """The least number of dimensions that a parameter has which has numbers of this kind."""
    if not kind.is_array:
        return 0
    return {Kind.LAST3: 3, Kind.LAST4: 4}.get(kind, 2)


def size_of(kind: Kind) -> Expr:
    """Expression of how many numbers of a kind a parameter has."""
    match kind:
        case Kind.ROW:
            return Call("*", (Ref("matrices"), Ref("rows")))
        case Kind.COL:
            return Call("*", (Ref("matrices"), Ref("cols")))
        case Kind.ELEMENT:
            return Ref("numel")
    sizes = {Kind.MATRIX: "matrices", Kind.CHANNEL: "size0", Kind.LAST: "cols", Kind.LAST2: "rows"}
    return Ref({**sizes, Kind.LAST3: "size_3", Kind.LAST4: "size_4"}[kind])


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
        case Kind.ROW, Kind.CHANNEL:  # a process may have some of the channels
            return Call("/", (Call("/", (Ref("numel"), Ref("cols"))), Ref("size0")))
        case _ if over.is_array:
            return Call("/", (size_of(kind), size_of(over)))
    return size_of(kind)


def over_of(row: Reduction, keywords: Sequence[ast.keyword]) -> Kind | None:
    """Kind that a call reduces over, from its `over=...`; None if the reduction does not take that."""
    match list(keywords):
        case []:
            return WORDS[row.over[0]]
        case [ast.keyword(arg="over", value=ast.Name(id=name))] if len(row.over) > 1:
            return WORDS.get(name)
    return None


@dataclass(frozen=True)
class Refused:
    """Mistake in a reduction; `of_argument` if it is in what is reduced."""

    rule: str
    message: str
    help_text: str = ""
    of_argument: bool = False


def refused(row: Reduction, over: Kind, kind: Kind, at_once: bool, has_rank: Callable[[int], bool]) -> Refused | None:
    """Find what is wrong with a reduction, if anything is.

    Args:
        kind: Of what is reduced.
        at_once: Whether it is an initial value.
        has_rank: Checks that all parameters there have so many dimensions.
    """
    name, least = row.name, least_rank(over)
    if kind <= Kind.TENSOR or kind is over:
        return Refused("kind", f"`{name}` has nothing to reduce: this is one number per {unit_of(kind)}", "", True)
    if not takes(kind, over):
        message = f"`{name}` would give one number per {unit_of(over)}, but this is one per {unit_of(kind)}"
        help_text = f"no {unit_of(over)} has numbers of its own among these; reduce what is one per element"
        return Refused("kind", message, help_text, True)
    word = "all" if over is Kind.GLOBAL else "group"
    if over.is_host and at_once:
        return Refused("kind", "an initial value is computed for each parameter separately", f"leave `over={word}` out")
    if over.is_host and (kind is not Kind.ELEMENT or word not in row.over):
        *some, last = (f"`{other.name}`" for other in REDUCTIONS.values() if word in other.over)
        return Refused("kind", f"`over={word}` takes {', '.join(some)} or {last} of one number per element")
    if not has_rank(least):
        lacks, few = {2: ("rows and columns", "two")}.get(least, (f"{least} dimensions", f"{least}"))
        message = f"`{name}` needs {lacks}, which a parameter of fewer than {few} dimensions does not have"
        help_text = f"write `when: ndim >= {least}`" if at_once else f"put it below `if ndim >= {least}:`"
        return Refused("no-rows", message, help_text)
    return None


REDUCED: dict[ReduceOp, str] = {"sum": "sum", "squares": "squares", "max": "largest", "greatest": "greatest"}
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
        case "greatest":
            result = _reduced("greatest", over, kind, x, stem, bind)
        case "least":
            least = _reduced("greatest", over, kind, Call("neg", (x,)), f"minus_{stem}", bind)
            result = Call("-", (Const(0.0), least))
        case "deviations":
            count = count_of(kind, over)
            mean = Call("/", (_reduced("sum", over, kind, x, stem, bind), count))
            from_mean = bind(f"{stem}_from_mean", Call("-", (x, bind(f"{stem}_mean", mean))))
            squares = _reduced("squares", over, kind, from_mean, f"{stem}_from_mean", bind)
            result = Call("/", (squares, Call("-", (count, Const(1.0)))), f"{stem}_variance")
    if row.is_mean:
        of = "" if over is Kind.TENSOR else f"{over.name.lower()}_"
        named = f"{stem}_{of}{'mean_square' if row.of == 'squares' else 'mean'}"
        result = Call("/", (result, count_of(kind, over)), named)
    return Call("sqrt", (result,)) if row.is_root else result


def _reduced(op: ReduceOp, over: Kind, kind: Kind, x: Expr, stem: str, bind: Callable[[str, Expr], Expr]) -> Expr:
    """Elements reduce to one number per tensor before they reduce over several, to rows or columns before fewer
    numbers."""
    outer: ReduceOp = "sum" if op == "squares" else op
    if kind is not Kind.ELEMENT:
        return Reduce(outer, over, Call("*", (x, x)) if op == "squares" else x)
    if over.is_host:
        return Reduce(outer, over, bind(f"{stem}_{REDUCED[op]}", Reduce(op, Kind.TENSOR, x)))
    if over is Kind.LAST:
        return Reduce(outer, over, bind(f"{stem}_col_{REDUCED[op]}", Reduce(op, Kind.COL, x)))
    if over.is_array and over not in (Kind.ROW, Kind.COL):
        return Reduce(outer, over, bind(f"{stem}_row_{REDUCED[op]}", Reduce(op, Kind.ROW, x)))
    return Reduce(op, over, x)

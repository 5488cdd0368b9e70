"""Facts about the shape of a parameter that are not names of their own: `shape[0]`, `shape[-1]`, `fan_in`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping

from optgen.ir.nodes import Call, Expr, Ref
from optgen.ir.reductions import Refused
from optgen.spec.names import SIZES

NAMED: Mapping[str, Expr] = {"fan_in": Call("/", (Ref("numel"), Ref("size0")), "fan_in")}
"""Facts that follow from others; a value of a block may have such a name."""
OF_TEXT = ("shape", *NAMED)
"""Names that these facts are written with."""
KNOWN = f"`shape[i]` takes a number from {min(SIZES)} to {max(SIZES)}"


def fact(node: ast.expr, has_rank: Callable[[int], bool], at_once: bool) -> Expr | Refused:
    """The expression of a fact, or the mistake in it.

    Args:
        has_rank: Checks that all parameters there have so many dimensions.
        at_once: Whether it stands in an initial value.
    """
    match node:
        case ast.Name(id=name):
            return NAMED[name]
        case ast.Subscript(slice=ast.Constant(value=int(index))) if not isinstance(index, bool):
            pass
        case ast.Subscript(slice=ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(index)))):
            index = -index
        case _:
            return Refused("shape", "a dimension of `shape` is a whole number", KNOWN)
    if index not in SIZES:
        return Refused("shape", f"`shape` has no dimension {index} here", KNOWN)
    least = index + 1 if index >= 0 else -index
    if not has_rank(least):
        few = "one dimension" if least == 1 else f"{least} dimensions"
        way = f"write `when: ndim >= {least}`" if at_once else f"put it below `if ndim >= {least}:`"
        return Refused("no-rows", f"`shape[{index}]` does not exist for a parameter of fewer than {few}", way)
    return Ref(SIZES[index])

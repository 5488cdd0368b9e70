"""Expressions and formulas as Python, for the host and for torch.

Functions come from `optgen.runtime.torch_math`, imported as `m`; they take floats and tensors alike, and follow
IEEE 754 where Python's own floats would raise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from optgen.backends.quoting import Identifier, identifier
from optgen.ir.formula import Formula
from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Call, Const, Expr, Kind, Reduce, Ref, Select, refs

PRECEDENCE = {"==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4, "+": 6, "-": 6, "*": 7, "/": 7}
FUNCTION = {"min": "minimum", "max": "maximum", "and": "both", "or": "either", "not": "negate", "abs": "absolute"}
REDUCTION = {
    (Kind.TENSOR, "sum"): "total",
    (Kind.TENSOR, "squares"): "total_squares",
    (Kind.TENSOR, "max"): "largest",
    (Kind.ROW, "sum"): "row_total",
    (Kind.ROW, "squares"): "row_squares",
    (Kind.COL, "sum"): "col_total",
    (Kind.MATRIX, "sum"): "matrix_total",
}
UNARY, TERNARY = 8, 0
RESERVED = frozenset(("m", "f", "t", "o", "sums", "float", "results"))


def py_name(name: str) -> Identifier:
    """A name that is none of the generated functions' own."""
    return identifier(f"{name}_value" if name in RESERVED or name.endswith("_value") else name)


def py_formula(formula: Formula, flags: str = "f") -> str:
    """A formula over the flags."""
    if formula.is_true:
        return "True"
    if formula.is_false:
        return "False"
    return formula.text(lambda name, value: f"{'' if value else 'not '}{flags}.{name}", " and ", " or ")


def py_number(value: float) -> str:
    """A float64 as Python text that reads back as itself."""
    if math.isnan(value):
        return "m.NAN"
    if math.isinf(value):
        return "m.INF" if value > 0 else "-m.INF"
    return repr(value)


@dataclass(frozen=True)
class PyPrinter:
    """Prints expressions of a program.

    Attributes:
        kinds: Kinds of the names that may occur.
        flags: How the flags are reached, as in `f.amsgrad`.
        fewer: Names that may be fewer numbers than their kind says, as one number for all elements is: what reduces
            or rounds them spreads them first.
    """

    kinds: Mapping[str, Kind]
    flags: str = "f"
    names: Mapping[str, str] = field(default_factory=dict)
    fewer: Set[str] = frozenset()

    def print(self, expr: Expr) -> str:
        """The expression as Python."""
        return self._print(expr, TERNARY)

    def _print(self, expr: Expr, outer: int) -> str:
        match expr:
            case Const(value=bool(value)):
                return str(value)
            case Const(value=value):
                text = py_number(float(value))
                return f"({text})" if text.startswith("-") and outer > TERNARY else text
            case Ref(name=name):
                return self.names.get(name, py_name(name))
            case Select(formula=formula, then=then, other=other):
                text = f"{self._print(then, 1)} if {py_formula(formula, self.flags)} else {self._print(other, TERNARY)}"
                return f"({text})" if outer > TERNARY else text
            case Call(op="neg", args=(x,)):
                return self._wrap(f"-{self._print(x, UNARY)}", UNARY, outer)
            case Call(op="/" | "**" as op, args=(a, b)) if op == "**" or self._on_host(expr):
                return f"m.{'power' if op == '**' else 'divide'}({self.print(a)}, {self.print(b)})"
            case Call(op=op, args=(a, b)) if op in PRECEDENCE:
                level = PRECEDENCE[op]
                text = f"{self._print(a, level)} {op} {self._print(b, level + 1)}"
                return self._wrap(text, level, outer)
            case Call(op="rounded", args=(x,)):
                return f"t.rounded({self._spread(x)})"
            case Call(op=op, args=args):
                return f"m.{FUNCTION.get(op, op)}({', '.join(self.print(arg) for arg in args)})"
            case Reduce(op=op, over=over, x=x):
                return f"m.{REDUCTION[over, op]}({self._spread(x)})"

    def _spread(self, x: Expr) -> str:
        if any(name in self.fewer for name in refs(x)):
            return f't.spread({self.print(x)}, "{kind_of(x, self.kinds).name.lower()}")'
        return self.print(x)

    def _on_host(self, expr: Expr) -> bool:
        return kind_of(expr, self.kinds) <= Kind.STEP

    def _wrap(self, text: str, level: int, outer: int) -> str:
        return f"({text})" if level < outer else text

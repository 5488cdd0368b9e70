"""Expressions and formulas as Python, for the host and for torch.

Functions come from `optgen.runtime.torch_math`, imported as `m`; they take floats and tensors alike, and follow
IEEE 754 where Python's own floats would raise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from optgen.backends.base import UnloweredNodeError
from optgen.backends.code import Chain, Code, Labelled, Operand, call, chained, flat, formula_code, prefixed
from optgen.backends.layout import python_code
from optgen.backends.quoting import Identifier, identifier
from optgen.ir.formula import Formula
from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Call, Const, Expr, Kind, MatrixCall, Reduce, Ref, Select, refs
from optgen.operations import OPERATIONS, Binds, Infix, Named, Prefix
from optgen.spec.names import STAGES

REDUCTION = {
    (Kind.TENSOR, "sum"): "total",
    (Kind.TENSOR, "squares"): "total_squares",
    (Kind.TENSOR, "max"): "largest",
    (Kind.TENSOR, "greatest"): "greatest",
    (Kind.ROW, "sum"): "row_total",
    (Kind.ROW, "squares"): "row_squares",
    (Kind.ROW, "max"): "row_largest",
    (Kind.ROW, "greatest"): "row_greatest",
    (Kind.COL, "sum"): "col_total",
    (Kind.COL, "squares"): "col_squares",
    (Kind.COL, "max"): "col_largest",
    (Kind.COL, "greatest"): "col_greatest",
}
OF_DIMENSION = {"sum": "total_of", "max": "largest_of", "greatest": "greatest_of"}
RESERVED = frozenset(("m", "f", "t", "o", "v", "s", "sums", "float", "results", "left"))
STARTS = tuple(f"{stage}_stage" for stage in STAGES)


def py_name(name: str) -> Identifier:
    """A name that is none of the generated functions' own."""
    own = name in RESERVED or name.startswith(STARTS) or name.endswith("_value")
    return identifier(f"{name}_value" if own else name)


def py_condition(formula: Formula, flags: str = "f") -> Code:
    """A formula over the flags, as code that knows where its lines may end."""
    if formula.is_true or formula.is_false:
        return "True" if formula.is_true else "False"
    return formula_code(formula, lambda name, value: f"{'' if value else 'not '}{flags}.{name}", "and", "or").code


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
        flags: Prefix of the flags, as in `f.amsgrad`.
        fewer: Names that may be fewer numbers than their kind says, as one number for all elements is: what reduces
            or rounds them spreads them first.
    """

    kinds: Mapping[str, Kind]
    flags: str = "f"
    names: Mapping[str, str] = field(default_factory=dict)
    fewer: Set[str] = frozenset()

    def print(self, expr: Expr) -> str:
        """The expression as Python, in one line."""
        return flat(self.code(expr))

    def lines(self, expr: Expr, prefix: str = "", indent: int = 0) -> list[str]:
        """A statement as lines that fit when they are indented by `indent`, as `x = ` before it."""
        return python_code(Labelled(prefix, self.code(expr)), indent)

    def code(self, expr: Expr) -> Code:
        """The expression as Python that knows where its lines may end."""
        return self.operand(expr).code

    def operand(self, expr: Expr) -> Operand:
        """The expression as Python, to be an operand of another."""
        match expr:
            case Const(value=bool(value)):
                return Operand(str(value))
            case Const(value=value):
                text = py_number(float(value))
                return Operand(text, Binds.CHOICE if text.startswith("-") else Binds.ATOM)
            case Ref(name=name):
                return Operand(self.names[name] if name in self.names else py_name(name))
            case Select(formula=formula, then=then, other=other):
                condition = py_condition(formula, self.flags)
                chosen = Operand(Chain(self.operand(then).within(Binds.OR), (("if", condition),)), Binds.CHOICE)
                return chained(Binds.CHOICE, chosen, "else", self.operand(other), (Binds.CHOICE, Binds.CHOICE))
            case Call(op="/", args=(a, b)) if kind_of(expr, self.kinds) <= Kind.STEP:  # on the host
                return Operand(call("m.divide", self.code(a), self.code(b)))
            case Call(op="rounded", args=(x,)):
                return Operand(call("t.rounded", self.spread(x)))
            case Call():
                return self._operation(expr)
            case MatrixCall(op=op, x=x, settings=settings):
                return Operand(call(f"m.{op}", self.spread(x), *map(self.code, settings)))
            case Reduce(op=op, over=over, x=x):
                if (over, op) not in REDUCTION:
                    return Operand(call(f"m.{OF_DIMENSION[op]}", self.spread(x), f'"{over.name.lower()}"'))
                return Operand(call(f"m.{REDUCTION[over, op]}", self.spread(x)))

    def _operation(self, expr: Call) -> Operand:
        match OPERATIONS[expr.op].python, expr.args:
            case Infix(symbol, binds, wants=wants), (a, b):
                return chained(binds, self.operand(a), symbol, self.operand(b), wants)
            case Prefix(symbol, binds, wants), (x,):
                return Operand(prefixed(symbol, self.operand(x).within(wants)), binds)
            case Named(name), args:
                return Operand(call(name, *map(self.code, args)))
        raise UnloweredNodeError(f"`{expr.op}` is not written with {len(expr.args)} operands")

    def spread(self, x: Expr) -> Code:
        """A value that is reduced or rounded, with as many numbers as its kind says."""
        kind = kind_of(x, self.kinds)
        if any(name in self.fewer for name in refs(x)) or kind not in whole_kinds(x, self.fewer, self.kinds):
            return call("t.spread", self.code(x), f'"{kind.name.lower()}"')
        return self.code(x)


def whole_kinds(expr: Expr, fewer: Set[str], kinds: Mapping[str, Kind]) -> Set[Kind]:
    """The kinds of which an expression surely has all numbers: an operand has them, or one has rows and one columns."""
    match expr:
        case Ref(name=name):
            return frozenset() if name in fewer else {kinds[name]}
        case Reduce(over=over) | MatrixCall(over=over):
            return {over}
        case Select(then=then, other=other):
            return whole_kinds(then, fewer, kinds) & whole_kinds(other, fewer, kinds)
        case Call(op="where", args=(condition, then, other)) if kind_of(condition, kinds) <= Kind.STEP:
            return whole_kinds(then, fewer, kinds) & whole_kinds(other, fewer, kinds)
        case Call(args=args):
            found = frozenset().union(*(whole_kinds(arg, fewer, kinds) for arg in args))
            return found | {Kind.ELEMENT} if {Kind.ROW, Kind.COL} <= found else found
    return frozenset()

"""Programs as text, in the words of the equation language: for `optgen explain`, and for reading while debugging."""

from __future__ import annotations

from optgen.ir.formula import Formula
from optgen.ir.nodes import Call, Const, Expr, Kind, Program, Reduce, Ref, Select

PRECEDENCE = {"or": 1, "and": 2, "==": 4, "!=": 4, "<": 4, "<=": 4, ">": 4, ">=": 4, "+": 6, "-": 6, "*": 7, "/": 7}
UNARY, POWER, LOWEST = 8, 9, 0


def dump(program: Program) -> str:
    """A program, a line for each binding with its kind, then what it writes."""
    lines = [f"{let.name} [{let.kind.name.lower()}] = {text(let.expr)}" for let in program.lets]
    lines += [f"{name} := {text(value)}" for name, value in program.outputs.items()]
    return "\n".join(lines)


def text(expr: Expr) -> str:
    """An expression; a choice that is fixed before the step reads `a if amsgrad else b`."""
    return _text(expr, LOWEST)


def condition(formula: Formula) -> str:
    """A formula over guards."""
    if formula.is_true or formula.is_false:
        return str(formula.is_true)
    terms = [" and ".join(n if value else f"not {n}" for n, value in term) for term in formula.ordered()]
    return " or ".join(f"({term})" if len(terms) > 1 and " and " in term else term for term in terms)


def _text(expr: Expr, outer: int) -> str:
    match expr:
        case Const(value=bool(value)):
            return str(value)
        case Const(value=value):
            return f"{value:.9g}"
        case Ref(name=name):
            return name
        case Select(formula=formula, then=then, other=other):
            return _wrapped(f"{_text(then, 1)} if {condition(formula)} else {_text(other, LOWEST)}", 1, outer)
        case Reduce(op=op, over=over, x=x):
            name = {"sum": "sum", "squares": "sum_of_squares", "max": "max"}[op]
            if over in (Kind.ROW, Kind.COL):
                return f"{over.name.lower()}_{name}({text(x)})"
            place = {Kind.TENSOR: "", Kind.MATRIX: ", over=matrix", Kind.GLOBAL: ", over=all"}[over]
            return f"{name}({text(x)}{place})"
        case Call(op="neg", args=(x,)):
            return _wrapped(f"-{_text(x, UNARY)}", UNARY, outer)
        case Call(op="not", args=(x,)):
            return _wrapped(f"not {_text(x, 3)}", 3, outer)
        case Call(op="**", args=(x, y)):
            return _wrapped(f"{_text(x, POWER + 1)}**{_text(y, UNARY)}", POWER, outer)
        case Call(op=op, args=(a, b)) if op in PRECEDENCE:
            level = PRECEDENCE[op]
            return _wrapped(f"{_text(a, level)} {op} {_text(b, level + 1)}", level, outer)
        case Call(op=op, args=args):
            return f"{op}({', '.join(text(arg) for arg in args)})"


def _wrapped(words: str, level: int, outer: int) -> str:
    return f"({words})" if level < outer else words

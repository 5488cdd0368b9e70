"""Programs as text, in the words of the equation language: for `optgen explain`, and for reading while debugging."""

from __future__ import annotations

from optgen.ir.formula import Formula
from optgen.ir.nodes import Call, Const, Expr, Kind, MatrixCall, Program, Reduce, Ref, Select
from optgen.operations import OPERATIONS, Binds, Infix, Prefix
from optgen.spec.names import SIZES

SIZE_TEXTS = {name: f"shape[{dim}]" for dim, name in SIZES.items() if name.startswith("size")}


def dump(program: Program) -> str:
    """A program, a line for each binding with its kind, then what it writes."""
    lines = [f"{let.name} [{let.kind.name.lower()}] = {text(let.expr)}" for let in program.lets]
    lines += [f"{name} := {text(value)}" for name, value in program.outputs.items()]
    return "\n".join(lines)


def text(expr: Expr) -> str:
    """An expression; a choice that is fixed before the step reads `a if amsgrad else b`."""
    return _text(expr, Binds.CHOICE)


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
            return SIZE_TEXTS.get(name, name)
        case Select(formula=formula, then=then, other=other):
            chosen = f"{_text(then, Binds.OR)} if {condition(formula)} else {_text(other, Binds.CHOICE)}"
            return _wrapped(chosen, Binds.CHOICE, outer)
        case Reduce(op=op, over=over, x=x):
            name = {"sum": "sum", "squares": "sum_of_squares", "max": "max", "greatest": "max"}[op]
            if over in (Kind.ROW, Kind.COL):
                return f"{over.name.lower()}_{name}({text(x)})"
            place = {Kind.TENSOR: "", Kind.GLOBAL: ", over=all"}.get(over, f", over={over.name.lower()}")
            return f"{name}({text(x)}{place})"
        case MatrixCall(op=op, x=x, settings=settings):
            return f"{op}({', '.join(text(arg) for arg in (x, *settings))})"
        case Call(op=op, args=args):
            match OPERATIONS[op].written, args:
                case Prefix(symbol, binds, wants), (x,):
                    return _wrapped(f"{symbol}{_text(x, wants)}", binds, outer)
                case Infix(symbol, binds, wants=(left, right)), (a, b):
                    symbol = symbol if binds is Binds.POWER else f" {symbol} "
                    return _wrapped(f"{_text(a, left)}{symbol}{_text(b, right)}", binds, outer)
            return f"{op}({', '.join(text(arg) for arg in args)})"


def _wrapped(words: str, level: int, outer: int) -> str:
    return f"({words})" if level < outer else words

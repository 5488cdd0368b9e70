"""Kind inference: how many numbers an expression is."""

from __future__ import annotations

from collections.abc import Mapping

from optgen.ir.nodes import Call, Const, Expr, Input, Kind, Let, MatrixCall, Program, Reduce, Ref, Select, join
from optgen.operations import OPERATIONS


def kind_of(expr: Expr, kinds: Mapping[str, Kind]) -> Kind:
    """The kind of an expression, given the kinds of the names that it reads."""
    match expr:
        case Const():
            return Kind.CONST
        case Ref(name=name):
            return kinds[name]
        case Call(args=args):
            result = Kind.CONST
            for arg in args:
                result = join(result, kind_of(arg, kinds))
            return result
        case Select(then=then, other=other, kind=kind):
            return join(join(kind_of(then, kinds), kind_of(other, kinds)), kind)
        case Reduce(over=over):
            return over
        case MatrixCall():
            return Kind.ELEMENT


def is_boolean(expr: Expr, lets: Mapping[str, Let]) -> bool:
    """Check whether an expression is a truth value."""
    match expr:
        case Const(value=value):
            return isinstance(value, bool)
        case Ref(name=name):
            return name in lets and is_boolean(lets[name].expr, lets)
        case Call(op=op, args=args):
            gives = OPERATIONS[op].gives
            return gives == "condition" or (gives == "value" and is_boolean(args[-1], lets))
        case Select(then=then):
            return is_boolean(then, lets)
        case Reduce() | MatrixCall():
            return False


def window_name(expr: Expr, inputs: Mapping[str, Input], lets: Mapping[str, Let]) -> str | None:
    """The state whose past values an expression is, if it is a window."""
    match expr:
        case Ref(name=name) if name in inputs:
            return name if inputs[name].window is not None else None
        case Ref(name=name):
            return window_name(lets[name].expr, inputs, lets)
        case Call(op="push", args=(window, _, _)) | Select(then=window):
            return window_name(window, inputs, lets)
    return None


def is_pushed(window: Expr, lets: Mapping[str, Let]) -> bool:
    """Check whether a window has its value of this step, under some settings at least."""
    match window:
        case Ref(name=name):
            return name in lets and is_pushed(lets[name].expr, lets)
        case Select(then=then, other=other):
            return is_pushed(then, lets) or is_pushed(other, lets)
    return isinstance(window, Call)


def boolean_names(program: Program) -> set[str]:
    """The bindings of a program that are truth values."""
    lets = {let.name: let for let in program.lets}
    return {name for name, let in lets.items() if is_boolean(let.expr, lets)}


def unit_of(kind: Kind) -> str:
    """Name what has one number of this kind: "optimizer", "tensor", "row" ..."""
    return {
        Kind.CONST: "optimizer",
        Kind.GLOBAL: "optimizer",
        Kind.GROUP: "param group",
        Kind.STEP: "parameter and step",
        Kind.TENSOR: "tensor",
        Kind.COL: "column",
        Kind.LAST: "index of the last dimension",
        Kind.LAST2: "index of the last dimension but one",
        Kind.LAST3: "index of the third dimension from the end",
        Kind.LAST4: "index of the fourth dimension from the end",
    }.get(kind, kind.name.lower())

"""A tiny interpreter of the IR over numpy float64: what a program means, whatever passes do to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optgen.ir.nodes import Call, Const, Expr, Kind, MatrixCall, Program, Reduce, Ref, Select

FUNCTIONS: dict[str, Any] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "%": np.mod, "**": np.power, "neg": np.negative,
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal, "!=": np.not_equal,
    "and": np.logical_and, "or": np.logical_or, "not": np.logical_not, "where": np.where, "min": np.minimum,
    "max": np.maximum, "sqrt": np.sqrt, "abs": np.abs, "sign": np.sign, "floor": np.floor, "tanh": np.tanh,
    "exp": np.exp, "log": np.log, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "softplus": lambda x: np.logaddexp(x, 0.0),
    "clamp": lambda x, low, high: np.minimum(np.maximum(x, low), high), "isfinite": np.isfinite,
    "rounded": lambda x: np.asarray(x, dtype=np.float32).astype(np.float64),
    "scale_of": lambda x: np.where(x >= 2.0**-126, x, 0.0),
    "push": lambda *parts: np.nan, "percentile": lambda *parts: np.nan,
}  # fmt: skip


def evaluate(expr: Expr, values: Mapping[str, Any], guards: Mapping[str, bool]) -> Any:
    """The value of an expression."""
    match expr:
        case Const(value=value):
            return value
        case Ref(name=name):
            return values[name]
        case Select(formula=formula, then=then, other=other):
            return evaluate(then if formula.holds(guards) else other, values, guards)
        case Call(op="rsqrt", args=(x,)):
            return 1 / np.sqrt(evaluate(x, values, guards))
        case Call(op=op, args=args):
            return FUNCTIONS[op](*(evaluate(arg, values, guards) for arg in args))
        case MatrixCall(x=x, settings=settings):  # whatever it is: a number for each element, of all of them
            taken = [evaluate(part, values, guards) for part in (x, *settings)]
            return np.tanh(taken[0]) + sum(np.sum(part) for part in taken)
        case Reduce(op=op, over=over, x=x):
            value = np.asarray(evaluate(x, values, guards), dtype=np.float64)
            axis = {Kind.ROW: -1, Kind.COL: -2}.get(over)
            how = {
                "sum": np.sum,
                "max": np.max,
                "greatest": np.max,
                "squares": lambda x, **over: np.sum(x * x, **over),
            }[op]
            return how(value) if axis is None else how(value, axis=axis, keepdims=True)


def run(program: Program, inputs: Mapping[str, Any], guards: Mapping[str, bool]) -> dict[str, Any]:
    """Results of a program. Values that these guards do not need may be anything."""
    values = dict(inputs)
    with np.errstate(all="ignore"):
        for let in program.lets:
            try:
                values[let.name] = evaluate(let.expr, values, guards)
            except KeyError as missing:
                if missing.args[0] not in {other.name for other in program.lets} | set(inputs):
                    raise
        return {
            name: evaluate(value, values, guards)
            for name, value in program.outputs.items()
            if program.writes[name].holds(guards)
        }

"""The equation language over balls: what a node of Python's `ast` is worth.

Numbers have a kind, from one for all parameters to one for each element. Elements, rows, columns and matrices are
float32: each operation is charged ULP of its result, and a number of a lower kind that joins them is rounded to float32
first (a factor or divisor is not: its rounding is one of the two that the operation is charged). All else is float64
and charged HOST. Functions of float32 are charged what the libraries document: exp and tanh 2 units in the last place,
sigmoid and softplus 3, log 1, powers 4.

A comparison of balls that overlap is unsure, and `where` then holds both branches. Comparisons, `sign` and `floor` see
the float32 value of a number of a lower kind, like everything else.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

from oracles import ball as balls
from oracles import orthogonal
from oracles.ball import HOST, HOST_TINY, TINY, ULP, Ball, rounded
from oracles.storage import store, to_dtype

Bools = npt.NDArray[np.bool_]


class Kind(IntEnum):
    """Number of values: from one for all parameters to one for each element."""

    CONST = 0
    GLOBAL = 1
    GROUP = 2
    STEP = 3
    TENSOR = 4
    CHANNEL = 5
    LAST = 6
    LAST2 = 7
    LAST3 = 8
    LAST4 = 9
    MATRIX = 10
    ROW = 11
    COL = 12
    ELEMENT = 13

    @property
    def is_single(self) -> bool:
        """True if it is computed in float32."""
        return self > Kind.TENSOR


KINDS = {
    "param": Kind.ELEMENT,
    "row": Kind.ROW,
    "col": Kind.COL,
    "matrix": Kind.MATRIX,
    "channel": Kind.CHANNEL,
    "last": Kind.LAST,
    "last2": Kind.LAST2,
    "last3": Kind.LAST3,
    "last4": Kind.LAST4,
    "tensor": Kind.TENSOR,
    "group": Kind.GROUP,
    "global": Kind.GLOBAL,
}


ALL = frozenset({"first", "between", "-4", "-3", "-2", "-1"})
DIMENSIONS = {
    Kind.CHANNEL: frozenset({"first"}),
    Kind.LAST: frozenset({"-1"}),
    Kind.LAST2: frozenset({"-2"}),
    Kind.LAST3: frozenset({"-3"}),
    Kind.LAST4: frozenset({"-4"}),
    Kind.MATRIX: frozenset({"between", "-4", "-3"}),
    Kind.ROW: ALL - {"-1"},
    Kind.COL: ALL - {"-2", "first"},
    Kind.ELEMENT: ALL,
}
"""Dimensions of a tensor of any rank: the first may be any of those that are counted from the end."""


def dims_of(kind: Kind, rank: int) -> tuple[int, ...]:
    """Numbers of the dimensions that a kind has in a tensor of this rank."""
    names = DIMENSIONS.get(kind, frozenset[str]())
    found = [str(dim - rank) in names or (dim < rank - 4 and "between" in names) for dim in range(rank)]
    if kind is Kind.CHANNEL and rank:
        found[0] = True
    return tuple(dim for dim in range(rank) if found[dim])


def join(*kinds: Kind) -> Kind:
    """The kind of an operation: the smallest that has the dimensions of all."""
    highest = max(kinds)
    wanted = frozenset[str]().union(*(DIMENSIONS.get(kind, frozenset()) for kind in kinds))
    if not wanted:
        return highest
    return next(kind for kind in sorted(DIMENSIONS) if DIMENSIONS[kind] >= wanted)


@dataclass(frozen=True)
class Number:
    """Numbers of a kind: in the rank of the tensor, of size 1 in the dimensions that the kind does not have."""

    ball: Ball
    kind: Kind


@dataclass(frozen=True)
class Truth:
    """Truth of something by element, and where that is not certain."""

    holds: Bools
    unsure: Bools
    kind: Kind


@dataclass(frozen=True)
class Window:
    """Past values of a tensor."""

    ball: Ball
    kind: Kind = Kind.TENSOR


Value = Number | Truth | Window


def kind_of(node: ast.AST, kinds: Mapping[str, Kind]) -> Kind:
    """The kind of an expression, given those of the names that it reads."""
    match node:
        case ast.Subscript():
            return Kind.STEP
        case ast.Name(id=name):
            return kinds[name]
        case ast.Call(func=ast.Name(id="percentile" | "push")):
            return Kind.TENSOR
        case ast.Call(func=ast.Name(id="row_sum" | "row_mean")):
            return Kind.ROW
        case ast.Call(func=ast.Name(id="col_sum" | "col_mean")):
            return Kind.COL
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if _reduces(name, args):
            return OVER[keywords[0].value.id if keywords else "tensor"]  # type: ignore[attr-defined]
        case ast.Call(args=args):
            return join(Kind.CONST, *(kind_of(arg, kinds) for arg in args))
        case ast.expr():
            operands = (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
            return join(Kind.CONST, *(kind_of(operand, kinds) for operand in operands))
    raise ValueError(f"no expression: {ast.unparse(node)}")


OVER = {**KINDS, "all": Kind.GLOBAL}
"""Kinds by the words of `over=`."""


def _reduces(name: str, args: Sequence[ast.expr]) -> bool:
    return name in ("sum", "mean", "norm", "rms", "absmax", "var", "std") or (name in ("min", "max") and len(args) == 1)


def const(value: float, kind: Kind = Kind.CONST) -> Number:
    return Number(Ball(float(value)), kind)


def single(x: Number, kind: Kind) -> Ball:
    """A number as an operation of a kind reads it: rounded to float32 where that is a float32 one."""
    if not kind.is_single or x.kind.is_single:
        return x.ball
    if (x.ball.rad == 0).all() and (to_dtype(x.ball.mid, torch.float32) == x.ball.mid).all():
        return x.ball
    return rounded(x.ball, ULP / 2)


def finish(exact: Ball, kind: Kind, units: float = 1) -> Number:
    """The result of an operation of a kind, with `units` in the last place where it is float32."""
    if kind.is_single:
        return Number(rounded(exact, units * ULP, TINY), kind)
    return Number(rounded(exact, HOST, HOST_TINY), kind)


def _add(a: Number, b: Number, kind: Kind) -> Number:
    return finish(balls.added(single(a, kind), single(b, kind)), kind)


def _subtract(a: Number, b: Number, kind: Kind) -> Number:
    return finish(balls.added(single(a, kind), -single(b, kind)), kind)


def _multiply(a: Number, b: Number, kind: Kind) -> Number:
    return finish(balls.multiplied(a.ball, b.ball), kind)


def _divide(a: Number, b: Number, kind: Kind) -> Number:
    return finish(balls.divided(a.ball, b.ball), kind)


def _power(a: Number, b: Number, kind: Kind) -> Number:
    return finish(balls.power(single(a, kind), single(b, kind)), kind, 4)


def _remainder(a: Number, b: Number, kind: Kind) -> Number:
    return finish(balls.remainder(single(a, kind), single(b, kind)), kind)


BINARY: dict[type[ast.operator], Callable[[Number, Number, Kind], Number]] = {
    ast.Add: _add,
    ast.Sub: _subtract,
    ast.Mult: _multiply,
    ast.Div: _divide,
    ast.Mod: _remainder,
    ast.Pow: _power,
}
UNARY: dict[str, tuple[Callable[[Ball], Ball], float]] = {
    "exp": (lambda x: balls.monotone(np.exp, x), 2),
    "log": (lambda x: _log(x), 1),
    "tanh": (lambda x: balls.monotone(np.tanh, x), 2),
    "sigmoid": (lambda x: balls.monotone(_sigmoid, x), 3),
    "softplus": (lambda x: balls.monotone(lambda x: np.logaddexp(x, 0.0), x), 3),
    "sqrt": (balls.root, 1),
    "rsqrt": (lambda x: balls.divided(Ball(1.0), balls.root(x)), 2),
}
EXACT: dict[str, Callable[[Ball], Ball]] = {
    "abs": abs,
    "sign": balls.sign,
    "floor": lambda x: balls.monotone(np.floor, x),
}


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


def _log(x: Ball) -> Ball:
    if (x.low <= 0).any() and (x.rad > 0).any():
        safe = balls.monotone(np.log, Ball(x.mid, np.where(x.low > 0, x.rad, 0)))
        unknown = (x.low <= 0) & (x.rad > 0)
        return Ball(np.where(unknown & ~np.isfinite(safe.mid), 0, safe.mid), np.where(unknown, np.inf, safe.rad))
    return balls.monotone(np.log, x)


def _compare(op: ast.cmpop, a: Number, b: Number) -> Truth:
    kind = join(a.kind, b.kind)
    x, y = single(a, kind), single(b, kind)
    match op:
        case ast.Lt():
            holds = x.mid < y.mid
        case ast.LtE():
            holds = x.mid <= y.mid
        case ast.Gt():
            holds = x.mid > y.mid
        case ast.GtE():
            holds = x.mid >= y.mid
        case ast.Eq():
            holds = x.mid == y.mid
        case _:
            holds = x.mid != y.mid
    room = x.rad + y.rad
    with np.errstate(invalid="ignore"):
        unsure = (np.abs(x.mid - y.mid) <= room) & (room > 0)
    return Truth(np.asarray(holds), np.asarray(unsure), kind)


def both(a: Truth, b: Truth) -> Truth:
    false = (~a.holds & ~a.unsure) | (~b.holds & ~b.unsure)
    return Truth(a.holds & b.holds, (a.unsure | b.unsure) & ~false, join(a.kind, b.kind))


def negate(a: Truth) -> Truth:
    return Truth(~a.holds, a.unsure, a.kind)


def either(a: Truth, b: Truth) -> Truth:
    return negate(both(negate(a), negate(b)))


def choose(condition: Truth, a: Value, b: Value) -> Value:
    """a where the condition holds, else b; both where that is unsure."""
    if isinstance(a, Truth) and isinstance(b, Truth):
        return either(both(condition, a), both(negate(condition), b))
    if isinstance(a, Number) and isinstance(b, Number):
        kind = join(condition.kind, a.kind, b.kind)
        return Number(balls.where(condition.holds, single(a, kind), single(b, kind), condition.unsure), kind)
    raise TypeError("`where` of different types")


def push(window: Window, value: Number, step: int) -> Window:
    """The window with a value in place of the oldest; one that is not finite is left out, the first fills all."""
    entry = value.ball
    if not np.isfinite(entry.mid):
        return window
    slots = np.arange(window.ball.mid.size)
    here = slots == step % slots.size if np.isfinite(window.ball.mid[0]) else slots >= 0
    return Window(store(balls.where(here, entry, window.ball), torch.float32))


def percentile(window: Window, q: Number) -> Number:
    """The value at q percent of the sorted window."""
    size = window.ball.mid.size
    index = min(max(math.floor(float(q.ball.mid) * size / 100), 0), size - 1)
    return Number(balls.ordered(window.ball, index), Kind.TENSOR)


def axes(kind: Kind, over: Kind, rank: int) -> tuple[int, ...] | None:
    """The axes of a reduction; None for all."""
    return tuple(dim for dim in range(rank) if dim not in dims_of(over, rank)) if over.is_single else None


def widened(x: Number, shape: tuple[int, ...]) -> Number:
    """A number that stands for several of its kind, as all of them."""
    if not x.kind.is_single or not shape:
        return x
    whole = [size if dim in dims_of(x.kind, len(shape)) else 1 for dim, size in enumerate(shape)]
    return Number(Ball(np.broadcast_to(x.ball.mid, whole), np.broadcast_to(x.ball.rad, whole)), x.kind)


Everywhere = Callable[[ast.Call, str, Ball], Ball]


def reduce(x: Number, name: str, over: Kind) -> Number:
    """A reduction to a kind of its own: float64 sums, of float32 squares where it is a norm."""
    axis, kept = axes(x.kind, over, x.ball.mid.ndim), over.is_single
    terms = x.ball
    if name == "absmax":
        return Number(balls.maximum(balls.greatest(abs(terms), axis), Ball(0.0)), over)
    if name == "max":
        return Number(balls.greatest(terms, axis), over)
    if name == "min":
        return Number(-balls.greatest(-terms, axis), over)
    count = float(terms.mid.size if axis is None else np.prod([terms.shape[i] for i in np.atleast_1d(axis)]))
    if name in ("var", "std"):
        mean = _divide(finish(balls.total(terms, axis, keepdims=kept), over), const(count), over)
        terms = _subtract(x, mean, x.kind).ball
        count -= 1
    if name in ("norm", "rms", "var", "std"):
        terms = rounded(balls.multiplied(terms, terms))
    found = finish(balls.total(terms, axis, keepdims=kept), over)
    if name in ("mean", "rms", "var", "std"):
        found = _divide(found, const(count), over)
    return finish(balls.root(found.ball), over) if name in ("norm", "rms", "std") else found


def matrices(name: str, x: Number, *settings: Number) -> Number:
    """A function of matrices, of each matrix of the last two dimensions; NaN where one is not finite."""
    shape, numbers = x.ball.shape, [float(setting.ball.mid) for setting in settings]
    results = []
    for mid, rad in zip(*(part.reshape(-1, *shape[-2:]) for part in (x.ball.mid, x.ball.rad)), strict=True):
        if np.isfinite(mid).all() and np.isfinite(rad).all():
            found = orthogonal.FUNCTIONS[name](mid, rad, *numbers)
            results.append(Ball(found.value, found.errors))
        else:
            unknown = np.isinf(rad).any()
            results.append(
                Ball(np.full_like(mid, 0 if unknown else np.nan), np.full_like(mid, np.inf if unknown else 0))
            )
    mids, rads = ([getattr(each, part) for each in results] for part in ("mid", "rad"))
    return Number(Ball(np.reshape(mids, shape), np.reshape(rads, shape)), x.kind)


class Evaluator:
    """Values of expressions, given those of names."""

    def __init__(
        self,
        names: Mapping[str, Value],
        step: int,
        everywhere: Everywhere,
        dtype: torch.dtype | None = None,
        functions: Mapping[str, Callable[[ast.Call], Sequence[Value]]] | None = None,
    ) -> None:
        self.names, self.step, self.everywhere, self.dtype = names, step, everywhere, dtype
        self.functions = functions or {}

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Subscript():
                return self.names[ast.unparse(node)]
            case ast.Constant(value=bool(value)):
                return Truth(np.array(value), np.array(False), Kind.CONST)
            case ast.Constant(value=int() | float() as value):
                return const(value)
            case ast.Name(id=name):
                return self.names[name]
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self.number(left), self.number(right)
                return BINARY[type(op)](a, b, join(a.kind, b.kind))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self.number(operand)
                return Number(-inner.ball, inner.kind)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.number(operand)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return negate(self.truth(operand))
            case ast.BoolOp(op=op, values=values):
                parts = [self.truth(value) for value in values]
                result = parts[0]
                for part in parts[1:]:
                    result = both(result, part) if isinstance(op, ast.And) else either(result, part)
                return result
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _compare(op, self.number(left), self.number(right))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
                return self._call(node, name, args, keywords)
        raise ValueError(f"not in the language: {ast.unparse(node)}")

    def number(self, node: ast.expr) -> Number:
        value = self.value(node)
        assert isinstance(value, Number), f"no number: {ast.unparse(node)}"
        return value

    def truth(self, node: ast.expr) -> Truth:
        value = self.value(node)
        assert isinstance(value, Truth), f"no condition: {ast.unparse(node)}"
        return value

    def _window(self, node: ast.expr) -> Window:
        value = self.value(node)
        assert isinstance(value, Window), f"no window: {ast.unparse(node)}"
        return value

    def _call(self, node: ast.Call, name: str, args: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> Value:
        if name in self.functions:
            (value,) = self.functions[name](node)
            return value
        match name:
            case "where":
                return choose(self.truth(args[0]), self.value(args[1]), self.value(args[2]))
            case "push":
                return push(self._window(args[0]), self.number(args[1]), self.step)
            case "percentile":
                return percentile(self._window(args[0]), self.number(args[1]))
            case "rounded":
                x = self.number(args[0])
                return x if self.dtype is None else Number(store(single(x, Kind.ELEMENT), self.dtype), x.kind)
            case "isfinite":
                x = self.number(args[0])
                return Truth(np.isfinite(x.ball.mid), np.isinf(x.ball.rad), x.kind)
            case "min" | "max" if len(args) > 1:
                return self._extreme(name, [self.number(arg) for arg in args])
            case "clamp":
                x, low, high = (self.number(arg) for arg in args)
                return self._extreme("min", [self._extreme("max", [x, low]), high])
            case name if name in orthogonal.FUNCTIONS:
                return matrices(name, *(self.number(arg) for arg in args))
        x = self.number(args[0])
        if name in UNARY:
            function, units = UNARY[name]
            return finish(function(x.ball), x.kind, units)
        if name in EXACT:
            return Number(EXACT[name](x.ball), x.kind)
        if name.startswith(("row_", "col_")):
            return reduce(x, name[4:], Kind.ROW if name.startswith("row_") else Kind.COL)
        over = keywords[0].value.id if keywords else "tensor"  # type: ignore[attr-defined]
        param = self.names.get("param")
        x = widened(x, param.ball.shape) if isinstance(param, Number) else x
        if over in ("all", "group"):  # there is one group
            return self._everywhere(node, name, x, OVER[over])
        return reduce(x, name, OVER[over])

    def _extreme(self, name: str, numbers: Sequence[Number]) -> Number:
        kind = join(*(number.kind for number in numbers))
        function = balls.minimum if name == "min" else balls.maximum
        result = single(numbers[0], kind)
        for number in numbers[1:]:
            result = function(result, single(number, kind))
        return Number(result, kind)

    def _everywhere(self, node: ast.Call, name: str, x: Number, kind: Kind) -> Number:
        """A reduction over all parameters of the step: each gives its part."""
        if name == "absmax":
            return Number(self.everywhere(node, "max", balls.largest(abs(x.ball))), kind)
        terms = rounded(balls.multiplied(x.ball, x.ball)) if name == "norm" else x.ball
        found = Number(self.everywhere(node, "sum", balls.total(terms)), kind)
        return finish(balls.root(found.ball), kind) if name == "norm" else found

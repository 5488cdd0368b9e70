"""The typed IR: frozen dataclasses, walked with `match`.

A program is a list of `Let` bindings in static single assignment form. Every value has a kind, which says how many
numbers it is; see `Kind`. What is fixed before a kernel is compiled (options, presence of optional hyperparameters,
rank of the parameter, codec of a state) is a `Select` over a `Formula` of named guards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Literal

from optgen.diagnostics import Location
from optgen.ir.formula import TRUE, Formula


class Kind(IntEnum):
    """Number of values: from one for all parameters (CONST, GLOBAL) to one for each element (ELEMENT).

    Between a tensor and its elements, a kind has one number for each index of some of the tensor's dimensions: CHANNEL
    of the first, LAST to LAST4 of one counted from the end, ROW of all but the last, COL of all but the one before
    that, MATRIX of all but those two.
    """

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
    def is_host(self) -> bool:
        """Evaluated once a group or once an optimizer, by the host."""
        return self <= Kind.GROUP

    @property
    def is_scalar(self) -> bool:
        """One number per parameter tensor."""
        return self in (Kind.STEP, Kind.TENSOR)

    @property
    def is_array(self) -> bool:
        """Several numbers per parameter tensor, fewer than its elements."""
        return Kind.TENSOR < self < Kind.ELEMENT


PARTS: Mapping[Kind, tuple[Kind, ...]] = {
    Kind.MATRIX: (Kind.LAST3, Kind.LAST4),
    Kind.ROW: (Kind.CHANNEL, Kind.LAST2, Kind.LAST3, Kind.LAST4, Kind.MATRIX),
    Kind.COL: (Kind.LAST, Kind.LAST3, Kind.LAST4, Kind.MATRIX),
}
"""The kinds of fewer dimensions of which each number of a kind has one, whatever the rank."""


def join(first: Kind, second: Kind) -> Kind:
    """The kind of an operation on two values, which has the dimensions of both: a row with a column is an element."""
    return next(
        kind for kind in (max(first, second), *PARTS, Kind.ELEMENT) if takes(kind, first) and takes(kind, second)
    )


def takes(whole: Kind, part: Kind) -> bool:
    """Check whether each number of kind `whole` has one of kind `part`; a row has no number of a column."""
    if whole.is_array and part.is_array:
        return whole is part or part in PARTS.get(whole, ())
    return part <= whole


Number = float | bool
ReduceOp = Literal["sum", "squares", "max", "greatest"]
"""`max` is of numbers that are not negative, 0 of none; `greatest` of any numbers, -inf of none."""


@dataclass(frozen=True)
class Const:
    """A number or a truth value known when the spec is compiled."""

    value: Number


@dataclass(frozen=True)
class Ref:
    """An input or a binding, by its unique name."""

    name: str


@dataclass(frozen=True)
class Call:
    """An operation of `optgen.operations`, applied element by element.

    Attributes:
        named: Name of its value, if it is that of a function of the spec.
    """

    op: str
    args: tuple[Expr, ...]
    named: str = field(default="", compare=False)


@dataclass(frozen=True)
class Select:
    """`then` where the formula holds, else `other`: decided before the kernel is compiled.

    `kind` says for what the guards can differ: for each group, or for each parameter (its rank, its codecs).
    """

    formula: Formula
    then: Expr
    other: Expr
    kind: Kind = Kind.GROUP


@dataclass(frozen=True)
class Reduce:
    """The sum of `x`, of its squares, or its maximum, over a tensor, a matrix, each row or each column.

    Sums are float64, and so are the squares in them, which float32 could not hold for very small or large numbers.
    """

    op: ReduceOp
    over: Kind
    x: Expr

    @property
    def is_maximum(self) -> bool:
        """True if it takes one of the numbers, rather than their sum."""
        return self.op in ("max", "greatest")


MATRICES = "matrices"
"""The function of matrices that is a rule's own step on them."""


@dataclass(frozen=True)
class MatrixCall:
    """A function of the matrix that the elements of a parameter make up, with one number for each of them again.

    Attributes:
        op: A name of `optgen.operations.MATRIX_FUNCTIONS`, or MATRICES.
        x: The elements.
        settings: Its other arguments, numbers that are the same for a group.
    """

    op: str
    x: Expr
    settings: tuple[Expr, ...] = ()

    @property
    def over(self) -> Kind:
        """The kind of its result."""
        return Kind.ELEMENT

    @property
    def is_maximum(self) -> bool:
        """False: it is no maximum of elements."""
        return False


OfAllElements = Reduce | MatrixCall
"""Takes all elements of a tensor before any number of the result is there."""
Expr = Const | Ref | Call | Select | Reduce | MatrixCall

Role = Literal["param", "grad", "step", "state", "hyper", "input", "fact"]


@dataclass(frozen=True)
class Input:
    """A value that exists before the step.

    Attributes:
        exists: Condition under which a state exists.
        signed: Whether a state may be negative.
        codecs: Codecs that a state may have.
        window: Number of past values that a window state holds.
    """

    name: str
    role: Role
    kind: Kind
    exists: Formula = TRUE
    signed: bool = True
    codecs: tuple[str, ...] = ()
    window: int | None = None


@dataclass(frozen=True)
class Arm:
    """One side of an `if` of the equations.

    Attributes:
        branch: The number of the `if` in its block.
        formula: Its condition.
        holds: The side: that where the condition holds, or the other.
    """

    branch: int
    formula: Formula
    holds: bool


@dataclass(frozen=True)
class Let:
    """A binding, with the statement it comes from, and under which guards that is reached.

    Attributes:
        variable: The name that the statement assigns; empty for a part of one.
        arms: The sides of `if`s in which the statement stands, outermost first.
        stem: The name of a part of a statement, without the number that tells it from others of that name.
        joins: The `if` after which the binding chooses between the values of its two sides; 0 for none.
        stage: The stage that all rules have in which the statement stands, `grad` or `update`; empty for a rule's own.
    """

    name: str
    expr: Expr
    kind: Kind
    source: str
    location: Location | None = field(default=None, compare=False)
    path: Formula = TRUE
    variable: str = field(default="", compare=False)
    arms: tuple[Arm, ...] = field(default=(), compare=False)
    joins: int = field(default=0, compare=False)
    stage: str = field(default="", compare=False)
    stem: str = field(default="", compare=False)

    @property
    def sums_all(self) -> bool:
        """True if it reduces over all parameters, or those of a group, with those that compute it but do not need the
        result."""
        return isinstance(self.expr, Reduce) and self.expr.over.is_host


@dataclass(frozen=True)
class Program:
    """One block of a rule: its inputs, its bindings in order, and what it writes.

    Attributes:
        outputs: New value of `param` and of states, by the name of the input that takes it.
        writes: Under which settings each of them is written; under others it stays as it is stored.
    """

    inputs: Mapping[str, Input]
    lets: tuple[Let, ...]
    outputs: Mapping[str, Expr]
    writes: Mapping[str, Formula]

    def kind(self, name: str) -> Kind:
        """The kind of an input or binding."""
        return self._kinds[name]

    def kinds(self) -> dict[str, Kind]:
        """The kinds of all names, to be added to."""
        return dict(self._kinds)

    @cached_property
    def _kinds(self) -> Mapping[str, Kind]:
        return {**{n: i.kind for n, i in self.inputs.items()}, **{let.name: let.kind for let in self.lets}}


def children(expr: Expr) -> tuple[Expr, ...]:
    """The direct operands of an expression."""
    match expr:
        case Const() | Ref():
            return ()
        case Call(args=args):
            return args
        case Select(then=then, other=other):
            return (then, other)
        case Reduce(x=x):
            return (x,)
        case MatrixCall(x=x, settings=settings):
            return (x, *settings)


def with_operands(expr: Expr, operands: Sequence[Expr]) -> Expr:
    """The same expression of other operands, as many as it has."""
    match expr:
        case Call(op=op, named=named):
            return Call(op, tuple(operands), named)
        case Select(formula=formula, kind=kind):
            then, other = operands
            return Select(formula, then, other, kind)
        case Reduce(op=op, over=over):
            (x,) = operands
            return Reduce(op, over, x)
        case MatrixCall(op=op):
            x, *settings = operands
            return MatrixCall(op, x, tuple(settings))
    return expr


def walk(expr: Expr) -> Iterator[Expr]:
    """The expression and everything below it."""
    yield expr
    for child in children(expr):
        yield from walk(child)


def refs(expr: Expr) -> Iterator[str]:
    """The names that an expression reads."""
    for node in walk(expr):
        if isinstance(node, Ref):
            yield node.name

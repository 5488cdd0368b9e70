"""Statements of a step on matrices that change a matrix in place, rather than make another one.

Large matrices that come and go take longer than what is computed: the system gives and takes their memory each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from optgen.backends.assignments import Assignments
from optgen.backends.code import Code, Labelled, call
from optgen.backends.layout import python_code
from optgen.backends.py_printer import PyPrinter
from optgen.backends.statements import Assign, walk_statements
from optgen.ir.matrix_stage import UPDATE
from optgen.ir.nodes import Call, Expr, Program, Ref, Select, refs, walk
from optgen.ir.shapes import OWN, Shape, shape_of

CHANGES = frozenset("+-*/")
COMMUTE = frozenset("+*")
PLAIN = CHANGES | {"matmul", "tall", "transpose", "from_tall"}
MAKE = CHANGES | {"matmul", "svd_basis", "qr", "eigenvectors", "inverse_root", "sorted_rows", "normal_matrix"}
"""Operations whose results are surely no memory that their operands have."""


class InPlace:
    """Statements of a function that can be done in place.

    Attributes:
        shapes: Those of variables and of what the function reads.
        owned: Variables whose memory no other one and no input has, and that are matrices of one shape throughout.
        last: The last statement, if it makes the direction of what is not the gradient, which is not read after it.
    """

    def __init__(
        self, program: Program, shapes: Mapping[str, Shape], texts: Mapping[str, str], code: Assignments
    ) -> None:
        own = [name for name, item in program.inputs.items() if item.role in ("grad", "param")]
        known = {**shapes, **dict.fromkeys(own, OWN)}
        found: dict[str, set[Shape | None]] = {}
        for let in program.lets:
            shape = shape_of(let.expr, known)
            if shape is not None:
                known[let.name] = shape
            found.setdefault(code.holders.get(let.name, ""), set()).add(shape)
        assigned = [each for each in walk_statements(code.body) if isinstance(each, Assign)]
        shared = {name for each in assigned for name in _seen(each.value)}
        shared |= {each.variable for each in assigned if not _is_made(each.value)}
        self.owned = {name for name, seen in found.items() if len(seen) == 1 and None not in seen} - shared
        self.last = _direction(code, assigned)
        self.shapes = {texts[name]: known[name] for name in texts if name in known}
        self.shapes |= {name: shape for name, (shape, *others) in found.items() if shape is not None and not others}

    def printer(self, statement: Assign, printer: PyPrinter) -> PyPrinter:
        """A printer of a statement, given that of all others."""
        if statement is self.last:
            return _LeavesDirection(printer.kinds, printer.flags, printer.names)
        if statement.variable in self.owned and _change(statement) is not None:
            return _Changes(printer.kinds, printer.flags, printer.names)
        return _InSteps(printer.kinds, printer.flags, printer.names, shapes=self.shapes)


class _LeavesDirection(PyPrinter):
    """Prints a direction that is left in the memory that the caller has for it."""

    def code(self, expr: Expr) -> Code:
        """The expression as Python that knows where its lines may end."""
        part = PyPrinter(self.kinds, self.flags, self.names).code
        match expr:
            case Call(op="from_tall", args=(Call(op="matmul", args=(a, b)),)):
                return call("t.from_tall", call("m.product", part(a), part(b), "m.tall(t.out)"))
            case Call(op="turned_back", args=(Call(op="matmul", args=(a, b)),)):
                return call("t.turned", call("m.product", part(a), part(b), "t.turned(t.out)"))
            case Call(op="matmul", args=(a, b)):
                return call("m.product", part(a), part(b), "t.out")
            case Call(op="*", args=(a, b)):
                return call("m.times", part(a), self.code(b), "t.out")
        return part(expr)


@dataclass(frozen=True)
class _InSteps(PyPrinter):
    """Prints a new matrix as its first operand, which the others then change.

    Attributes:
        shapes: Those of what the statement reads and of its variable.
    """

    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def lines(self, expr: Expr, prefix: str = "", indent: int = 0) -> list[str]:
        """Statements as lines that fit when they are indented by `indent`."""
        variable, changes = prefix.removesuffix(" = "), list[list[str]]()
        while isinstance(expr, Call) and expr.op in CHANGES and len(expr.args) == 2:
            first, other = expr.args
            if not self._is_new(first, variable) or variable in refs(other):
                break
            changes.insert(0, python_code(Labelled(f"{variable} {expr.op}= ", self.code(other)), indent))
            expr = first
        return [*super().lines(expr, prefix, indent), *(line for lines in changes for line in lines)]

    def _is_new(self, expr: Expr, variable: str) -> bool:
        """Check whether a part of a matrix's value is a new matrix of its shape."""
        called = {node.op for node in walk(expr) if isinstance(node, Call)}
        if not _is_made(expr) or not called <= PLAIN or variable not in self.shapes:
            return False
        return shape_of(expr, self.shapes) == self.shapes[variable]


class _Changes(PyPrinter):
    """Prints a change of a variable in place: `x *= a`."""

    def lines(self, expr: Expr, prefix: str = "", indent: int = 0) -> list[str]:
        """A statement as lines that fit when they are indented by `indent`."""
        variable = prefix.removesuffix(" = ")
        changed = _change(Assign(variable, expr))
        assert changed is not None
        symbol, other = changed
        return python_code(
            Labelled(f"{variable} {symbol}= ", PyPrinter(self.kinds, self.flags, self.names).code(other)), indent
        )


def _change(statement: Assign) -> tuple[str, Expr] | None:
    """The operator and the operand of a statement that changes its variable."""
    match statement.value:
        case Call(op=op, args=(Ref(name=name), other)) if op in CHANGES and name == statement.variable:
            return None if name in refs(other) else (op, other)
        case Call(op=op, args=(other, Ref(name=name))) if op in COMMUTE and name == statement.variable:
            return None if name in refs(other) else (op, other)
    return None


def _direction(code: Assignments, assigned: list[Assign]) -> Assign | None:
    views, last = {"grad"}, code.body[-1]
    for statement in assigned:
        if not views.isdisjoint(_seen(statement.value)):
            views.add(statement.variable)
    if not isinstance(last, Assign) or last.variable != UPDATE:
        return None
    read = {name for value in (last.value, *code.values.values()) for name in refs(value)}
    return last if views.isdisjoint(read) else None


def _is_made(expr: Expr) -> bool:
    """True if the value is surely no memory that its operands have."""
    return isinstance(expr, Call) and (expr.op in MAKE or expr.op.endswith("_over"))


def _seen(expr: Expr) -> Iterator[str]:
    """The variables in whose memory a value may lie."""
    match expr:
        case Ref(name=name):
            yield name
        case Select(then=then, other=other):
            yield from _seen(then)
            yield from _seen(other)
        case Call(args=args) if not _is_made(expr):
            for arg in args:
                yield from _seen(arg)

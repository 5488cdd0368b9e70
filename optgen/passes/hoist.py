"""Every binding computes at its own kind: lower-kind operands and reductions get bindings of their own.

`exp_avg * (1 - beta1)` reads a number that is the same for all elements; here it becomes a binding of group kind,
which is evaluated once. The same expression gets the same binding.
"""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.formula import TRUE, Formula
from optgen.ir.guards import GuardTable
from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Call, Const, Expr, Kind, Let, Program, Reduce, Ref, Select, children, with_operands
from optgen.operations import OPERATIONS
from optgen.passes.rewrite import unused_name


def hoist(program: Program, guards: GuardTable) -> Program:
    """Name every operand whose kind is below that of the operation, and every reduction."""
    return _Hoister(program, guards).run()


class _Hoister:
    def __init__(self, program: Program, guards: GuardTable) -> None:
        self.program, self.guards = program, guards
        self.kinds = program.kinds()
        self.known: dict[tuple[Expr, Formula], str] = {}
        self.lets: list[Let] = []

    def run(self) -> Program:
        for let in self.program.lets:
            expr = self._operand_free(let.expr, let)
            self.lets.append(replace(let, expr=expr))
            if not isinstance(expr, Ref | Const):
                self.known.setdefault(_key(expr, let), let.name)
        return replace(self.program, lets=tuple(self.lets))

    def _operand_free(self, expr: Expr, let: Let) -> Expr:
        """The expression with every lower-kind part named, at its own level."""
        match expr:
            case Const() | Ref():
                return expr
            case Reduce(x=x):
                return with_operands(expr, [self._named(x, let)])
        return with_operands(expr, [self._part(operand, let) for operand in children(expr)])

    def _part(self, part: Expr, let: Let) -> Expr:
        if isinstance(part, Const | Ref):
            return part
        if isinstance(part, Reduce) or kind_of(part, self.kinds) < let.kind:
            return self._named(part, let)
        return self._operand_free(part, let)

    def _named(self, expr: Expr, let: Let) -> Expr:
        if isinstance(expr, Const | Ref):
            return expr
        kind = kind_of(expr, self.kinds)
        inner = replace(let, kind=kind)
        expr = self._operand_free(expr, inner)
        if _key(expr, let) in self.known:
            return Ref(self.known[_key(expr, let)])
        name = self._fresh(expr, let)
        self.kinds[name] = kind
        self.lets.append(Let(name, expr, kind, "", let.location, let.path))
        self.known[_key(expr, let)] = name
        return Ref(name)

    def _fresh(self, expr: Expr, let: Let) -> str:
        choice = isinstance(expr, Select) or (isinstance(expr, Call) and expr.op == "where")
        stem = f"{let.name}_factor" if choice else readable_name(expr)
        return unused_name(stem, self.kinds.keys() | self.guards.guards.keys())


def _key(expr: Expr, let: Let) -> tuple[Expr, Formula]:
    """What makes a value of a binding the same as another: of a sum over all parameters, which of them reach it too."""
    sums_all = isinstance(expr, Reduce) and expr.over is Kind.GLOBAL
    return expr, let.path if sums_all else TRUE


def readable_name(expr: Expr, limit: int = 40) -> str:
    """A name that says what a value is: `one_minus_beta1`, `sum_update_times_update`."""
    text = _words(expr)
    return text if len(text) <= limit else f"{text[:limit].rstrip('_')}"


def _words(expr: Expr) -> str:
    match expr:
        case Const(value=1.0):
            return "one"
        case Const(value=value):
            return "c" + f"{value:g}".replace(".", "p").replace("-", "m").replace("+", "")
        case Ref(name=name):
            return name
        case Call(op="/", args=(Const(value=1.0), x)):
            return f"inverse_{_words(x)}"
        case Call(op=op, args=(a, b)) if OPERATIONS[op].reads_between:
            return f"{_words(a)}_{OPERATIONS[op].word}_{_words(b)}"
        case Call(op=op, args=args):
            return "_".join([OPERATIONS[op].word, *(_words(arg) for arg in args)])
        case Select(then=then, other=other):
            return f"{_words(then)}_or_{_words(other)}"
        case Reduce(op=op, over=over, x=x):
            return f"{over.name.lower() + '_' if over is not Kind.TENSOR else ''}{op}_{_words(x)}"

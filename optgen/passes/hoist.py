"""Every binding computes at its own kind: lower-kind operands and reductions get bindings of their own.

`exp_avg * (1 - beta1)` reads a number that is the same for all elements; here it becomes a binding of group kind,
which is evaluated once. The same expression gets the same binding, on the same side of an `if`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from optgen.ir.formula import TRUE, Formula
from optgen.ir.guards import GuardTable, guard_name
from optgen.ir.kinds import kind_of
from optgen.ir.nodes import (
    Call,
    Const,
    Expr,
    Kind,
    Let,
    MatrixCall,
    OfAllElements,
    Program,
    Reduce,
    Ref,
    Select,
    children,
    refs,
    walk,
    with_operands,
)
from optgen.ir.reductions import REDUCED
from optgen.operations import COMPARISONS, OPERATIONS
from optgen.passes.rename import stem_of
from optgen.passes.rewrite import rewrite, unused_name


def hoist(program: Program, guards: GuardTable) -> Program:
    """Name every operand whose kind is below that of the operation, and every reduction."""
    return _Hoister(program, guards).run()


class _Hoister:
    def __init__(self, program: Program, guards: GuardTable) -> None:
        self.program, self.guards = program, guards
        self.kinds = program.kinds()
        self.known: dict[tuple[Expr, Formula], list[Let]] = {}
        self.lets: list[Let] = []
        self.by_name = {let.name: let for let in program.lets}
        sums_all = [part for let in program.lets for part in walk(let.expr) if _sums_all(part)]
        self.parts_of_all = {name for part in sums_all for name in refs(part)}

    def run(self) -> Program:
        same: dict[str, Expr] = {}  # statements that are a reduction which another has asked for

        def change(expr: Expr) -> Expr:
            return same.get(expr.name, expr) if isinstance(expr, Ref) else expr

        for let in self.program.lets:
            expr = self._operand_free(rewrite(let.expr, change), let)
            known = self.known.get(self._key(expr, let)) if isinstance(expr, Reduce) else None
            if known and not _sums_all(expr):
                same[let.name] = self._named(expr, let)
                continue
            self.lets.append(replace(let, expr=expr))
            if not isinstance(expr, Ref | Const):
                self.known.setdefault(self._key(expr, let), []).append(self.lets[-1])
        outputs = {name: rewrite(value, change) for name, value in self.program.outputs.items()}
        return replace(self.program, lets=tuple(self.lets), outputs=outputs)

    def _operand_free(self, expr: Expr, let: Let) -> Expr:
        """The expression with every lower-kind part named, at its own level."""
        match expr:
            case Const() | Ref():
                return expr
            case Reduce(x=x):
                return with_operands(expr, [self._named(x, let)])
            case MatrixCall(x=x, settings=settings):
                return with_operands(expr, [self._named(x, let), *(self._named(setting, let) for setting in settings)])
        return with_operands(expr, [self._part(operand, let) for operand in children(expr)])

    def _part(self, part: Expr, let: Let) -> Expr:
        if isinstance(part, Const | Ref):
            return part
        if isinstance(part, OfAllElements) or kind_of(part, self.kinds) < let.kind:
            return self._named(part, let)
        return self._operand_free(part, let)

    def _named(self, expr: Expr, let: Let) -> Expr:
        if isinstance(expr, Const | Ref):
            return expr
        kind = kind_of(expr, self.kinds)
        inner = replace(let, kind=kind)
        expr = self._operand_free(expr, inner)
        of_elements = isinstance(expr, OfAllElements) and kind_of(expr.x, self.kinds) is Kind.ELEMENT
        for at, known in enumerate(self.known.setdefault(self._key(expr, let), [])):
            if known.arms == let.arms[: len(known.arms)]:
                return Ref(known.name)
            if of_elements:  # which a statement of another side has asked for
                self.lets.remove(known)
                self.known[self._key(expr, let)][at] = self._insert(known)
                return Ref(known.name)
        stem = self._stem(expr, let)
        name = unused_name(stem, self.kinds.keys() | self.guards.guards.keys())
        self.kinds[name] = kind
        made = Let(name, expr, kind, "", let.location, let.path, arms=let.arms, stage=let.stage, stem=stem)
        if of_elements:
            made = self._insert(made)
        else:
            self.lets.append(made)
        self.known[self._key(expr, let)].append(made)
        self.by_name[name] = made
        return Ref(name)

    def _key(self, expr: Expr, let: Let) -> tuple[Expr, Formula]:
        """Key under which equal values are shared. For a sum over all parameters it includes the path of those that add
        to it."""
        return expr, let.path if _sums_all(expr) or let.name in self.parts_of_all else TRUE

    def _insert(self, reduction: Let) -> Let:
        """A reduction of elements stands where they are at hand, whichever side of an `if` asks for it."""
        assert isinstance(reduction.expr, OfAllElements)
        assert isinstance(reduction.expr.x, Ref)
        names = [let.name for let in self.lets]
        if reduction.expr.x.name not in names:  # an input
            made = replace(reduction, arms=())
            self.lets.insert(0, made)
            return made
        place = names.index(reduction.expr.x.name)
        x = self.lets[place]
        made = replace(reduction, path=x.path, arms=x.arms)
        while x.joins and place + 1 < len(self.lets) and self.lets[place + 1].joins == x.joins:
            place += 1
        self.lets.insert(place + 1, made)
        return made

    def _stem(self, expr: Expr, let: Let) -> str:
        """A name for a part of a statement; of a second sum over the same name one that says for what it is taken."""
        if isinstance(expr, MatrixCall):
            return f"{let.variable or let.name}_matrix"
        if isinstance(expr, Reduce):
            stem, other = self._reduced(expr), f"{let.variable}_{REDUCED[expr.op]}"
            several = any(stem_of(made) == stem for made in self.by_name.values())
            return other if several and let.variable and expr.over is Kind.TENSOR else stem
        choice = isinstance(expr, Select) or (isinstance(expr, Call) and expr.op == "where")
        words = readable_name(expr, {let.name: stem_of(let) for let in refs_of(expr, self.by_name)})
        return f"{let.variable or let.name}_factor" if choice or len(words) > LONGEST else words

    def _reduced(self, expr: Reduce) -> str:
        """A name for a reduction: what is reduced, and how."""
        assert isinstance(expr.x, Ref)
        let = self.by_name.get(expr.x.name)
        stem = expr.x.name if let is None else stem_of(let)
        if expr.over.is_host:
            return f"{stem}_{'all' if expr.over is Kind.GLOBAL else 'of_group'}"
        over = "" if expr.over is Kind.TENSOR else f"{expr.over.name.lower()}_"
        return f"{stem}_{over}{REDUCED[expr.op]}"


def _sums_all(expr: Expr) -> bool:
    return isinstance(expr, Reduce) and expr.over.is_host


LONGEST = 40


def refs_of(expr: Expr, lets: Mapping[str, Let]) -> Iterator[Let]:
    """The bindings that an expression reads."""
    return (lets[name] for name in refs(expr) if name in lets)


def readable_name(expr: Expr, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """A name that says what a value is: `one_minus_beta1`.

    Args:
        names: Names of the bindings in it.
    """

    def words(expr: Expr) -> str:
        match expr:
            case Const(value=1.0):
                return "one"
            case Const(value=value):
                return "c" + f"{value:g}".replace(".", "p").replace("-", "m").replace("+", "")
            case Ref(name=name):
                return names.get(name, name)
            case Call(named=named) if named:
                return named
            case Call(op="/", args=(Const(value=1.0), x)):
                return f"inverse_{words(x)}"
            case Call(op=op, args=(a, Const(value=value))) if op in COMPARISONS:
                return guard_name(words(a), op, f"{value:g}")
            case Call(op=op, args=(a, b)) if OPERATIONS[op].reads_between:
                return f"{words(a)}_{OPERATIONS[op].word}_{words(b)}"
            case Call(op=op, args=args):
                return "_".join([OPERATIONS[op].word, *(words(arg) for arg in args)])
            case Select(then=then, other=other):
                return f"{words(then)}_or_{words(other)}"
            case MatrixCall(op=op, x=x):
                return f"{op}_{words(x)}"
            case Reduce(op=op, over=over, x=x):
                return f"{over.name.lower() + '_' if over is not Kind.TENSOR else ''}{op}_{words(x)}"

    return words(expr)

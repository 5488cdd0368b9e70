"""Loops over what is known when a spec is compiled, and vectors of states: written out before a block is read.

`for b in betas:` becomes its lines for each part of `betas`, `momentum[1]` the state that it is.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from typing import TypeVar

from optgen.diagnostics import Reporter
from optgen.ir.parser import node_location
from optgen.operations import COMPARISONS
from optgen.spec.source import SourceText

MAX_LINES = 4096  # of a block, once its loops are written out
WHAT = "write the name of a tuple or of states with `count`, `range(3)`, `zip(a, b)`, `enumerate(a)`, or numbers"
WHOLE: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
}  # fmt: skip
Vectors = Mapping[str, tuple[str, ...]]
Tree = TypeVar("Tree", bound=ast.AST)


def without_loops(
    body: Sequence[ast.stmt], text: SourceText, vectors: Vectors, taken: Collection[str], reporter: Reporter
) -> list[ast.stmt]:
    """Statements without loops and indices; what cannot be written out is reported and left out.

    Args:
        vectors: Tuples of settings and vectors of states, with the names of their parts.
        taken: Names that no loop may use for its own.
    """
    if not any(isinstance(part, ast.For | ast.Subscript) for statement in body for part in ast.walk(statement)):
        return list(body)
    try:
        return _Unroller(text, vectors, taken, reporter).block(body, {})
    except _TooLongError:
        return []


class _StopError(Exception):
    """This statement cannot be written out; the reason has been reported."""


class _TooLongError(Exception):
    """The block cannot be written out; that has been reported."""


class _Unroller:
    """Writes out one block."""

    def __init__(self, text: SourceText, vectors: Vectors, taken: Collection[str], reporter: Reporter) -> None:
        self.text, self.vectors, self.taken, self.reporter = text, vectors, taken, reporter
        self.room = MAX_LINES

    def block(self, body: Sequence[ast.stmt], bound: Mapping[str, ast.expr]) -> list[ast.stmt]:
        """Statements as one round of the loops around them has them."""
        result: list[ast.stmt] = []
        for statement in body:
            try:
                result += self._statement(statement, bound)
            except _StopError:
                continue
        return result

    def _statement(self, statement: ast.stmt, bound: Mapping[str, ast.expr]) -> list[ast.stmt]:
        match statement:
            case ast.For(target=target, iter=through, body=body, orelse=[]):
                result: list[ast.stmt] = []
                for item in self._rounds(through, bound):
                    self._count(statement)
                    result += self.block(body, {**bound, **self._bound(target, item)})
                return result
            case ast.If(test=test, body=then, orelse=other):
                asked = self._put(test, bound)
                holds = _known(asked)
                if holds is not None:
                    return self.block(then if holds else other, bound)
                made = ast.If(asked, self.block(then, bound), self.block(other, bound))
                return [ast.copy_location(made, statement)]
        self._count(statement)
        return [self._put(statement, bound)]

    def _count(self, statement: ast.AST) -> None:
        """Count a line or a round."""
        self.room -= 1
        if self.room < 0:
            message = f"the loops of this block take more than {MAX_LINES} lines"
            self.reporter.error("block-too-long", message, node_location(self.text, statement), "let them be shorter")
            raise _TooLongError

    def _rounds(self, through: ast.expr, bound: Mapping[str, ast.expr]) -> list[ast.expr]:
        """Items that a loop goes through, one after the other."""
        match through:
            case ast.Name(id=name) if name in self.vectors:
                return [ast.Name(part, ast.Load()) for part in self.vectors[name]]
            case ast.Tuple(elts=items) | ast.List(elts=items) if items:
                found = [self._put(item, bound) for item in items]
                if all(isinstance(item, ast.Name) or _number(item) is not None for item in found):
                    return found
            case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]) if 1 <= len(args) <= 3:
                ends = [_whole(self._put(arg, bound)) for arg in args]
                known = [end for end in ends if end is not None]
                if len(known) == len(ends) and (len(known) < 3 or known[2]):
                    numbers = range(*known)
                    if len(numbers) <= MAX_LINES:
                        return [ast.Constant(number) for number in numbers]
            case ast.Call(func=ast.Name(id="enumerate"), args=[items], keywords=[]):
                pairs = enumerate(self._rounds(items, bound))
                return [ast.Tuple([ast.Constant(number), item], ast.Load()) for number, item in pairs]
            case ast.Call(func=ast.Name(id="zip"), args=args, keywords=[]) if args:
                several = [self._rounds(arg, bound) for arg in args]
                if len({len(rounds) for rounds in several}) > 1:
                    sizes = ", ".join(f"{ast.unparse(arg)} {len(r)}" for arg, r in zip(args, several, strict=True))
                    self._stop("arguments", f"`zip` takes what is equally long: {sizes}", through, "")
                return [ast.Tuple(list(items), ast.Load()) for items in zip(*several, strict=True)]
        self._stop("run-time-condition", "a loop goes through what is known when the spec is compiled", through, WHAT)
        return []

    def _bound(self, target: ast.expr, item: ast.expr) -> dict[str, ast.expr]:
        """The names of a loop with what they stand for in a round."""
        match target, item:
            case ast.Name(id=name), ast.Name() | ast.Constant() | ast.UnaryOp():
                if name in self.taken:
                    self._stop("not-assignable", f"`{name}` is declared", target, "use another name in the loop")
                return {name: item}
            case ast.Tuple(elts=targets), ast.Tuple(elts=items) if len(targets) == len(items):
                pairs = (self._bound(*pair) for pair in zip(targets, items, strict=True))
                return {name: value for pair in pairs for name, value in pair.items()}
        count = len(item.elts) if isinstance(item, ast.Tuple) else 1
        self._stop("arguments", f"each round of this loop has {count} value{'s' if count > 1 else ''}", target, "")
        return {}

    def _stop(self, rule: str, message: str, node: ast.AST, help_text: str) -> None:
        self.reporter.error(rule, message, node_location(self.text, node), help_text)
        raise _StopError

    def _put(self, node: Tree, bound: Mapping[str, ast.expr]) -> Tree:
        """A copy of a statement or an expression with what the loops' names stand for."""
        return _Putter(self, bound).visit(deepcopy(node))  # type: ignore[no-any-return]

    def indexed(self, node: ast.Subscript, name: str) -> ast.expr:
        """The part of a vector that an index names."""
        parts, index = self.vectors[name], _whole(node.slice)
        if index is None:
            message = f"`{name}` takes an index that is known when the spec is compiled"
            self._stop("run-time-condition", message, node, "write a number, or loop with `for i in range(n):`")
        assert index is not None
        if not -len(parts) <= index < len(parts):
            message = f"`{name}` has {len(parts)} parts, from 0 to {len(parts) - 1}"
            self._stop("arguments", message, node, "")
        return ast.copy_location(ast.Name(parts[index], node.ctx), node)

    def put_name(self, node: ast.Name, bound: Mapping[str, ast.expr]) -> ast.expr:
        """The expression that a name stands for in this round."""
        found = bound.get(node.id)
        if found is None:
            return node
        if isinstance(found, ast.Name):
            return ast.copy_location(ast.Name(found.id, node.ctx), node)
        if not isinstance(node.ctx, ast.Load):
            message = f"`{node.id}` is the number of a round and cannot be assigned"
            self._stop("not-assignable", message, node, "use another name for the value")
        return _at(deepcopy(found), node)

    def length(self, node: ast.Call) -> ast.expr:
        """The length of a vector, as a number."""
        match node.args:
            case [ast.Name(id=name)] if name in self.vectors:
                return ast.copy_location(ast.Constant(len(self.vectors[name])), node)
        return node


class _Putter(ast.NodeTransformer):
    """Puts in what the names of loops stand for."""

    def __init__(self, unroller: _Unroller, bound: Mapping[str, ast.expr]) -> None:
        self.unroller, self.bound = unroller, bound

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.unroller.put_name(node, self.bound)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node.value:
            case ast.Name(id=name) if name in self.unroller.vectors:
                node.slice = self.visit(node.slice)
                return self.unroller.indexed(node, name)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name):
            if node.func.id == "len":
                return self.unroller.length(node)
            node.args = [self.visit(arg) for arg in node.args]  # a function's name is none of a value
            return node
        return self.generic_visit(node)


def _at(node: ast.expr, place: ast.AST) -> ast.expr:
    for part in ast.walk(node):
        if isinstance(part, ast.expr):
            ast.copy_location(part, place)
    return node


def _number(node: ast.AST) -> float | None:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
    return None


def _whole(node: ast.AST) -> int | None:
    """A whole number, or sums and products of some."""
    match node:
        case ast.BinOp(left=left, op=op, right=right) if type(op) in WHOLE:
            a, b = _whole(left), _whole(right)
            return None if a is None or b is None else WHOLE[type(op)](a, b)
    number = _number(node)
    return number if isinstance(number, int) else None


def _known(test: ast.AST) -> bool | None:
    """The truth of a comparison of whole numbers; None for anything else."""
    match test:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            a, b = _whole(left), _whole(right)
            compare = next((row.value for row in COMPARISONS.values() if row.syntax is type(op)), None)
            return None if a is None or b is None or compare is None else bool(compare(a, b))
    return None

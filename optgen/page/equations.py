"""The equations of a rule as one of its classes runs them: with the options that the class fixes resolved."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optgen.ir.functions import Function
from optgen.operations import BY_SYNTAX

INDENT = "    "
UNKNOWN = object()


@dataclass(frozen=True)
class Line:
    """A line of a block.

    Attributes:
        depth: Number of conditions that it stands under.
        word: "if", "elif" or "else", "return", "" for another statement.
        node: The condition of `if` and `elif`, what is returned, or the statement; None for `else`.
        text: As written, without its indent.
    """

    depth: int
    word: str
    node: ast.expr | ast.stmt | None
    text: str


def resolved(block: str, fixed: Mapping[str, object]) -> list[str]:
    """The lines of a block without the branches that fixed options rule out.

    Args:
        block: Statements of the spec language.
        fixed: Options by name that have one value.
    """
    return [line.depth * INDENT + part for line in lines(block, fixed) for part in line.text.split("\n")]


def lines(block: str, fixed: Mapping[str, object]) -> list[Line]:
    """The same, each with its syntax tree."""
    return list(_lines(ast.parse(block).body, block, fixed, 0))


def function_lines(function: Function, fixed: Mapping[str, object]) -> list[Line]:
    """The lines of a function, without its documentation."""
    free = {name: value for name, value in fixed.items() if name not in function.own}
    return list(_lines([*function.body, function.node.body[-1]], function.text.text, free, 0))


def _lines(body: Sequence[ast.stmt], text: str, fixed: Mapping[str, object], depth: int) -> Iterator[Line]:
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _branches(statement, text, fixed, depth)
        elif isinstance(statement, ast.Return):
            yield Line(depth, "return", statement.value, _source(text, statement))
        else:
            yield Line(depth, "", statement, _source(text, statement))


def _branches(statement: ast.If, text: str, fixed: Mapping[str, object], depth: int) -> Iterator[Line]:
    """An `if` with its `elif`s and `else`: only what can still happen."""
    word, current = "if", statement
    while True:
        test = decided(current.test, fixed)
        if test is True:
            if word == "elif":
                yield Line(depth, "else", None, "else:")
            yield from _lines(current.body, text, fixed, depth + (word == "elif"))
            return
        if not isinstance(test, bool):
            yield Line(depth, word, test, f"{word} {_condition(test, text)}:")
            yield from _lines(current.body, text, fixed, depth + 1)
            word = "elif"
        rest = current.orelse
        if len(rest) == 1 and isinstance(rest[0], ast.If):
            current = rest[0]
            continue
        if rest:
            if word == "elif":
                yield Line(depth, "else", None, "else:")
            yield from _lines(rest, text, fixed, depth + (word == "elif"))
        return


def _condition(test: ast.expr, text: str) -> str:
    """A condition as written, or simplified where a part of it was decided."""
    return ast.unparse(test) if not hasattr(test, "lineno") else _source(text, test)


def _source(text: str, node: ast.AST) -> str:
    return ast.get_source_segment(text, node) or ast.unparse(node)


def decided(test: ast.expr, values: Mapping[str, object]) -> ast.expr | bool:
    """A condition's truth where these values of names decide it, else what is left to ask."""
    match test:
        case ast.Constant(value=bool(value)):
            return value
        case ast.Name(id=name) if name in values:
            return bool(values[name])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = decided(operand, values)
            if isinstance(inner, bool):
                return not inner
            return test if inner is operand else ast.UnaryOp(ast.Not(), inner)
        case ast.Compare(left=one, ops=[op], comparators=[other]):
            found = _compared(_value(one, values), op, _value(other, values))
            return test if found is None else found
        case ast.BoolOp(op=op, values=operands):
            absorbing = isinstance(op, ast.Or)
            parts = [decided(operand, values) for operand in operands]
            if absorbing in [part for part in parts if isinstance(part, bool)]:
                return absorbing
            left = [part for part in parts if not isinstance(part, bool)]
            if not left:
                return not absorbing
            if len(left) == len(operands) and all(new is old for new, old in zip(left, operands, strict=True)):
                return test
            return left[0] if len(left) == 1 else ast.BoolOp(op, left)
    return test


def truth(test: ast.expr, values: Mapping[str, object]) -> bool | None:
    """Evaluate a condition for these values of names; None if it depends on one that is not known."""
    found = decided(test, values)
    return found if isinstance(found, bool) else None


def _value(node: ast.expr, values: Mapping[str, object]) -> object:
    """Evaluate one side of a comparison; UNKNOWN where a value is not known."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=name):
            return values.get(name, UNKNOWN)
    return UNKNOWN


def _compared(value: object, op: ast.cmpop, other: object) -> bool | None:
    if UNKNOWN in (value, other):
        return None
    if isinstance(op, ast.Is | ast.IsNot):
        return (value is other) == isinstance(op, ast.Is)
    are_numbers = isinstance(value, int | float) and isinstance(other, int | float)
    compare = BY_SYNTAX[type(op)].value if are_numbers or isinstance(op, ast.Eq | ast.NotEq) else None
    return None if compare is None else bool(compare(value, other))

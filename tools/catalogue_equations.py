"""The equations of a rule as one of its classes runs them: with the options that the class fixes resolved."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence

INDENT = "    "


def resolved(block: str, fixed: Mapping[str, object]) -> list[str]:
    """The lines of a block without the branches that fixed options rule out.

    Args:
        block: Statements of the spec language.
        fixed: Options by name that have one value.
    """
    return list(_lines(ast.parse(block).body, block, fixed, ""))


def _lines(body: Sequence[ast.stmt], text: str, fixed: Mapping[str, object], indent: str) -> Iterator[str]:
    for statement in body:
        if isinstance(statement, ast.If):
            yield from _branches(statement, text, fixed, indent)
        else:
            yield from (indent + line for line in _source(text, statement).split("\n"))


def _branches(statement: ast.If, text: str, fixed: Mapping[str, object], indent: str) -> Iterator[str]:
    """An `if` with its `elif`s and `else`: only what can still happen."""
    word, current = "if", statement
    while True:
        test = decided(current.test, fixed)
        if test is True:
            if word == "elif":
                yield f"{indent}else:"
            yield from _lines(current.body, text, fixed, indent + INDENT if word == "elif" else indent)
            return
        if test is not False:
            yield f"{indent}{word} {_condition(test, text)}:"
            yield from _lines(current.body, text, fixed, indent + INDENT)
            word = "elif"
        rest = current.orelse
        if len(rest) == 1 and isinstance(rest[0], ast.If):
            current = rest[0]
            continue
        if rest:
            if word == "elif":
                yield f"{indent}else:"
            yield from _lines(rest, text, fixed, indent + INDENT if word == "elif" else indent)
        return


def _condition(test: ast.expr, text: str) -> str:
    """A condition as written, or anew where a part of it was decided."""
    return ast.unparse(test) if not hasattr(test, "lineno") else _source(text, test)


def _source(text: str, node: ast.AST) -> str:
    return ast.get_source_segment(text, node) or ast.unparse(node)


def decided(test: ast.expr, fixed: Mapping[str, object]) -> ast.expr | bool:
    """A condition's truth where fixed options decide it, else what is left to ask."""
    match test:
        case ast.Name(id=name) if name in fixed:
            return bool(fixed[name])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = decided(operand, fixed)
            if isinstance(inner, bool):
                return not inner
            return test if inner is operand else ast.UnaryOp(ast.Not(), inner)
        case ast.Compare(left=ast.Name(id=name), ops=[op], comparators=[ast.Constant(value=value)]) if name in fixed:
            if isinstance(op, ast.Eq | ast.NotEq):
                return (fixed[name] == value) == isinstance(op, ast.Eq)
            return test
        case ast.BoolOp(op=op, values=values):
            absorbing = isinstance(op, ast.Or)
            parts = [decided(value, fixed) for value in values]
            if absorbing in [part for part in parts if isinstance(part, bool)]:
                return absorbing
            left = [part for part in parts if not isinstance(part, bool)]
            if not left:
                return not absorbing
            if len(left) == len(values) and all(new is old for new, old in zip(left, values, strict=True)):
                return test
            return left[0] if len(left) == 1 else ast.BoolOp(op, left)
        case _:
            return test

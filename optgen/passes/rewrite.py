"""Rewriting expressions from the leaves up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from optgen.ir.nodes import Expr, Program, Ref, children, with_operands


def unused_name(stem: str, taken: Collection[str]) -> str:
    """`stem`, or it with the first number that makes a name of its own."""
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name


def rewrite(expr: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """The expression with `change` applied to every node, operands first."""
    return change(with_operands(expr, [rewrite(operand, change) for operand in children(expr)]))


def replaced(expr: Expr, values: Mapping[str, Expr]) -> Expr:
    """The expression with what some of its names stand for."""
    return rewrite(expr, lambda part: values.get(part.name, part) if isinstance(part, Ref) else part)


def rewrite_program(program: Program, change: Callable[[Expr], Expr]) -> Program:
    """The program with every expression rewritten."""
    lets = tuple(replace(let, expr=rewrite(let.expr, change)) for let in program.lets)
    outputs = {name: rewrite(value, change) for name, value in program.outputs.items()}
    return replace(program, lets=lets, outputs=outputs)

"""Bindings that only rename another value are replaced by it."""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Const, Expr, OfAllElements, Program, Ref, refs, walk
from optgen.passes.rewrite import rewrite


def forward(program: Program) -> Program:
    """Replace reads of `b = a` and of `b = 1.0` by what they stand for.

    A binding stays where a state of rows, columns or matrices takes over the old value of another: these are stored
    one after the other, and the other may be stored before it is read. It also stays where elements or lines that are
    all the same number are reduced: the sum has as many terms as they are.
    """
    known: dict[str, Expr] = {}
    arrays = {name for name in program.outputs if program.inputs[name].kind.is_array}
    kinds = program.kinds()
    reduced = {
        name
        for let in program.lets
        for part in walk(let.expr)
        if isinstance(part, OfAllElements)
        for name in refs(part)
    }
    stored = {value.name for name, value in program.outputs.items() if name in arrays and isinstance(value, Ref)}

    def change(expr: Expr) -> Expr:
        return known.get(expr.name, expr) if isinstance(expr, Ref) else expr

    lets = []
    for let in program.lets:
        expr = rewrite(let.expr, change)
        taken_over = isinstance(expr, Ref) and expr.name in arrays and let.name in stored
        spread = let.name in reduced and kind_of(expr, kinds) is not let.kind
        if isinstance(expr, Ref | Const) and not taken_over and not spread:
            known[let.name] = expr
        else:
            lets.append(replace(let, expr=expr))
    outputs = {name: rewrite(value, change) for name, value in program.outputs.items()}
    return replace(program, lets=tuple(lets), outputs=outputs)

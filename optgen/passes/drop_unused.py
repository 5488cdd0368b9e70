"""Bindings that nothing needs are removed."""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.nodes import Program, refs


def drop_unused(program: Program) -> Program:
    """Keep the bindings that some output needs."""
    needed = {name for value in program.outputs.values() for name in refs(value)}
    lets = []
    for let in reversed(program.lets):
        if let.name in needed:
            needed.update(refs(let.expr))
            lets.append(let)
    return replace(program, lets=tuple(reversed(lets)))

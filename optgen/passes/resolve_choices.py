"""Choices whose answer follows from the settings under which they are needed are made at once.

A state is written only where it exists and changes, so that `new if amsgrad else old` is `new` there.
"""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.formula import FALSE
from optgen.ir.liveness import needed, resolve, written
from optgen.ir.nodes import Program


def resolve_choices(program: Program) -> Program:
    """Resolve every choice under the formula for which its value is needed."""
    outputs = {name: resolve(value, program.writes[name]) for name, value in program.outputs.items()}
    resolved = replace(program, outputs=outputs)
    live = needed(program.lets, written(resolved))
    lets = tuple(replace(let, expr=resolve(let.expr, live.get(let.name, FALSE))) for let in program.lets)
    return replace(resolved, lets=lets)

"""Choices whose answer follows from the settings under which they are needed are made at once.

A state with a condition is written only where it exists, so that `new if amsgrad else old` is `new` there.
"""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.formula import FALSE
from optgen.ir.liveness import demands, needed, resolve
from optgen.ir.nodes import Program


def resolve_choices(program: Program) -> Program:
    """Resolve every choice under the formula for which its value is needed."""
    exists = {name: program.inputs[name].exists for name in program.outputs}
    outputs = {name: resolve(value, exists[name]) for name, value in program.outputs.items()}
    live = needed(program.lets, [root for name, value in outputs.items() for root in demands(value, exists[name])])
    lets = tuple(replace(let, expr=resolve(let.expr, live.get(let.name, FALSE))) for let in program.lets)
    return replace(program, lets=lets, outputs=outputs)

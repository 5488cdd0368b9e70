"""Where `active` is false, an element's parameter and states stay as they were."""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.nodes import Call, Const, Expr, Kind, Let, Program, Ref


def mask_writes(program: Program, active: Expr) -> Program:
    """Wrap every element that the program writes in `where(active, new, old)`."""
    if active == Const(True):
        return program
    lets = list(program.lets)
    outputs = dict(program.outputs)
    for name, value in program.outputs.items():
        if program.inputs[name].kind is not Kind.ELEMENT:
            continue
        kept = Call("where", (active, value, Ref(name)))
        lets.append(Let(f"{name}_kept", kept, Kind.ELEMENT, f"{name} where active"))
        outputs[name] = Ref(f"{name}_kept")
    return replace(program, lets=tuple(lets), outputs=outputs)

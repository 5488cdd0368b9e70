"""Masks writes: where `active` is false, an element's parameter and states stay as they were."""

from __future__ import annotations

from dataclasses import replace

from optgen.ir.guards import GuardTable
from optgen.ir.nodes import Call, Const, Expr, Kind, Let, Program, Ref
from optgen.passes.rewrite import unused_name


def mask_writes(program: Program, active: Expr, guards: GuardTable) -> Program:
    """Wrap every element that the program writes in `where(active, new, old)`."""
    if active == Const(True):
        return program
    taken = program.kinds().keys() | guards.guards.keys()
    lets = list(program.lets)
    outputs = dict(program.outputs)
    for name, value in program.outputs.items():
        if program.inputs[name].kind is not Kind.ELEMENT:
            continue
        kept = Call("where", (active, value, Ref(name)))
        unique = unused_name(f"{name}_kept", taken)
        lets.append(Let(unique, kept, Kind.ELEMENT, f"{name} where active", variable=name))
        outputs[name] = Ref(unique)
    return replace(program, lets=tuple(lets), outputs=outputs)


def masked(let: Let) -> str:
    """The element that a binding gives its new value where elements are active, and the old one elsewhere; else ""."""
    match let.expr:
        case Call(op="where", args=(_, _, Ref(name=old))) if old == let.variable and not let.arms:
            return old
    return ""

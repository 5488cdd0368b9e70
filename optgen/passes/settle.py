"""A program under one setting: every choice is made, and what is not reached is left out.

What people read of one class is made of it; kernels are made of programs that serve all settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from optgen.ir.formula import TRUE
from optgen.ir.guards import GuardTable
from optgen.ir.kinds import kind_of
from optgen.ir.nodes import Call, Expr, Input, Kind, Program, Select
from optgen.ir.verifier import Stage, verify
from optgen.passes.drop_unused import drop_unused
from optgen.passes.fold import fold
from optgen.passes.forward import forward
from optgen.passes.hoist import hoist
from optgen.passes.rename import rename
from optgen.passes.rewrite import rewrite_program


def settle(program: Program, guards: Mapping[str, bool]) -> Program:
    """A program that is ready to be scheduled, where the guards have these values and parameters are float32."""

    def chosen(expr: Expr) -> Expr:
        match expr:
            case Select(formula=formula, then=then, other=other):
                return then if formula.holds(guards) else other
            case Call(op="rounded", args=(x,)):
                return x
        return expr

    program = drop_unused(rewrite_program(_existing(program, guards), chosen))
    while (simpler := drop_unused(forward(fold(program)))) != program:
        program = simpler
    program = rename(hoist(_narrow(program), GuardTable()), GuardTable())
    verify(program, Stage.READY)
    return program


def _narrow(program: Program) -> Program:
    """The program with every number of a tensor that has become one of a group or a step for what it is."""
    kinds = program.kinds()
    lets = []
    for let in program.lets:
        if let.kind <= Kind.TENSOR:
            kinds[let.name] = kind_of(let.expr, kinds)
        lets.append(replace(let, kind=kinds[let.name]))
    return replace(program, lets=tuple(lets))


def _existing(program: Program, guards: Mapping[str, bool]) -> Program:
    """The program with the states that there are; sums over all parameters that only others take are given."""
    inputs = {n: replace(item, exists=TRUE) for n, item in program.inputs.items() if item.exists.holds(guards)}
    lets = []
    for let in program.lets:
        if let.sums_all and not let.path.holds(guards):
            inputs[let.name] = Input(let.name, "input", let.kind)
        else:
            lets.append(replace(let, path=TRUE, arms=(), joins=0))
    outputs = {name: value for name, value in program.outputs.items() if program.writes[name].holds(guards)}
    return Program(inputs, tuple(lets), outputs, dict.fromkeys(outputs, TRUE))

"""The order of the passes."""

from __future__ import annotations

from functools import partial

from optgen.ir.guards import GuardTable
from optgen.ir.nodes import Expr, Program
from optgen.ir.verifier import verify
from optgen.passes.drop_unused import drop_unused
from optgen.passes.fold import fold
from optgen.passes.forward import forward
from optgen.passes.hoist import hoist
from optgen.passes.mask_writes import mask_writes
from optgen.passes.multiply_reciprocal import multiply_reciprocal
from optgen.passes.resolve_choices import resolve_choices
from optgen.passes.scale_tensorwise import scale_tensorwise


def run_passes(program: Program, active: Expr, guards: GuardTable) -> Program:
    """From the program as written to the one that is scheduled."""
    program = mask_writes(program, active, guards)
    program = scale_tensorwise(program, guards)
    steps = (resolve_choices, multiply_reciprocal, fold, forward, partial(hoist, guards=guards), drop_unused)
    for step in steps:
        program = step(program)
        verify(program)
    return program

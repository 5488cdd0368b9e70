"""The order of the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from optgen.ir.exchanges import Exchange
from optgen.ir.guards import GuardTable
from optgen.ir.nodes import Expr, Program
from optgen.ir.verifier import Stage, verify
from optgen.passes.drop_unused import drop_unused
from optgen.passes.exchange_states import exchange_states
from optgen.passes.fold import fold
from optgen.passes.forward import forward
from optgen.passes.hoist import hoist
from optgen.passes.mask_writes import mask_writes
from optgen.passes.multiply_reciprocal import multiply_reciprocal
from optgen.passes.rename import rename
from optgen.passes.resolve_choices import resolve_choices
from optgen.passes.scale_tensorwise import scale_tensorwise


def run_passes(program: Program, active: Expr, guards: GuardTable, exchanges: Iterable[Exchange] = ()) -> Program:
    """Run all passes on a program; the result is verified, in tests after every pass."""
    program = exchange_states(program, exchanges)
    for step, _ in steps(active, guards):
        program = step(program)
    verify(program, Stage.READY)
    return program


def steps(active: Expr, guards: GuardTable) -> tuple[tuple[Callable[[Program], Program], Stage], ...]:
    """The passes in their order, each with the stage that it brings a program to."""
    return (
        (partial(mask_writes, active=active, guards=guards), Stage.BUILT),
        (partial(scale_tensorwise, guards=guards), Stage.BUILT),
        (resolve_choices, Stage.BUILT),
        (multiply_reciprocal, Stage.BUILT),
        (fold, Stage.BUILT),
        (forward, Stage.BUILT),
        (partial(hoist, guards=guards), Stage.HOISTED),
        (drop_unused, Stage.READY),
        (partial(rename, guards=guards), Stage.READY),
    )

"""Passes that take a few rows one after the other, while these are in a cache: one visit of memory.

A pass that sums nothing but rows leaves numbers of which the next one, at a row, needs those of that row alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from optgen.ir.formula import Formula, any_of
from optgen.ir.nodes import Kind, Let, Reduce, Ref
from optgen.schedule.plan import PassPlan, Plan


@lru_cache(maxsize=128)
def goes_by_rows(plan: Plan) -> Formula:
    """The settings under which passes go by rows: they sum rows, of which rows and elements alone are computed."""
    sums = {r.name: r for item in plan.passes for r in item.reductions}
    rows = [plan.live[r.name] for r in sums.values() if r.reduce.over is Kind.ROW]
    others = [formula for name, formula in plan.arrays.items() if name not in sums and plan.kinds[name] is not Kind.ROW]
    reduced = [plan.live[let.name] for let in plan.program.lets if let.name in plan.live and _reduces_array(plan, let)]
    return any_of(rows) & ~any_of([*others, *reduced])


def _reduces_array(plan: Plan, let: Let) -> bool:
    """Check whether a binding reduces numbers of rows, columns or matrices."""
    return isinstance(let.expr, Reduce) and isinstance(let.expr.x, Ref) and plan.kinds[let.expr.x.name].is_array


def visits(plan: Plan, guards: Mapping[str, bool]) -> tuple[tuple[PassPlan, ...], ...]:
    """The passes that run under these guards, those together that go by rows, with the pass that ends them."""
    over_all = {reduction for _, reduction in plan.sums.values()}
    by_rows = goes_by_rows(plan).holds(guards)
    result: list[tuple[PassPlan, ...]] = []
    begun: tuple[PassPlan, ...] = ()
    for item in plan.live_passes(guards):
        begun = (*begun, item)
        over = {r.reduce.over for r in item.reductions if r.live.holds(guards)}
        apart = any(r.name in over_all for r in item.reductions)
        if apart or over != {Kind.ROW} or not by_rows:
            result.append(begun)
            begun = ()
    return tuple(result)

"""The pass of a sum, as the relation between sums has it, is the one in which the plan takes it."""

from __future__ import annotations

import pytest
from support.compiling import FAMILIES, stock_units
from support.plan_settings import settings

from optgen.schedule.sums import element_sums, sum_pass


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sum_is_taken_where_the_plan_takes_it(name: str) -> None:
    unit = stock_units()[name]
    for plan in unit.plans.values():
        sums = element_sums(plan)
        for guards in settings(unit.family):
            planned = {
                r.name: item.slot
                for item in plan.passes
                for r in item.reductions
                if item.live.holds(guards) and r.live.holds(guards)
            }
            found = {item.name: sum_pass(sums, item.name, plan.passes[-1].slot, guards) for item in sums.all}
            assert {n: number for n, number in found.items() if number is not None} == planned

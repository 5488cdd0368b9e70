"""The passes of a block, as the runtime has them, make what the plan says, under every setting."""

from __future__ import annotations

from collections import namedtuple

import optgen_optim
import pytest
from support.compiling import stock_rules
from support.plan_settings import settings

from optgen.runtime.rule import Rule

RULES = {cls.rule.name: cls.rule for cls in optgen_optim.CLASSES.values()}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_passes_make_what_the_plan_says(rule: Rule) -> None:
    planned = stock_rules()[rule.name]
    for guards in settings(planned.rule):
        flags = namedtuple("Flags", guards)(**guards)  # type: ignore[misc]
        for name, plan in planned.plans.items():
            block, over_all = rule.blocks[name], {reduction for _, reduction in plan.sums.values()}
            assert [item.function for item in block.passes] == [f"{name}_{item.name}" for item in plan.passes]
            assert [item.names for item in block.passes] == [tuple(r.name for r in p.reductions) for p in plan.passes]
            for item, own in zip(block.passes, plan.passes, strict=True):
                live = own.live.holds(guards)
                made = {r.name for r in own.reductions if live and (r.live.holds(guards) or r.name in over_all)}
                assert block.runs(item, flags) == live
                assert {partial.name for partial in block.taken(item, flags)} == made

"""No plan moves more bytes than its rule needs: those of `least.py`, which knows neither planner nor passes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from oracles.declared import load_spec
from support.catalogue import rows
from support.compiling import RULES, TESTED, compiled, stock_classes, stock_rules
from support.least import WEIGHT_BYTES, least_bytes
from support.plan_settings import SUMS_OVER_ALL, settings

from optgen.compiler import PlannedRule
from optgen.explanation import ClassInfo
from optgen.ir.guards import FIRST
from optgen.schedule.traffic import traffic

DECLARED = {**rows(), **{name: row for path in TESTED for name, row in load_spec(path).items()}}
NAMES = sorted(DECLARED)
SAMPLE = 100  # settings of each rule

RULE = """\
name: least
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
{states}blocks:
  step: |
"""
# What stands in a step, and its bytes worked out by hand: a float32 read or write is 4.
BY_HAND = {
    "param = param - lr * grad": 12,
    "first = first + grad\nparam = param - lr * first": 20,
    "first = first + grad\nparam = param - lr * grad": 20,
    "param = param - lr * sign(grad)": 12,
    # Both norms in one pass over grad, then 12.
    "param = param - lr * grad / (norm(grad) + absmax(grad))": 16,
    # A norm of what another norm scales: two passes over grad, then 12.
    "scaled = grad / norm(grad)\nparam = param - lr * scaled / absmax(scaled)": 20,
    # Neither norm waits for the other, though one needs param alone.
    "param = param - lr * norm(param) * grad / norm(grad)": 20,
    # Three norms in two passes, of which the first reads grad and the second param; the third norm needs both in one.
    "a = norm(grad)\nb = norm(param * a)\nparam = param - lr * b * norm(grad * param) * grad": 24,
    # Written without being read.
    "first = grad\nparam = param - lr * grad": 16,
}


def bound(planned: PlannedRule, truth: Mapping[str, bool], codecs: Mapping[str, Any]) -> float:
    step = planned.rule.blocks["step"]
    return least_bytes(step.program, step.active, truth, codecs)


def kinds_of_steps(info: ClassInfo) -> Iterator[dict[str, bool]]:
    """The conditions on the number of a step, for each step until they are as they were; but for those on the first."""
    of_steps = [guard for guard in info.whole_rule.guards.guards.values() if guard.about == "step"]
    first = {guard.name: False for guard in of_steps if guard.subject == FIRST}
    asked = [guard for guard in of_steps if guard.name not in first]
    periods = [int(g.subject) if g.subject.isdecimal() else DECLARED[info.name].default(g.subject) for g in asked]
    for number in range(1, math.lcm(*periods) + 1):
        yield first | {g.name: number % period == g.value for g, period in zip(asked, periods, strict=True)}


def test_these_are_all_classes() -> None:
    assert sorted(stock_classes()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_class_moves_the_least(name: str) -> None:
    for bits in stock_classes()[name].bits_choices:
        info = stock_classes()[name].stored_in(bits)
        step, codecs = info.whole_rule.blocks["step"], info.setting.codecs
        cycle = [{**info.setting.guards, **kind} for kind in kinds_of_steps(info)]
        needed = mean(least_bytes(step.program, step.active, truth, codecs) for truth in cycle)
        assert info.traffic == pytest.approx(needed, abs=1e-9), bits


@pytest.mark.parametrize("name", RULES)
def test_a_rule_moves_the_least_under_other_settings(name: str) -> None:
    """No state has one scale for the tensor, whose largest value the planner takes as late as it can.

    That is the least for every class as it is, but not where such a state is read for nothing else than its scale.
    """
    planned = stock_rules()[name]
    scales = [name for name, guard in planned.rule.guards.guards.items() if guard.about == "codec"]
    rows = [{**truth, **dict.fromkeys(scales, False)} for truth in settings(planned.rule)]
    usual = next(info for info in stock_classes().values() if info.rule == name).stored_in(32).setting
    assert rows
    for truth in random.Random(3).sample(rows, min(SAMPLE, len(rows))):
        moved = traffic(planned.plans["step"], replace(usual, guards=truth))
        least = bound(planned, truth, usual.codecs)
        again = WEIGHT_BYTES if name in SUMS_OVER_ALL else 0  # the parameter, for its norm
        assert least - 1e-9 <= moved <= least + again + 1e-9, truth


@pytest.mark.parametrize("step", BY_HAND)
def test_the_least_is_what_one_finds_by_hand(step: str, tmp_path: Path) -> None:
    rule = RULE.replace("{states}", "states:\n  first: {}\n" if "first" in step else "")
    planned = compiled(tmp_path, rule + "".join(f"    {line}\n" for line in step.split("\n")))
    truth = dict.fromkeys(planned.rule.guards.guards, False)
    assert bound(planned, truth, {"first": "fp32"}) == BY_HAND[step]


def test_a_pass_too_many_is_noticed() -> None:
    info = stock_classes()["LAMB"]
    step = info.plans["step"]
    longer = replace(step, passes=(step.passes[-2], *step.passes))
    more = traffic(longer, info.setting)
    assert more > bound(stock_rules()["lamb"], info.setting.guards, info.setting.codecs)

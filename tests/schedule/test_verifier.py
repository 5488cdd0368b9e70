"""Verifier of plans: it accepts those of all rules, and finds each violation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from numerics.programs import rule_of
from support.compiling import RULES, stock_rules
from support.plan_invariants import verify_plan

from optgen.compiler import check_specs
from optgen.diagnostics import Reporter, SpecError
from optgen.ir.nodes import Const, Ref
from optgen.ir.verifier import VerificationError
from optgen.schedule.plan import PassPlan, Plan


@pytest.mark.parametrize("name", RULES)
def test_holds_of_every_plan(name: str) -> None:
    for plan in stock_rules()[name].plans.values():
        verify_plan(plan)


def test_holds_of_random_rules(tmp_path: Path) -> None:
    held = 0
    for seed in range(10):
        rule = rule_of(seed)
        path = tmp_path / f"{rule.name}.yaml"
        path.write_text(rule.text)
        try:
            rules = check_specs([path], Reporter())
        except SpecError as error:
            assert "error[too-many-cases]" in str(error)
            continue
        for plan in rules[0].plans.values():
            verify_plan(plan)
            held += len(plan.passes) > 1
    assert held > 5


def changed(plan: Plan, at: int, change: Callable[[PassPlan], PassPlan]) -> Plan:
    passes = list(plan.passes)
    passes[at] = change(passes[at])
    return replace(plan, passes=tuple(passes))


def written_early(plan: Plan) -> Plan:
    return changed(plan, 0, lambda item: replace(item, writes=plan.passes[-1].writes))


def not_stored(plan: Plan) -> Plan:
    return changed(plan, -1, lambda item: replace(item, writes=item.writes[1:]))


def not_reduced(plan: Plan) -> Plan:
    return changed(plan, -2, lambda item: replace(item, reductions=item.reductions[1:]))


def reduced_again(plan: Plan) -> Plan:
    first = plan.passes[-2].reductions
    return changed(
        plan, 0, lambda item: replace(item, live=plan.passes[-2].live, reductions=(*item.reductions, *first))
    )


def reduced_last(plan: Plan) -> Plan:
    return changed(plan, -1, lambda item: replace(item, reductions=plan.passes[0].reductions))


def not_read(plan: Plan) -> Plan:
    return changed(plan, -1, lambda item: replace(item, reads=item.reads[1:]))


def not_computed(plan: Plan) -> Plan:
    return changed(plan, -1, lambda item: replace(item, elements=item.elements[1:]))


def not_prepared(plan: Plan) -> Plan:
    return changed(plan, -1, lambda item: replace(item, prepare=item.prepare[1:]))


def computed_too_late(plan: Plan) -> Plan:
    return changed(plan, -1, lambda item: replace(item, elements=item.elements[::-1]))


def read_by_the_host(plan: Plan) -> Plan:
    return replace(plan, host=(*plan.host, replace(plan.host[-1], expr=Ref("param"))))


def handed_over(plan: Plan) -> Plan:
    return replace(plan, values=(*plan.values, "param"))


def commit_of_elements(plan: Plan) -> Plan:
    return replace(plan, commits=(*plan.commits, replace(plan.passes[-1].writes[0], value=Const(0.0))))


BROKEN = {
    written_early: "reduce_0 writes",
    not_stored: "param is not stored",
    not_reduced: "is not made wherever it is needed",
    reduced_again: "is made in .* and in an earlier pass",
    reduced_last: "the last pass reduces",
    not_read: "reads param in apply, which does not have it",
    not_computed: "in apply, which does not have it",
    not_prepared: "in apply, which does not have it",
    computed_too_late: "in apply, which does not have it",
    read_by_the_host: "is computed by the host and reads param",
    handed_over: "param is handed over by the host",
    commit_of_elements: "param is stored twice",
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda function: function.__name__)
def test_finds_what_is_broken(broken: Callable[[Plan], Plan]) -> None:
    plan = stock_rules()["lamb"].plans["step"]
    with pytest.raises(VerificationError, match=BROKEN[broken]):
        verify_plan(broken(plan))

"""Passes and bytes of every rule, and that no plan has a pass too many under any setting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from support.compiling import RULES, compiled, step_plan, stock_classes, stock_rules
from support.plan_settings import MOST, SUMS_OVER_ALL, settings

from optgen.explanation import ClassInfo
from optgen.ir.formula import TRUE
from optgen.ir.nodes import Expr, Kind, MatrixCall, Program, Reduce, Ref, Select, children, refs
from optgen.passes.drop_unused import drop_unused
from optgen.schedule.plan import Plan
from optgen.schedule.planner import plan
from optgen.schedule.traffic import traffic


def of_class(name: str) -> ClassInfo:
    return stock_classes()[name]


# class: passes, bytes of states, bytes a step
FIGURES = {
    "AdamW": (1, 8.0, 28.0),
    "AdamW32bit": (1, 8.0, 28.0),
    "AdamW8bit": (1, 2.03125, 16.03125),
    "PagedAdamW8bit": (1, 2.03125, 16.03125),
    "Adam": (1, 8.0, 28.0),
    "LAMB": (2, 8.0, 44.0),
    "LAMB8bit": (2, 2.0, 26.0),
    "LARS": (2, 4.0, 32.0),
    "LARS8bit": (2, 1.0, 23.0),
    "PytorchLARS": (2, 0.0, 20.0),
    "StableAdamW": (2, 8.0, 36.0),
    "Adafactor": (3, 0.0, 24.0),
    "NovoGrad": (2, 4.0, 24.0),
    "Prodigy": (2, None, None),
    "RAdam": (1, 8.0, 28.0),
    "AdEMAMix": (1, 12.0, 36.0),
    "ScheduleFreeAdamW": (1, 8.0, 28.0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name: str) -> None:
    passes, states, moved = FIGURES[name]
    info = of_class(name)
    assert info.passes == passes
    if states is not None:
        assert (info.state_bytes, info.traffic) == (states, moved)


def live(name: str, **guards: bool) -> int:
    info = of_class(name)
    setting = dict(info.setting.guards)
    assert set(guards) <= set(setting)
    return len(info.plans["step"].live_passes(setting | guards))


def test_percentile_clipping_takes_a_pass_of_its_own() -> None:
    assert live("AdamW", percentile_clipping_below_100=True) == 2
    assert live("LAMB", percentile_clipping_below_100=True) == 3
    assert live("LAMB8bit", percentile_clipping_below_100=True) == 3


def moved(name: str, **guards: bool) -> float:
    """Bytes a parameter that a step moves under a setting."""
    info = of_class(name)
    assert set(guards) <= set(info.setting.guards)
    setting = replace(info.setting, guards={**info.setting.guards, **guards})
    return traffic(info.plans["step"], setting)


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "Prodigy"])
def test_a_norm_of_all_gradients_is_a_pass_over_them_alone(name: str) -> None:
    """Nothing but gradients is read once more, whatever else a rule reduces; all that follows waits for the norm."""
    passes, _, bytes_moved = FIGURES[name]
    assert live(name, max_grad_norm_above_0=True) == passes + 1
    assert bytes_moved is not None
    assert moved(name, max_grad_norm_above_0=True) == bytes_moved + 4


def test_a_cautious_update_is_a_pass_over_what_it_follows_from() -> None:
    """The share of elements that agree: the gradient and states are read once more; norms wait for it."""
    for name, parts in {"AdamW": 4 + 8, "Adam": 4 + 4 + 8, "LAMB": 4 + 4 + 8, "LARS": 4 + 4 + 4}.items():
        passes, _, bytes_moved = FIGURES[name]
        own = {"decoupled_weight_decay": False} if name == "Adam" else {}
        assert live(name, cautious=True, **own) == passes + 1
        assert bytes_moved is not None
        assert moved(name, cautious=True, **own) == bytes_moved + parts


def test_clamps_of_the_trust_ratio_cost_nothing() -> None:
    clamps = {"min_trust_ratio_above_0": True, "max_trust_ratio_above_0": True}
    assert live("LAMB", **clamps) == 2
    assert moved("LAMB", **clamps) == moved("LAMB")


def test_a_tensorwise_scale_takes_a_pass_that_others_share() -> None:
    scales = {"exp_avg_tensorwise": True, "exp_avg_sq_tensorwise": True}
    assert live("AdamW", **scales) == 2
    assert live("AdamW", **scales, max_unorm_above_0=True) == 2
    assert live("LAMB", **scales) == 2


def test_methods_are_one_pass() -> None:
    plans = of_class("ScheduleFreeAdamW").plans
    assert [len(plans[name].passes) for name in ("train", "eval")] == [1, 1]


def specialised(program: Program, truth: Mapping[str, bool]) -> Program:
    """The program under one setting: every choice made, what does not exist left out."""

    def without(expr: Expr) -> Expr:
        match expr:
            case Select(formula=formula, then=then, other=other):
                return without(then if formula.holds(truth) else other)
        parts = tuple(without(child) for child in children(expr))
        if isinstance(expr, Reduce):
            return replace(expr, x=parts[0])
        if isinstance(expr, MatrixCall):
            return replace(expr, x=parts[0], settings=parts[1:])
        return replace(expr, args=parts) if parts else expr  # type: ignore[call-arg]

    outputs = {n: without(v) for n, v in program.outputs.items() if program.writes[n].holds(truth)}
    inputs = {n: replace(i, exists=TRUE) for n, i in program.inputs.items() if i.exists.holds(truth)}
    lets = tuple(replace(let, expr=without(let.expr)) for let in program.lets)
    return drop_unused(Program({**program.inputs, **inputs}, lets, outputs, dict.fromkeys(outputs, TRUE)))


def check_setting(name: str, it: Plan, truth: Mapping[str, bool]) -> None:
    passes = it.live_passes(truth)
    alone = plan(specialised(it.program, truth))
    longer = len(passes) - len(alone.passes)
    assert longer == 0 or (it.sums and longer == 1 and name in SUMS_OVER_ALL)
    made: set[str] = set()
    kinds = it.kinds
    for number, item in enumerate(passes):
        last = number == len(passes) - 1
        assert last == (item.name == "apply")
        assert last or not item.writes
        assert not last or not item.reductions
        known = made | set(it.program.inputs) | {let.name for let in it.host}
        known |= {total for total, (_, part) in it.sums.items() if part in made}
        for step in (*item.prepare, *item.elements):
            if step.live.holds(truth):
                for name in reads(step.let.expr, truth):
                    assert name in known, f"{step.let.name} reads {name} in {item.name}"
                    if name in it.program.inputs and it.program.inputs[name].role == "state":
                        assert it.program.inputs[name].exists.holds(truth)
                known.add(step.let.name)
        for write in item.writes:
            if write.live.holds(truth):
                assert set(reads(write.value, truth)) <= known
        new = [r for r in item.reductions if r.live.holds(truth)]
        for reduction in new:
            assert set(refs(reduction.reduce.x)) <= known
            assert isinstance(reduction.reduce.x, Ref)
            assert kinds[reduction.reduce.x.name] is Kind.ELEMENT
        names = [r.name for r in new]
        assert not made & set(names), "a reduction is made twice"
        assert last or names, "a pass that reduces nothing is run"
        made |= set(names)


def reads(expr: Expr, truth: Mapping[str, bool]) -> Iterator[str]:
    match expr:
        case Ref(name=name):
            yield name
        case Select(formula=formula, then=then, other=other):
            yield from reads(then if formula.holds(truth) else other, truth)
        case _:
            for child in children(expr):
                yield from reads(child, truth)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "most", [MOST // 4, pytest.param(MOST, marks=pytest.mark.slow), pytest.param(10 * MOST, marks=pytest.mark.full)]
)
def test_no_setting_takes_a_pass_too_many(name: str, most: int) -> None:
    planned = stock_rules()[name]
    count = 0
    for truth in settings(planned.rule, most):
        for it in planned.plans.values():
            check_setting(name, it, truth)
        count += 1
    assert count > min(most // 8, 10)


@pytest.mark.parametrize("name", RULES)
def test_only_the_last_pass_writes(name: str) -> None:
    for it in stock_rules()[name].plans.values():
        assert [bool(p.writes) for p in it.passes] == [False] * (len(it.passes) - 1) + [bool(it.passes[-1].writes)]
        assert it.passes[-1].name == "apply"
        assert it.passes[-1].live == TRUE


SCALED_NORM = """\
name: scaled_norm
hyperparameters:
  lr: {default: 1e-3, range: "[0, inf)"}
states:
  size: {shape: tensor}
blocks:
  step: |
    update = grad
    if ndim >= 2:
        factor = rsqrt(1 + sum(grad * grad, over=row))
        size = norm(grad * factor)
  apply: |
    param = param - lr * update
"""


def test_rows_that_a_stored_norm_was_of_are_not_computed_again(tmp_path: Path) -> None:
    last_but_one, last = step_plan(compiled(tmp_path, SCALED_NORM)).passes[-2:]
    assert "size_squares" in {reduction.name for reduction in last_but_one.reductions}
    assert "factor" in {step.let.name for step in last_but_one.prepare}
    assert "factor" not in {step.let.name for step in last.prepare}

"""Statements of some steps only: when they run, what the other steps leave unread, and what else knows of the step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compiling import ROOT, write_spec
from torch import Tensor, nn

import optgen
from optgen.compiler import compile_specs
from optgen.explanation import ClassInfo
from optgen.schedule.traffic import traffic
from runtime.training import gradients, make_params, run, same, saved, snapshot, train

SPEC = ROOT / "tests" / "specs" / "some_steps.yaml"
SHAPES = ((40, 30), (7,))


@cache
def cls(name: str = "SomeSteps") -> Any:
    return getattr(optgen.load(SPEC), name)


def new(target: str, **settings: Any) -> tuple[Any, list[nn.Parameter]]:
    params = make_params(shapes=SHAPES)
    return cls()(params, target=target, **settings), params


def by_hand(params: Sequence[Tensor], steps: int, period: int = 5, lr: float = 0.01) -> list[Tensor]:
    """The rule of the spec in float64, written for one parameter at a time."""
    result = []
    for position, param in enumerate(params):
        value = param.detach().double()
        exp_avg, square, slow, size = torch.zeros_like(value), torch.zeros_like(value), value.clone(), 0.0
        length = torch.zeros(value.shape[:-1], dtype=torch.float64)
        for step in range(1, steps + 1):
            grad = gradients(step, SHAPES)[position].double()
            exp_avg = 0.9 * exp_avg + 0.1 * grad
            if step % 3 == 1:
                square = torch.maximum(square + 0.0005 * grad.abs(), 0.999 * square)
            else:
                square = 0.999 * square + 0.001 * grad**2
            if step % 2 == 0:
                size, length = exp_avg.norm(), (grad**2).mean(-1)
            value = value - lr * exp_avg / (square.sqrt() + 1e-8) / (1 + size) * (1 + step % 2)
            if value.dim() > 1:
                value = value - lr * grad / (1 + length[:, None])
            if step % period == 0:
                slow = slow + 0.5 * (value - slow)
                value = slow.clone()
        result.append(value)
    return result


def test_it_is_the_rule(target: str) -> None:
    opt, params = new(target)
    expected = by_hand(params, 12)
    run(opt, params, range(1, 13))
    for param, value in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach().double(), value, rtol=1e-4, atol=1e-6)


def test_groups_have_settings_of_their_own(target: str) -> None:
    params = make_params(shapes=SHAPES)
    first, second = {"every_so_many": 2, "lr": 0.02}, {"every_so_many": 3, "lr": 0.005}
    opt = cls()([{"params": params[:1], **first}, {"params": params[1:], **second}], target=target)
    expected = [by_hand(params, 7, 2, 0.02)[0], by_hand(params, 7, 3, 0.005)[1]]
    run(opt, params, range(1, 8))
    for param, value in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach().double(), value, rtol=1e-4, atol=1e-6)


def test_the_reference_follows() -> None:
    _, params = new("torch")
    expected = by_hand(params, 7)
    reference, state = optgen.reference(SPEC), None
    values: Sequence[Tensor] = [param.detach() for param in params]
    for step in range(1, 8):
        values, state = reference.step(values, gradients(step, SHAPES), state)
    for ours, value in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-9, atol=1e-12)


def test_bytes() -> None:
    """AdamW's 28; every second step a norm of 8 more, every fifth the slow weights, read and written."""
    info = compile_specs([SPEC], None).classes[0]
    assert info.traffic == pytest.approx(28 + 8 / 2 + 8 / 5)
    plan, guards = info.plans["step"], dict(info.setting.guards)
    kinds = {key: traffic(plan, setting_with(info, key)) for key in ((False, False), (True, False), (False, True))}
    assert kinds == {(False, False): 28, (True, False): 36, (False, True): 36}
    assert len(plan.live_passes(guards | {"every_2": False})) == 1
    assert len(plan.live_passes(guards | {"every_2": True})) == 2


def setting_with(info: ClassInfo, key: tuple[bool, bool]) -> Any:
    guards = {**info.setting.guards, "every_2": key[0], "every_every_so_many": key[1]}
    return replace(info.setting, guards=guards)


def test_what_other_steps_do_not_touch_is_not_read(target: str) -> None:
    """Neither read nor written: states may hold anything meanwhile."""
    opt, params = new(target)
    plain, theirs = new(target)
    run(opt, params, range(1, 6))
    run(plain, theirs, range(1, 6))
    kept = [opt.state[param]["slow"].clone() for param in params]
    for param in params:
        opt.state[param]["slow"].fill_(torch.nan)
    run(opt, params, range(6, 10))
    assert all(opt.state[param]["slow"].isnan().all() for param in params)
    for param, value in zip(params, kept, strict=True):
        opt.state[param]["slow"].copy_(value)
    run(opt, params, range(10, 13))
    run(plain, theirs, range(6, 13))
    assert same(snapshot(opt, params), snapshot(plain, theirs))


def test_engines_of_the_kinds_of_steps_are_kept(target: str) -> None:
    opt, params = new(target)
    run(opt, params, range(1, 31))
    kept = opt._kept.of_all
    run(opt, params, range(31, 61))
    assert {id(each) for each in opt._kept.of_all} == {id(each) for each in kept}


def test_every_parameter_has_its_own_count(target: str) -> None:
    """A parameter that comes later is at another step than the others."""
    opt, params = new(target)
    alone, theirs = new(target)
    for step in range(1, 13):
        params[0].grad = gradients(step, SHAPES)[0]
        params[1].grad = gradients(step, SHAPES)[1] if step > 3 else None
        theirs[0].grad, theirs[1].grad = params[0].grad, None
        opt.step()
        alone.step()
    late, last = new(target)
    for step in range(4, 13):
        last[0].grad, last[1].grad = None, gradients(step, SHAPES)[1]
        late.step()
    assert torch.equal(params[0], theirs[0])
    assert torch.equal(params[1], last[1])


def test_a_checkpoint_in_the_middle(target: str) -> None:
    opt, params = new(target)
    run(opt, params, range(1, 9))
    again, theirs = new(target)
    with torch.no_grad():
        for mine, param in zip(theirs, params, strict=True):
            mine.copy_(param)
    again.load_state_dict(saved(opt))
    run(opt, params, range(9, 16))
    run(again, theirs, range(9, 16))
    assert same(snapshot(opt, params), snapshot(again, theirs))


def test_a_count_that_is_set(target: str) -> None:
    """The next step is the one after what the state says."""
    opt, params = new(target, every_so_many=4)
    run(opt, params, range(1, 3))
    for param in params:
        opt.state[param]["step"].fill_(7)
    before = [opt.state[param]["slow"].clone() for param in params]
    run(opt, params, range(3, 4))
    assert all(not torch.equal(opt.state[p]["slow"], old) for p, old in zip(params, before, strict=True))


def test_the_period_is_a_setting_like_others(target: str) -> None:
    opt, params = new(target, every_so_many=3)
    expected = by_hand(params, 9, period=3)
    run(opt, params, range(1, 10))
    for param, value in zip(params, expected, strict=True):
        torch.testing.assert_close(param.detach().double(), value, rtol=1e-4, atol=1e-6)
    opt.param_groups[0]["every_so_many"] = 10
    slow = [opt.state[param]["slow"] for param in params]
    run(opt, params, range(10, 11))
    assert all(torch.equal(param, value) for param, value in zip(params, slow, strict=True))
    with pytest.raises(ValueError, match="every_so_many"):
        opt.param_groups[0]["every_so_many"] = 0
        run(opt, params, range(11, 12))


def test_fused_backward(target: str) -> None:
    opt, params = new(target)
    fused, theirs = new(target, fused_backward=True)
    for step in range(1, 13):
        for param, grad in zip(params, gradients(step, SHAPES), strict=True):
            param.grad = grad
        opt.step()
        sum((param * grad).sum() for param, grad in zip(theirs, gradients(step, SHAPES), strict=True)).backward()
        fused.step()
    ours, other = snapshot(opt, params), snapshot(fused, theirs)
    assert same((ours["params"], ours["states"]), (other["params"], other["states"]))


def test_a_skipped_step_is_none(target: str) -> None:
    """A block of every few steps waits for the steps that are taken."""
    opt, params = new(target)
    plain, theirs = new(target)
    taken = 0
    for step in range(1, 17):
        for param, grad in zip(params, gradients(step, SHAPES), strict=True):
            param.grad = grad
        opt.found_inf = torch.tensor(float(step % 4 == 1))
        opt.step()
        if step % 4 != 1:
            taken += 1
            run(plain, theirs, range(step, step + 1))
    assert {int(opt.state[param]["step"]) for param in params} == {taken}
    assert same(snapshot(opt, params), snapshot(plain, theirs))


def test_a_copy_of_the_optimizer(target: str) -> None:
    opt, params = new(target)
    run(opt, params, range(1, 5))
    other = copy.deepcopy(opt)
    theirs = other.param_groups[0]["params"]
    run(opt, params, range(5, 11))
    run(other, theirs, range(5, 11))
    assert same(snapshot(opt, params), snapshot(other, theirs))


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled() -> None:
    opt, params = new("torch")
    plain, theirs = new("torch")
    step = torch.compile(opt.step, backend="eager")
    for number in range(1, 11):
        for param, grad in zip(params, gradients(number, SHAPES), strict=True):
            param.grad = grad
        step()
    run(plain, theirs, range(1, 11))
    assert same(snapshot(opt, params), snapshot(plain, theirs))


METHOD = """\
name: turning
hyperparameters: {lr: 1e-2}
states: {slow: {init: param, codecs: [fp32]}}
blocks:
  step: |
    param = param - lr * grad
methods:
  turn:
    block: |
      if step % 2 == 1:
          slow = param
      else:
          slow = -param
"""


def test_a_method_goes_by_the_steps_so_far(tmp_path: Path, target: str) -> None:
    param = nn.Parameter(torch.ones(5))
    opt = optgen.load(write_spec(tmp_path, METHOD)).Turning([param], target=target)
    for step in range(1, 5):
        train(opt, [param], step, step)
        opt.turn()
        assert torch.equal(opt.state[param]["slow"], param if step % 2 else -param)


FIRST = """
name: first_moves_all
hyperparameters: {lr: 1e-2}
blocks:
  step: |
    if step == 1:
        param = param - grad
    elif every(2):
        param = param - lr * grad
"""


def test_the_first_step_alone(target: str, tmp_path: Path) -> None:
    path = tmp_path / "first_moves_all.yaml"
    path.write_text(FIRST)
    params = make_params(shapes=SHAPES)
    starts = [param.detach().clone() for param in params]
    run(optgen.load(path).FirstMovesAll(params, target=target), params, range(1, 6))
    for position, (param, value) in enumerate(zip(params, starts, strict=True)):
        for step, rate in ((1, 1.0), (2, 0.01), (4, 0.01)):
            value = value.double() - rate * gradients(step, SHAPES)[position].double()
        torch.testing.assert_close(param.detach().double(), value, rtol=1e-5, atol=1e-6)

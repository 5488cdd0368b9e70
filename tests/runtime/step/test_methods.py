"""Rules with several blocks and with states of groups and of the optimizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import optgen
from runtime.training import make_params, same, saved, snapshot, train

SPECS = Path(__file__).parents[2] / "specs"
SHAPES = ((20, 30), (7,))


@cache
def module(name: str) -> ModuleType:
    return optgen.load(SPECS / f"{name}.yaml")


def schedule_free(params: Any, **settings: Any) -> Any:
    return module("schedule_free_adamw").ScheduleFreeAdamW(params, **settings)


def prodigy(params: Any, **settings: Any) -> Any:
    return module("prodigy").Prodigy(params, **settings)


def descend(opt: Any, params: Any, steps: int) -> None:
    """Towards 3, by gradients that agree with each other, so that Prodigy's estimate grows."""
    for _ in range(steps):
        for param in params:
            param.grad = param.detach() - 3
        opt.step()


def test_eval_and_train_go_back_and_forth(target) -> None:
    params = make_params(shapes=SHAPES)
    opt = schedule_free(params, target=target)
    opt.train()
    train(opt, params, 1, 3)
    at_y = [p.detach().clone() for p in params]
    opt.eval()
    at_x = [p.detach().clone() for p in params]
    opt.eval()
    assert same(at_x, [p.detach() for p in params]), "twice is as once"
    assert not torch.equal(at_x[0], at_y[0])
    opt.train()
    opt.train()
    for param, value in zip(params, at_y, strict=True):
        torch.testing.assert_close(param.detach(), value, rtol=1e-5, atol=1e-6)
    train(opt, params, 4, 5)
    assert opt.engines() == {target: 2}


def test_a_step_in_eval_mode_is_refused(target) -> None:
    params = make_params(shapes=SHAPES)
    opt = schedule_free(params, target=target)
    message = r"ScheduleFreeAdamW: call train\(\) before step\(\)"
    with pytest.raises(RuntimeError, match=message):
        train(opt, params, 1, 1)
    opt.train()
    train(opt, params, 1, 2)
    opt.eval()
    before = snapshot(opt, params)
    with pytest.raises(RuntimeError, match=message):
        train(opt, params, 3, 3)
    assert same(before, snapshot(opt, params))


@pytest.mark.parametrize("in_eval", [False, True], ids=["train", "eval"])
def test_states_of_groups_are_saved(in_eval, target) -> None:
    def build(params: Any) -> Any:
        return schedule_free([{"params": params[:1], "lr": 0.1}, {"params": params[1:], "r": 1.0}], target=target)

    params, again = make_params(shapes=SHAPES), make_params(shapes=SHAPES)
    opt = build(params)
    opt.train()
    train(opt, params, 1, 3)
    if in_eval:
        opt.eval()
    checkpoint = saved(opt)
    groups = checkpoint["param_groups"]
    assert [group["k"] for group in groups] == [3, 3]
    assert groups[0]["weight_sum"] != groups[1]["weight_sum"]
    assert {group["train_mode"] for group in groups} == {0.0 if in_eval else 1.0}
    other = build(again)
    with torch.no_grad():
        for param, value in zip(again, params, strict=True):
            param.copy_(value)
    other.load_state_dict(checkpoint)
    for each, own in ((opt, params), (other, again)):
        each.train()
        train(each, own, 4, 6)
        each.eval()
    assert same(snapshot(opt, params), snapshot(other, again))


def test_a_group_added_later_has_states_of_its_own(target) -> None:
    params = make_params(shapes=SHAPES)
    opt = schedule_free(params[:1], target=target)
    opt.train()
    train(opt, params[:1], 1, 2)
    opt.add_param_group({"params": params[1:]})
    assert [group["k"] for group in opt.param_groups] == [2, 0]
    with pytest.raises(RuntimeError, match=r"call train\(\)"):
        train(opt, params, 3, 3)
    opt.train()
    train(opt, params, 3, 3)
    assert [group["k"] for group in opt.param_groups] == [3, 1]


def test_methods_without_gradients_and_states(target) -> None:
    params = make_params(shapes=SHAPES)
    opt = schedule_free(params, target=target)
    before = [p.detach().clone() for p in params]
    opt.train()
    assert opt.param_groups[0]["train_mode"] == 1
    params[0].grad = torch.ones(params[0].shape)
    opt.step()
    for param in params:
        param.grad = None
    opt.eval()
    assert not torch.equal(params[0], before[0])
    assert torch.equal(params[1], before[1])
    assert not opt.state.get(params[1])


def test_a_state_of_the_optimizer_is_one_for_all_groups(target) -> None:
    together, apart = make_params(shapes=SHAPES), make_params(shapes=SHAPES)
    one = prodigy(together, target=target)
    two = prodigy([{"params": apart[:1]}, {"params": apart[1:]}], target=target)
    descend(one, together, 20)
    descend(two, apart, 20)
    assert same(snapshot(one, together)["params"], snapshot(two, apart)["params"])
    d = [group["d"] for group in two.param_groups]
    assert d[0] == d[1] == one.param_groups[0]["d"] > 1e-6

    two.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    assert two.param_groups[2]["d"] == d[0]


def test_a_state_of_the_optimizer_is_saved(target) -> None:
    params, again = make_params(shapes=SHAPES), make_params(shapes=SHAPES)
    opt, other = prodigy(params, target=target), prodigy(again, target=target)
    descend(opt, params, 15)
    with torch.no_grad():
        for param, value in zip(again, params, strict=True):
            param.copy_(value)
    other.load_state_dict(saved(opt))
    assert other.param_groups[0]["d"] == opt.param_groups[0]["d"] > 1e-6
    descend(opt, params, 5)
    descend(other, again, 5)
    assert same(snapshot(opt, params), snapshot(other, again))


def test_settings_of_the_optimizer_cannot_differ_by_group() -> None:
    params = make_params(shapes=SHAPES)
    with pytest.raises(ValueError, match="Prodigy: d0 is one number for the optimizer and cannot differ by group"):
        prodigy([{"params": params[:1], "d0": 1e-3}, {"params": params[1:]}])
    agreed = prodigy([{"params": params[:1], "d0": 1e-3}, {"params": params[1:], "d0": 1e-3}])
    assert [group["d"] for group in agreed.param_groups] == [1e-3, 1e-3]
    agreed.param_groups[1]["d0"] = 1e-2
    for param in params:
        param.grad = torch.ones_like(param)
    before = snapshot(agreed, params)
    with pytest.raises(ValueError, match=r"groups have 0\.001 and 0\.01; give all of them the same d0"):
        agreed.step()
    assert same(before, snapshot(agreed, params))
    opt = prodigy(params, d0=1e-3, target="torch")
    assert opt.param_groups[0]["d"] == 1e-3
    with pytest.raises(ValueError, match="cannot differ by parameter"):
        opt.override(params[0], betas=(0.5, 0.5))
    opt.override(params[0], lr=0.5)
    train(opt, params, 1, 2)

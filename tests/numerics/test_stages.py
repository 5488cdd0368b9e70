"""Stages put on rules, on every target against the oracle: around the rule's blocks, in their order."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.declared import SPECS, load_on
from oracles.spec_oracle import SpecOracle

import optgen
from numerics.harness import Duel, targeted
from numerics.programs import PARAMETERS

STAGES = Path(__file__).parents[2] / "examples" / "stages"
CASES: list[tuple[str, str, Sequence[str], dict[str, Any]]] = [
    ("adam", "AdamW", ["lookahead"], {"lr": 0.01, "period": 2}),
    ("adam", "AdamW8bit", ["lookahead"], {"lr": 0.01, "period": 3, "min_8bit_size": 0}),
    ("adam", "AdamW8bit", ["agreement", "homesick"], {"lr": 0.01, "min_8bit_size": 0, "rescale": True, "rest": 0.25}),
    ("adam", "Adam", ["homesick", "agreement"], {"lr": 0.01, "codec": "bf16", "homing": 0.5, "max_unorm": 0.01}),
    ("lion", "Lion", ["centralize", "agreement", "lookahead"], {"lr": 0.01, "period": 2, "max_grad_norm": 1.0}),
    ("sgd", "SGD", ["centralize"], {"lr": 0.1, "momentum": 0.9, "cautious": True}),
    ("adadelta", "Adadelta", ["centralize", "lookahead"], {"lr": 0.1, "period": 2}),
    ("schedule_free_adamw", "AdamWScheduleFree", ["centralize", "lookahead"], {"lr": 0.01, "period": 2}),
]
DRAWN = [shape for shape in PARAMETERS if shape]


def duel(rule: str, name: str, stages: Sequence[str], target: str, **settings: Any) -> Duel:
    """A class of a rule with stages on it beside the oracle."""
    paths = [STAGES / f"{stage}.yaml" for stage in stages]
    whole = "".join(stage.capitalize() for stage in stages) + name
    module = optgen.load(*paths, onto=rule)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in DRAWN]
    row = load_on(SPECS / f"{rule}.yaml", paths)[whole]
    oracle = SpecOracle(row, params, settings, [torch.float32] * len(params))
    optimizer = targeted(getattr(module, whole), params, target, **settings)
    return Duel(params, optimizer, oracle, [str(shape) for shape in DRAWN], settled=False)


def steps(it: Duel, count: int) -> None:
    if hasattr(it.opt, "train"):
        it.call("train", [None] * len(DRAWN))
    for _ in range(count):
        it.step([torch.randn(shape) for shape in DRAWN])


@pytest.mark.parametrize(("rule", "name", "stages", "settings"), CASES, ids=lambda value: str(value)[:40])
def test_stages_on_rules(rule: str, name: str, stages: Sequence[str], settings: dict[str, Any], target: str) -> None:
    steps(duel(rule, name, stages, target, **settings), 4)


RULE = """\
name: plain
hyperparameters: {lr: 0.1}
states: {exp_avg}
functions: |
  def scaled(x):
      return x / 2
blocks:
  step: |
    ratio = norm(grad)
    exp_avg = 0.5 * exp_avg + scaled(grad)
    update = exp_avg / (ratio + 1)
  apply: |
    param = param - lr * update * (1 + 0 * ratio)
methods:
  measure:
    grad: true
    block: |
      exp_avg = exp_avg + grad
"""
STAGE = """\
stage: own_names
states: {seen: {init: abs(grad)}}
functions: |
  def scaled(x):
      return 3 * x
blocks:
  grad: |
    ratio = max(grad)
    seen = seen + abs(grad)
    grad = scaled(grad)
  update: |
    update = update / (1 + ratio * ratio)
  apply: |
    param = param - 0.01 * ratio * sign(param) * min(abs(grad), seen)
"""


def test_names_of_a_stage_are_its_own(tmp_path: Path, target: str) -> None:
    """Its names and functions are others than those of the rule, and known in all of its blocks."""
    (tmp_path / "plain.yaml").write_text(RULE)
    (tmp_path / "own_names.yaml").write_text(STAGE)
    cls = optgen.load(tmp_path / "own_names.yaml", onto=tmp_path / "plain.yaml").OwnNamesPlain
    param = torch.nn.Parameter(torch.randn(6, 5))
    optimizer, expected = cls([param], target=target), param.detach().double()
    exp_avg, seen = torch.zeros(6, 5).double(), None
    for _ in range(3):
        param.grad = torch.randn(6, 5)
        grad = param.grad.double()
        optimizer.step()
        ratio = grad.max()
        seen = (grad.abs() if seen is None else seen) + grad.abs()
        exp_avg = 0.5 * exp_avg + 3 * grad / 2
        expected = expected - 0.1 * exp_avg / ((3 * grad).norm() + 1) / (1 + ratio * ratio)
        expected = expected - 0.01 * ratio * expected.sign() * torch.minimum((3 * grad).abs(), seen)
        torch.testing.assert_close(param.detach().double(), expected, rtol=1e-5, atol=1e-6)
    optimizer.measure()  # the gradient passes through the stage, whose states stay
    exp_avg = exp_avg + 3 * grad
    torch.testing.assert_close(optimizer.state[param]["exp_avg"].double(), exp_avg, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.state[param]["seen"].double(), seen, rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_from_a_checkpoint(target: str) -> None:
    """With 8-bit states, and in the middle of a period."""
    module = optgen.load(STAGES / "lookahead.yaml", onto="adamw")
    grads = [torch.randn(100, 50) for _ in range(7)]

    def new() -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        param = torch.nn.Parameter(torch.ones(100, 50))
        return param, module.LookaheadAdamW8bit([param], lr=0.1, period=3, target=target)

    whole, optimizer = new()
    for grad in grads:
        whole.grad = grad.clone()
        optimizer.step()
    first, stopped = new()
    for grad in grads[:4]:
        first.grad = grad.clone()
        stopped.step()
    second, resumed = new()
    with torch.no_grad():
        second.copy_(first)
    resumed.load_state_dict(stopped.state_dict())
    for grad in grads[4:]:
        second.grad = grad.clone()
        resumed.step()
    assert torch.equal(whole, second)
    assert resumed.state[second]["exp_avg"].dtype == torch.uint8


def test_a_checkpoint_of_the_rule_alone_is_refused() -> None:
    module = optgen.load(STAGES / "lookahead.yaml", onto="adamw")
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    plain = importlib.import_module("optgen_optim").AdamW([param], target="torch")
    plain.step()
    with pytest.raises(ValueError, match="lookahead_adam"):
        module.LookaheadAdamW([param], target="torch").load_state_dict(plain.state_dict())


def test_the_reference_has_stages_too() -> None:
    reference = optgen.reference([STAGES / "centralize.yaml", STAGES / "lookahead.yaml"], onto="sgd", lr=0.5, period=1)
    (param,), state = reference.step([torch.zeros(2, 2)], [torch.tensor([[1.0, 3.0], [2.0, 2.0]])])
    assert param.tolist() == [[0.25, -0.25], [0.0, 0.0]]
    assert set(state.params[0]) == {"step", "slow"}

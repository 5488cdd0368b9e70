"""Methods that read gradients, called between steps."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import optgen
from runtime.training import make_params, same, snapshot

SPEC = """\
name: curvature
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)"}
  decay: {default: 0.5, range: "[0, 1)"}
states:
  square: {range: unsigned}
  calls: {shape: group}
blocks:
  step: |
    param = param - lr * grad / (1 + sqrt(square))
methods:
  measure:
    grad: true
    block: |
      square = decay * square + (1 - decay) * grad * grad
      calls = calls + 1
"""
SHAPES = ((20, 30), (7,))


@cache
def module(folder: Path) -> ModuleType:
    path = folder / "curvature.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return optgen.load(path)


@pytest.fixture(name="build")
def build_fixture(tmp_path_factory: pytest.TempPathFactory, target: str) -> Any:
    folder = tmp_path_factory.getbasetemp() / "curvature"
    folder.mkdir(exist_ok=True)
    return lambda params, **settings: module(folder).Curvature(params, target=target, **settings)


def give(params: Any, value: float) -> None:
    for param in params:
        param.grad = torch.full_like(param, value)


def test_it_takes_gradients_and_counts_no_step(build: Any) -> None:
    params = make_params(shapes=SHAPES)
    before = [p.detach().clone() for p in params]
    opt = build(params)
    give(params, 2.0)
    opt.measure()
    give(params, 4.0)
    opt.measure()
    assert same(before, [p.detach() for p in params])
    for param in params:
        assert float(opt.state[param]["step"]) == 0
        assert torch.equal(opt.state[param]["square"], torch.full_like(param, 9.0))  # (0 + 4) / 2, then (2 + 16) / 2
    assert opt.param_groups[0]["calls"] == 2
    give(params, 1.0)
    opt.step()
    for param, old in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), old - 0.1 / 4)
        assert float(opt.state[param]["step"]) == 1


def test_a_parameter_without_gradient_is_left_out(build: Any) -> None:
    params = make_params(shapes=SHAPES)
    opt = build(params)
    opt.measure()
    assert not opt.state
    assert opt.param_groups[0]["calls"] == 0
    params[0].grad = torch.ones_like(params[0])
    opt.measure()
    assert params[0] in opt.state
    assert params[1] not in opt.state


def test_options_of_gradients_act(build: Any) -> None:
    params = make_params(shapes=((300,),))
    opt = build(params, nonfinite="skip")
    params[0].grad = torch.full_like(params[0], 2.0)
    params[0].grad[7] = torch.nan
    opt.grad_scale = 0.5
    opt.measure()
    expected = torch.full((300,), 8.0)
    expected[7] = 0.0
    assert torch.equal(opt.state[params[0]]["square"], expected)


def test_found_inf_skips_it(build: Any) -> None:
    params = make_params(shapes=SHAPES)
    opt = build(params)
    give(params, 1.0)
    opt.measure()
    before = snapshot(opt, params)
    opt.found_inf = torch.tensor(1.0)
    opt.measure()
    assert same(before, snapshot(opt, params))


def test_the_window_of_norms_is_that_of_steps(build: Any) -> None:
    """A method's gradient is clipped by the norms of steps, and leaves no norm of its own."""
    params = make_params(shapes=((100,),))
    opt = build(params, percentile_clipping=50)
    give(params, 1.0)
    opt.step()
    window = opt.state[params[0]]["gnorm_vec"].clone()
    give(params, 8.0)
    opt.measure()
    assert torch.equal(opt.state[params[0]]["gnorm_vec"], window)
    torch.testing.assert_close(opt.state[params[0]]["square"], torch.full((100,), 0.5))


def test_gradients_are_checked(build: Any) -> None:
    params = make_params(shapes=SHAPES)
    opt = build(params)
    give(params, 1.0)
    params[0].grad = torch.ones(SHAPES[0]).to_sparse()
    with pytest.raises(RuntimeError, match="Curvature"):
        opt.measure()
    assert not opt.state

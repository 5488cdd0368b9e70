"""The loss that the closure of a step hands to the rule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from numerics.harness import targeted

import optgen
from optgen.runtime.hooks.compiled_step import graph_step


def test_loss_of_the_closure(tmp_path: Path, target: str) -> None:
    """An input called `loss` is what the closure of a step returns; it is set for that step alone."""
    path = tmp_path / "polyak.yaml"
    path.write_text(POLYAK)
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    opt = targeted(optgen.load(path).Polyak, [param], target)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = (param * param).sum() / 2
        loss.backward()
        return loss

    before = param.detach().clone()
    loss = opt.step(closure)
    assert float(loss.detach()) == 12.5
    assert torch.allclose(param, before - 12.5 / 25.0 * before)
    assert opt.loss is None
    before, grad = param.detach().clone(), param.grad.clone()
    opt.step()  # nothing is given: the size is the greatest
    assert torch.allclose(param, before - grad)
    before, opt.loss = param.detach().clone(), 2.0
    opt.step()
    assert torch.allclose(param, before - 2.0 / float((grad * grad).sum()) * grad)
    assert opt.loss == 2.0
    opt.step(closure)
    assert opt.loss == 2.0
    with pytest.raises(TypeError, match="loss is a number, or a tensor of one element"):
        opt.step(lambda: torch.ones(3))


def test_a_compiled_step_has_no_loss_of_a_closure(tmp_path: Path) -> None:
    path = tmp_path / "polyak.yaml"
    path.write_text(POLYAK)
    param = torch.nn.Parameter(torch.ones(2))
    opt = optgen.load(path).Polyak([param], target="torch")
    param.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match=r"set `optimizer\.loss` to what it returns"):
        graph_step(opt, lambda: 1.0)


POLYAK = """
name: polyak
title: Polyak
hyperparameters:
  most: {default: 1.0, range: "(0, inf)", doc: The largest step size.}
inputs:
  loss: {doc: "The loss, from `step(closure)`."}
blocks:
  step: |
    size = most
    if loss is not None:
        size = min(most, loss / (sum(grad * grad, over=all) + 1e-12))
    param = param - size * grad
"""

"""Rules in float64, written from their papers, each number with the radius that any float32 evaluation of it lies in.

The radii are those of oracles/ball.py, whose rules numerics/bounds.py derives: an operation hands on the radii of what
it reads (its condition) and adds two unit roundoffs of its result. Nothing is adopted from an optimizer: radii grow
over all steps, and what ours and a package's float32 results have to lie in is the ball after the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from oracles.ball import Array, Ball, monotone, rounded

STEPS = 10
SHAPES = [(1,), (257,), (4096,), (64, 80), (), (3, 4, 5), (300,)]


def make_params(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    """Parameters of several sizes and ranks, the last one zero."""
    values = [torch.randn(shape) for shape in SHAPES]
    values[-1].zero_()
    return [torch.nn.Parameter(value.to(dtype)) for value in values]


def copies(params: Sequence[torch.Tensor]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def make_grads(params: Sequence[torch.Tensor], t: int) -> list[torch.Tensor]:
    """Gradients whose size changes from step to step, a tenth of them exactly 0."""
    grads = []
    for param in params:
        grad = torch.randn(param.shape) * 0.1 * (1 + t % 4)
        grads.append(torch.where(torch.rand(param.shape) < 0.1, 0.0, grad))
    return grads


def set_grads(params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.to(param.device, copy=True)


def array(tensor: Any) -> Array:
    return np.asarray(tensor.detach().cpu().double().numpy() if isinstance(tensor, torch.Tensor) else tensor)


def clipped(x: Ball, limit: float) -> Ball:
    """x within -limit and limit, a number that float32 rounds."""
    between = monotone(lambda values: np.clip(values, -limit, limit), x)
    return rounded(between)


class Rule:
    """A rule over parameters: `advance` returns a parameter's new value, and changes its states in `s`."""

    def __init__(self, params: Sequence[torch.Tensor], **settings: Any) -> None:
        self.params = [Ball(array(param)) for param in params]
        self.states: list[dict[str, Ball]] = [{} for _ in params]
        self.t = 0
        self.o = settings

    def step(self, grads: Sequence[torch.Tensor]) -> None:
        self.t += 1
        with np.errstate(all="ignore"):
            balls = [Ball(array(grad)) for grad in grads]
            self.before(balls)
            for i, grad in enumerate(balls):
                self.params[i] = self.advance(i, self.params[i], grad, self.states[i])

    def before(self, grads: Sequence[Ball]) -> None:
        """What all parameters have in common, once a step."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        raise NotImplementedError


def average(s: dict[str, Ball], name: str, decay: float, x: Ball) -> Ball:
    """The exponential average of x that is kept as `name`, from 0 at first."""
    s[name] = decay * s.get(name, Ball(np.zeros(x.shape))) + (1 - decay) * x
    return s[name]


def assert_inside(params: Sequence[torch.Tensor], rule: Rule, what: str) -> None:
    """Every element lies in its ball, and the balls are small: the median radius is below 1e-4 of its value."""
    shares = []
    for number, (param, ball) in enumerate(zip(params, rule.params, strict=True)):
        error = np.abs(array(param) - ball.mid)
        worst = float(np.max(error - ball.rad))
        assert worst <= 0, f"{what}, parameter {number}: {worst:.3e} outside of the bound"
        shares.append(np.ravel(ball.rad / np.maximum(np.abs(ball.mid), 1e-3)))
    assert np.median(np.concatenate(shares)) < 1e-4, f"{what}: the bound says nothing"


def assert_moved(params: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
    """A test of what stands still shows nothing."""
    for param, old in zip(params, before, strict=True):
        assert not torch.equal(param.detach(), old.detach())

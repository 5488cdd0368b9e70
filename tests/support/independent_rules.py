"""Rules in float64, written from their papers, each number with the radius that any float32 evaluation of it lies in.

The radii are those of oracles/ball.py, whose rules numerics/bounds.py derives: an operation hands on the radii of what
it reads (its condition) and adds two unit roundoffs of its result. Nothing is adopted from an optimizer: radii grow
over all steps, and what ours and a package's float32 results have to lie in is the ball after the last.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
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
        """Compute what all parameters have in common, once a step."""

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


@dataclass(frozen=True)
class Case:
    """A class with its settings, the rule in float64, and a package's class where there is one."""

    name: str
    rule: type[Rule]
    settings: dict[str, Any]
    package: str = ""
    theirs: str = ""
    their_settings: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, self.package, *(f"{k}={v}" for k, v in self.settings.items() if v is True)])

    def build(self, params: list[torch.nn.Parameter], target: str) -> Any:
        package = importlib.import_module("optgen_optim")
        return getattr(package, self.name)(params, **self.settings, target=target)

    def build_theirs(self, params: list[torch.nn.Parameter]) -> Any:
        given = {self.renamed.get(k, k): v for k, v in self.settings.items() if self.renamed.get(k, k)}
        module = importlib.import_module(self.package)
        return getattr(module, self.theirs)(params, **given, **self.their_settings)

    def follow(self, target: str) -> None:
        """Ten steps of ours are the rule's."""
        params = make_params()
        before = copies(params)
        opt = self.build(params, target)
        self._follow(opt, params, self.name)
        assert opt.engines() == {target: len(params)}
        assert_moved(params, before)

    def follow_theirs(self) -> None:
        """Ten steps of the package's are the rule's."""
        pytest.importorskip(self.package)
        params = make_params()
        self._follow(self.build_theirs(params), params, f"{self.package} {self.theirs}")

    def _follow(self, opt: Any, params: list[torch.nn.Parameter], what: str) -> None:
        rule = self.rule(params, **self.settings)
        for t in range(1, STEPS + 1):
            grads = make_grads(params, t)
            set_grads(params, grads)
            rule.step(grads)
            opt.step()
        assert_inside(params, rule, what)

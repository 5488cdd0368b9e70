"""Rules that torch.optim has as well: ten steps on the same gradients, and torch's checkpoints taken over half-way.

Ours and torch's float32 results must both lie within the balls of torch's own class in float64 (torch_balls.py says
how they are derived). Balls are carried on from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numerics.bounds import assert_within
from numerics.harness import NAMES, STEPS, make_grads, make_params, set_grads, targeted
from support.catalogue import optimizer_class
from support.torch_balls import TorchOnBalls

pytest.importorskip("optgen_optim")


@dataclass(frozen=True)
class Case:
    """A class and settings that it shares with torch's.

    Attributes:
        scalars: The relative error of scalars that torch's class keeps as float32 products.
        start: Number of steps of the first half of a resumed run.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    scalars: float = 0.0
    start: int = 5


DECAY = {"lr": 0.01, "weight_decay": 0.1}
MOMENTUM = DECAY | {"momentum": 0.9}
PRODUCT = STEPS * 2.0**-23  # of STEPS factors: each product is rounded, and so is each factor
CASES = {
    "SGD": Case("SGD", DECAY),
    "SGD-momentum": Case("SGD", MOMENTUM),
    "SGD-dampening": Case("SGD", MOMENTUM | {"dampening": 0.3, "maximize": True}),
    "SGD-nesterov": Case("SGD", MOMENTUM | {"nesterov": True}),
    "SGD-resumed after one step": Case("SGD", MOMENTUM, start=1),
    "Adagrad": Case("Adagrad", DECAY),
    "Adagrad-lr_decay": Case("Adagrad", DECAY | {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    "Adagrad-maximize": Case("Adagrad", {"lr": 0.1, "eps": 1e-3, "maximize": True}),
    "RMSprop": Case("RMSprop", DECAY),
    "RMSprop-momentum": Case("RMSprop", MOMENTUM | {"alpha": 0.9}),
    "RMSprop-centered": Case("RMSprop", DECAY | {"centered": True, "eps": 1e-3}),
    "RMSprop-centered-momentum": Case("RMSprop", MOMENTUM | {"centered": True, "eps": 1e-3, "maximize": True}),
    "NAdam": Case("NAdam", DECAY, PRODUCT),
    "NAdam-decoupled": Case("NAdam", DECAY | {"decoupled_weight_decay": True, "momentum_decay": 0.1}, PRODUCT),
    "NAdam-maximize": Case("NAdam", {"betas": (0.8, 0.95), "eps": 1e-3, "maximize": True}, PRODUCT),
    "RAdam": Case("RAdam", DECAY),  # rectified from the 6th step on
    "RAdam-decoupled": Case("RAdam", DECAY | {"decoupled_weight_decay": True, "betas": (0.8, 0.99)}),
    "RAdam-never rectified": Case("RAdam", {"betas": (0.9, 0.6), "maximize": True}),
    "Adamax": Case("Adamax", DECAY),
    "Adamax-maximize": Case("Adamax", {"betas": (0.8, 0.9), "eps": 1e-3, "maximize": True}),
    "Adadelta": Case("Adadelta", {"weight_decay": 0.1}),
    "Adadelta-rho": Case("Adadelta", {"lr": 0.5, "rho": 0.5, "eps": 1e-4, "maximize": True}),
    "Rprop": Case("Rprop"),
    "Rprop-sizes": Case("Rprop", {"lr": 0.1, "etas": (0.3, 3.0), "step_sizes": (0.02, 0.5), "maximize": True}),
    "ASGD": Case("ASGD", DECAY),
    "ASGD-averaged": Case("ASGD", DECAY | {"t0": 2.0, "lambd": 0.1, "alpha": 0.5}),
    "ASGD-maximize": Case("ASGD", {"t0": 7.5, "maximize": True}),
}


class Reference:
    """torch's class in float64, on balls."""

    def __init__(self, case: Case, params: Sequence[torch.Tensor]) -> None:
        self.params = [torch.nn.Parameter(param.detach().double()) for param in params]
        self.balls = TorchOnBalls(case.scalars)
        self.opt = getattr(torch.optim, case.name)(self.params, foreach=False, **case.settings)

    def step(self, grads: Sequence[torch.Tensor]) -> None:
        set_grads(self.params, [grad.double() for grad in grads])
        with self.balls:
            self.opt.step()

    def check(self, params: Sequence[torch.Tensor], opt: torch.optim.Optimizer, who: str) -> None:
        """Parameters and states within their balls; what torch keeps as float32 numbers within their roundings."""
        for what, param, reference in zip(NAMES, params, self.params, strict=True):
            assert_within(param, self.balls.ball(reference), f"{who}, {what}")
            for name, value in self.opt.state[reference].items():
                own = opt.state[param][name]
                if name == "step":
                    assert float(own) == float(value)
                elif value.dtype is torch.float64:
                    assert_within(own, self.balls.ball(value), f"{who}, {what}: {name}")
                else:
                    np.testing.assert_allclose(float(own), float(value), rtol=2 * PRODUCT, err_msg=f"{who}: {name}")

    def check_meaning(self) -> None:
        """Most radii are small beside what they bound: the comparison says something."""
        balls = [self.balls.ball(param) for param in self.params]
        sizes = [(ball.rad / np.maximum(np.abs(ball.mid), 1e-3)).reshape(-1) for ball in balls]
        for what, ratios in zip(NAMES, sizes, strict=True):
            if ratios.size > 1:  # one number alone may lie near 0
                assert np.median(ratios) < 1e-4, what
        assert np.median(np.concatenate(sizes)) < 1e-4


def copies(params: Sequence[torch.Tensor]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def ours_of(case: Case, params: Sequence[torch.Tensor], target: str) -> Any:
    lr = getattr(torch.optim, case.name)(params).defaults["lr"]  # ours may require one
    return targeted(optimizer_class(case.name), params, target, **{"lr": lr} | case.settings)


def theirs_of(case: Case, params: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    return getattr(torch.optim, case.name)(params, **case.settings)  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_torch(case, target) -> None:
    mine = make_params()
    others, reference = copies(mine), Reference(case, mine)
    ours, theirs = ours_of(case, mine, target), theirs_of(case, others)
    for t in range(1, STEPS + 1):
        grads = make_grads(mine, t, torch.float32, nonfinite=False)
        reference.step(grads)
        for params, opt in ((mine, ours), (others, theirs)):
            set_grads(params, grads)
            opt.step()
    reference.check(mine, ours, "ours")
    reference.check(others, theirs, "torch")
    reference.check_meaning()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_goes_on_from_torchs_checkpoint(case, target) -> None:
    """torch's steps, then ours from its checkpoint: within the bounds of torch's steps alone."""
    others = make_params()
    reference, theirs = Reference(case, others), theirs_of(case, others)
    mine: list[torch.nn.Parameter] = []
    for t in range(1, STEPS + 1):
        if t == case.start + 1:
            mine = copies(others)
            ours = targeted(optimizer_class(case.name), mine, target, lr=1.0)  # what it has not from the checkpoint
            ours.load_state_dict(theirs.state_dict())
            for key, value in case.settings.items():
                assert ours.param_groups[0][key] == value
        grads = make_grads(others, t, torch.float32, nonfinite=False)
        reference.step(grads)
        params, opt = (mine, ours) if mine else (others, theirs)
        set_grads(params, grads)
        opt.step()
    counted = STEPS
    if case.name == "SGD":  # torch's keeps no count, and without a momentum no state
        counted = STEPS - case.start + ("momentum" in case.settings)
    assert all(float(ours.state[param]["step"]) == counted for param in mine)
    reference.check(mine, ours, "ours")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_state_names_and_kinds_are_torchs(case, target) -> None:
    param = torch.nn.Parameter(torch.ones(5, 3))
    states = []
    for opt in (ours_of(case, [param], target), theirs_of(case, [param])):
        param.grad = torch.ones(5, 3)
        opt.step()
        states.append({name: (value.dtype, tuple(value.shape)) for name, value in opt.state[param].items()})
    if case.name == "SGD":
        assert states[0].pop("step") == (torch.float32, ())
    assert states[0] == states[1]


SHARED_NAMES = ("SGD", "Adagrad", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "Rprop", "ASGD")


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_defaults_are_torchs(name) -> None:
    """The defaults of all arguments that both have."""
    given = {"lr": 1e-3} if name == "SGD" else {}  # which bitsandbytes requires
    param = torch.nn.Parameter(torch.ones(1))
    ours, theirs = (
        package([param], **given).defaults for package in (optimizer_class(name), getattr(torch.optim, name))
    )
    common = theirs.keys() - {"foreach", "fused", "differentiable"}
    assert common <= ours.keys()
    assert {key: ours[key] for key in common} == {key: theirs[key] for key in common}


@pytest.mark.parametrize("name", SHARED_NAMES)
def test_ours_goes_on_in_torch(name) -> None:
    """torch's class takes over our checkpoint, as far as their arguments go."""
    mine = make_params()
    ours = targeted(optimizer_class(name), mine, "torch", lr=0.01)
    others = copies(mine)
    theirs = getattr(torch.optim, name)(others, lr=0.01)
    grads = make_grads(mine, 1, torch.float32, nonfinite=False)
    set_grads(mine, grads)
    ours.step()
    theirs.load_state_dict(ours.state_dict())
    set_grads(others, grads)
    theirs.step()
    for a, b in zip(mine, others, strict=True):
        entry = theirs.state[b]
        if entry:
            assert float(entry["step"]) == (1 if name == "SGD" else 2)
        assert set(ours.state[a]) <= set(entry)


def test_a_variance_is_never_below_zero(target) -> None:
    """torch's RMSprop is NaN where rounding takes the variance of equal gradients below 0."""
    param = torch.nn.Parameter(torch.zeros(512))
    opt = targeted(optimizer_class("RMSprop"), [param], target, lr=0.01, alpha=0.5, centered=True)
    grad = torch.rand(512)
    for _ in range(40):
        param.grad = grad.clone()
        opt.step()
        assert torch.isfinite(param).all()
    averages = opt.state[param]
    assert (averages["square_avg"] < averages["grad_avg"] ** 2).any(), "rounding took none below 0: the test is idle"

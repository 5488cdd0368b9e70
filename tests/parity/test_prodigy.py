"""Prodigy, with one d for all parameters, against its paper and package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles.ball import Ball, maximum, minimum, sqrt, total
from support.independent_rules import (
    STEPS,
    Rule,
    array,
    assert_inside,
    assert_moved,
    average,
    copies,
    make_grads,
    make_params,
    set_grads,
)

optgen_optim = pytest.importorskip("optgen_optim")


class Prodigy(Rule):
    """Mishchenko and Defazio 2023, algorithm 4, with the running numerator and the options of prodigyopt."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.first = list(self.params)
        self.d = self.largest = Ball(settings["d0"])
        self.numerator = Ball(0.0)

    def adopt(self, opt: Any) -> None:
        """Go on from an optimizer's values: d is one number for all, whose radius would grow with every element."""
        group = opt.param_groups[0]
        self.d, self.largest, self.numerator = (Ball(group[key]) for key in ("d", "d_max", "d_numerator"))
        params = [p for group in opt.param_groups for p in group["params"]]
        self.params = [Ball(array(p)) for p in params]
        for p, s in zip(params, self.states, strict=True):
            for key, name in (("m", "exp_avg"), ("v", "exp_avg_sq"), ("s", "s")):
                s[key] = Ball(array(opt.state[p][name]).reshape(p.shape))

    def before(self, grads: Any) -> None:
        o, d0 = self.o, self.o["d0"]
        b1, b2 = o["betas"]
        b3 = b2**0.5 if o.get("beta3") is None else o["beta3"]
        self.rate = self.d * o["lr"]
        if o.get("use_bias_correction"):
            self.rate = self.rate * ((1 - b2**self.t) ** 0.5 / (1 - b1**self.t))
        pull = self.d if o.get("safeguard_warmup") else self.rate
        self.numerator, denominator = b3 * self.numerator, Ball(0.0)
        self.decayed = []
        for p, p0, g, s in zip(self.params, self.first, grads, self.states, strict=True):
            g = g if o.get("decouple", True) else g + o["weight_decay"] * p
            average(s, "m", b1, self.d * g)
            average(s, "v", b2, self.d * self.d * g * g)
            s["s"] = b3 * s.get("s", Ball(np.zeros(g.shape))) + self.d / d0 * pull * g
            self.numerator = self.numerator + total(self.d / d0 * self.rate * g * (p0 - p))
            denominator = denominator + total(abs(s["s"]))
        estimate = o["d_coef"] * self.numerator / denominator
        if self.d.mid == d0:
            self.d = maximum(self.d, estimate)
        self.largest = maximum(self.largest, estimate)
        growth = o.get("growth_rate")
        self.d = self.largest if growth is None else minimum(self.largest, growth * self.d)

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o = self.o
        if o.get("decouple", True):
            p = p - o["weight_decay"] * self.rate * p
        return p - self.rate * s["m"] / (sqrt(s["v"]) + self.d * o["eps"])


PRODIGY = {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "d0": 1e-3, "d_coef": 1.0}
PRODIGIES = {
    "defaults": PRODIGY,
    "bias correction": PRODIGY | {"use_bias_correction": True, "safeguard_warmup": True, "lr": 0.5, "d_coef": 50.0},
    "growth": PRODIGY | {"growth_rate": 1.5, "d_coef": 50.0},
    "coupled": PRODIGY | {"decouple": False, "beta3": 0.9},
}


def descend(opt: Any, params: list[torch.nn.Parameter], rule: Prodigy) -> None:
    """Ten steps on gradients that agree with each other, so that the estimate grows; each is judged alone."""
    for _ in range(STEPS):
        grads = [torch.sign(param.detach()) + 0.5 for param in params]
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
        assert_inside(params, rule, type(opt).__module__)
        for group in opt.param_groups:
            for key, expected in (("d", rule.d), ("d_max", rule.largest), ("d_numerator", rule.numerator)):
                assert abs(group[key] - expected.mid) <= expected.rad <= 1e-3 * abs(expected.mid), key
        rule.adopt(opt)
    assert opt.param_groups[0]["d"] > 1.05 * rule.o["d0"]


@pytest.mark.parametrize("settings", PRODIGIES.values(), ids=PRODIGIES)
def test_prodigy_is_the_papers(settings: dict[str, Any], target: str) -> None:
    params = make_params()
    half = len(params) // 2
    groups = [{"params": params[:half]}, {"params": params[half:]}]
    opt, rule = optgen_optim.Prodigy(groups, **settings, target=target), Prodigy(params, **settings)
    descend(opt, params, rule)
    assert [group["k"] for group in opt.param_groups] == [STEPS, STEPS]


@pytest.mark.parametrize("settings", PRODIGIES.values(), ids=PRODIGIES)
def test_prodigyopt_is_the_papers(settings: dict[str, Any]) -> None:
    prodigyopt = pytest.importorskip("prodigyopt")
    params = make_params()
    opt, rule = prodigyopt.Prodigy(params, **settings), Prodigy(params, **settings)
    descend(opt, params, rule)


def test_prodigy_with_several_rates_is_refused(target: str) -> None:
    params = make_params()
    message = (
        r"Prodigy: lr is one number for the optimizer and cannot differ by group, .* 1.0 and 0.5; give all of them"
    )
    with pytest.raises(ValueError, match=message):
        optgen_optim.Prodigy([{"params": params[:2], "lr": 1.0}, {"params": params[2:], "lr": 0.5}], target=target)
    opt = optgen_optim.Prodigy([{"params": params[:2], "lr": 0.5}, {"params": params[2:], "lr": 0.5}], target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    opt.param_groups[1]["lr"] = 0.25
    before = copies(params)
    with pytest.raises(ValueError, match="Prodigy: lr is one number for the optimizer"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    opt.param_groups[0]["lr"] = 0.25
    opt.step()


def test_prodigy_at_a_rate_of_zero_does_nothing(target: str) -> None:
    """The first step of a warm-up: prodigyopt leaves parameters, sums and d as they were."""
    params = make_params()
    before = copies(params)
    opt = optgen_optim.Prodigy(params, lr=0.0, weight_decay=0.1, target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    group = opt.param_groups[0]
    assert (group["d"], group["d_max"], group["d_numerator"], group["k"]) == (1e-6, 1e-6, 0.0, 0)
    assert not any(opt.state[param][name].any() for param in params for name in ("exp_avg", "exp_avg_sq", "s"))
    group["lr"] = 1.0
    opt.step()
    assert group["k"] == 1
    assert_moved(params, before)

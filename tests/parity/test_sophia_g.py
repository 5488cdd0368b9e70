"""Sophia-G against its paper, with its second kind of gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.ball import Ball, maximum
from support.independent_rules import (
    STEPS,
    Rule,
    array,
    assert_inside,
    assert_moved,
    average,
    clipped,
    copies,
    make_grads,
    make_params,
    set_grads,
)

optgen_optim = pytest.importorskip("optgen_optim")


class SophiaG(Rule):
    """Liu et al. 2023, algorithm 3, with curvature bs times the average of the sampled loss's squared gradient."""

    def update_hessian(self, grads: list[torch.Tensor]) -> None:
        for s, grad in zip(self.states, grads, strict=True):
            g = Ball(array(grad))
            average(s, "h", self.o["betas"][1], g * g)

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o = self.o
        m = average(s, "m", o["betas"][0], g)
        h = maximum(o["rho"] * o["bs"] * s.get("h", Ball(np.zeros(g.shape))), 1e-12)
        return p * (1 - o["lr"] * o["weight_decay"]) - o["lr"] * clipped(m / h, 1.0)


SOPHIA = {"lr": 0.02, "betas": (0.965, 0.99), "rho": 0.04, "weight_decay": 0.1, "bs": 480}


def test_sophia_g_takes_the_curvature_from_sampled_gradients(target: str) -> None:
    params = make_params()
    before = copies(params)
    opt, rule = optgen_optim.SophiaG(params, **SOPHIA, target=target), SophiaG(params, **SOPHIA)
    for t in range(1, STEPS + 1):
        if t % 4 == 1:
            sampled = make_grads(params, t + 1)
            set_grads(params, sampled)
            rule.update_hessian(sampled)
            opt.update_hessian()
        grads = make_grads(params, t)
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
        assert {float(opt.state[param]["step"]) for param in params} == {t}
    assert_moved(params, before)
    assert_inside(params, rule, "SophiaG")
    for param, s in zip(params, rule.states, strict=True):
        assert (np.abs(array(opt.state[param]["hessian"]) - s["h"].mid) <= s["h"].rad).all()

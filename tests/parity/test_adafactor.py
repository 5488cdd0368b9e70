"""Adafactor against Shazeer and Stern 2018 in Transformers' order of operations, and against Transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from oracles.ball import Ball, maximum, mean, rms, rsqrt
from support.independent_rules import (
    STEPS,
    Rule,
    assert_inside,
    assert_moved,
    average,
    copies,
    make_grads,
    make_params,
    set_grads,
)

optgen_optim = pytest.importorskip("optgen_optim")


class Adafactor(Rule):
    """Algorithms 4 to 6: factored second moments of the last two dimensions, clipping, relative steps."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        eps1, eps2 = o.get("eps", (1e-30, 1e-3))
        rate: Any = o.get("lr")
        if o.get("relative_step", True):
            rate = min(1e-6 * t if o.get("warmup_init") else 1e-2, t**-0.5)
        if o.get("scale_parameter", True):
            rate = rate * maximum(eps2, rms(p))
        decay = 1 - t ** o.get("decay_rate", -0.8)
        square = g * g + eps1
        if g.mid.ndim >= 2:
            row = average(s, "row", decay, mean(square, axis=-1, keepdims=True))
            col = average(s, "col", decay, mean(square, axis=-2, keepdims=True))
            # v = row col / mean(row)
            u = g * rsqrt(row / mean(row, axis=-2, keepdims=True)) * rsqrt(col)
        else:
            u = g * rsqrt(average(s, "v", decay, square))
        u = rate * (u / maximum(1.0, rms(u) / o.get("clip_threshold", 1.0)))
        if o.get("beta1") is not None:
            u = average(s, "m", o["beta1"], u)
        return p - o.get("weight_decay", 0.0) * rate * p - u


CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "momentum": {"beta1": 0.9, "weight_decay": 0.1},
    "warm-up": {"warmup_init": True, "weight_decay": 0.1, "clip_threshold": 0.5, "decay_rate": -0.6},
    "fixed rate": {"lr": 0.02, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1},
    "scaled rate": {"lr": 0.02, "relative_step": False, "beta1": 0.8, "eps": (1e-20, 1e-2)},
}


def run(opt: Any, params: list[torch.nn.Parameter], settings: dict[str, Any], what: str) -> None:
    rule = Adafactor(params, **settings)
    before = copies(params)
    for t in range(1, STEPS + 1):
        grads = make_grads(params, t)
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
    assert_moved(params, before)
    assert_inside(params, rule, what)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_ten_steps_are_the_papers(settings: dict[str, Any], target: str) -> None:
    params = make_params()
    opt = optgen_optim.Adafactor(params, **settings, target=target)
    run(opt, params, settings, "Adafactor")
    assert opt.engines() == {target: len(params)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_ten_steps_of_transformers_are_the_papers(settings: dict[str, Any]) -> None:
    optimization = pytest.importorskip("transformers.optimization")
    params = make_params()
    run(optimization.Adafactor(params, **settings), params, settings, "transformers")


def test_states_are_factored_for_every_rank_of_two_or_more(target: str) -> None:
    params = make_params()
    opt = optgen_optim.Adafactor(params, target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    for param in params:
        state = opt.state[param]
        if param.dim() < 2:
            assert set(state) == {"step", "exp_avg_sq"}
        else:
            assert set(state) == {"step", "exp_avg_sq_row", "exp_avg_sq_col"}
            assert state["exp_avg_sq_row"].shape == param.shape[:-1]
            assert state["exp_avg_sq_col"].shape == (*param.shape[:-2], param.shape[-1])
        assert np.isfinite(param.detach().numpy()).all()


REFUSED = {
    "lr with relative_step": (
        {"lr": 0.1},
        "lr=0.1 cannot be combined with relative_step=True.*give relative_step=False",
    ),
    "warm-up of a fixed rate": (
        {"lr": 0.1, "relative_step": False, "warmup_init": True},
        "warmup_init=True requires relative_step=True.*leave it out",
    ),
    "no rate": ({"relative_step": False}, "relative_step=False needs lr: give lr"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^Adafactor: {message}"):
        optgen_optim.Adafactor(make_params(), **settings)


def test_a_scheduler_that_sets_a_rate_is_refused_at_the_step(target: str) -> None:
    params = make_params()
    opt = optgen_optim.Adafactor(params, target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    before = copies(params)
    opt.param_groups[0]["lr"] = 0.1
    with pytest.raises(ValueError, match=r"Adafactor: lr=0.1 cannot be combined with relative_step=True"):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_trust_ratio_is_refused() -> None:
    with pytest.raises(ValueError, match="Adafactor: trust_ratio must be one of 'none', not 'lamb'"):
        optgen_optim.Adafactor(make_params(), trust_ratio="lamb")

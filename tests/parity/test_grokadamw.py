"""GrokAdamW against its package's formulas and the package; its losses and its state."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.ball import Ball, minimum, norm, sqrt
from support.independent_rules import (
    STEPS,
    Case,
    Rule,
    assert_inside,
    average,
    make_grads,
    make_params,
    set_grads,
)

optgen_optim = pytest.importorskip("optgen_optim")


class GrokAdamW(Rule):
    """The update of grokadamw 0.1.2, without its autocast."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2 = o["betas"]
        if o["gradient_clipping"] > 0:
            g = g * minimum(1.0, o["gradient_clipping"] / (norm(g) + 1e-6))
        train, evaluation = o.get("train_loss"), o.get("eval_loss")
        signal = o.get("grokking_signal", 0.0)
        if train is not None and evaluation is not None and max(train, evaluation) > 0:
            signal = max(0.0, evaluation - train) / max(evaluation, train)
        alpha = o["alpha_init"] * np.exp(-o["grokking_signal_decay_rate"] * signal)
        h = g + o["lamb"] * average(s, "e", float(alpha), g)
        m = average(s, "m", b1 * (1 - o["gamma"]) ** i, h)
        v = average(s, "v", b2, h * h)
        size = o["lr"] * (1 - b2**t) ** 0.5 / (1 - b1**t)
        return p * (1 - o["lr"] * o["weight_decay"]) - size * (m / (sqrt(v) + o["eps"]))


GROK = {
    "lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "alpha_init": 0.9, "lamb": 2.0, "gamma": 0.1,
    "grokking_signal_decay_rate": 0.1, "gradient_clipping": 10.0,
}  # fmt: skip
CASES = [
    Case("GrokAdamW", GrokAdamW, GROK, "grokadamw", "GrokAdamW"),
    Case("GrokAdamW", GrokAdamW, GROK | {"gradient_clipping": 0.0, "grokking_signal": 0.7}, "grokadamw", "GrokAdamW",
         {"grokking_signal_fns": [lambda: 0.7]}, {"grokking_signal": ""}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ten_steps_are_the_papers(case: Case, target: str) -> None:
    case.follow(target)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in CASES if case.package], ids=str)
def test_ten_steps_of_the_package_are_the_papers(case: Case) -> None:
    case.follow_theirs()


def test_grokadamw_takes_losses_of_its_groups(target: str) -> None:
    """The losses are set in the groups between steps, as with the package, and each group has its own."""
    params = make_params()
    half = len(params) // 2
    groups = [{"params": params[:half]}, {"params": params[half:]}]
    opt = optgen_optim.GrokAdamW(groups, **GROK, target=target)
    rules = [GrokAdamW(params[:half], **GROK), GrokAdamW(params[half:], **GROK)]
    for t in range(1, STEPS + 1):
        if t == 3:
            losses = [{"train_loss": 1.0, "eval_loss": 3.0}, {"train_loss": 2.0, "eval_loss": 1.0}]
            for group, rule, values in zip(opt.param_groups, rules, losses, strict=True):
                group.update(values)
                rule.o = rule.o | values
        grads = make_grads(params, t)
        set_grads(params, grads)
        rules[0].step(grads[:half])
        rules[1].step(grads[half:])
        opt.step()
    assert_inside(params[:half], rules[0], "first group")
    assert_inside(params[half:], rules[1], "second group")


def test_grokadamw_keeps_its_state_where_torch_does(target: str) -> None:
    params = make_params()
    opt = optgen_optim.GrokAdamW(params, target=target)
    set_grads(params, make_grads(params, 1))
    opt.step()
    assert "state" not in opt.param_groups[0]
    for number, param in enumerate(params):
        names = {"step", "exp_avg", "exp_avg_sq", "grok_ema"}
        assert set(opt.state[param]) == set(opt.state_dict()["state"][number]) == names
        assert opt.state[param]["grok_ema"].device == param.device
    opt.param_groups[0]["train_loss"] = 1.0
    with pytest.raises(ValueError, match=r"GrokAdamW: train_loss=1\.0 has no effect without eval_loss: set both"):
        opt.step()
    opt.param_groups[0]["eval_loss"] = 2.0
    opt.step()

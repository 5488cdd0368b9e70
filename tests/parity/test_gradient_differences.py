"""Adan and MARS, which look at how gradients change, against their papers and packages."""

from __future__ import annotations

import pytest
from oracles.ball import Ball, maximum, norm, sqrt
from support.independent_rules import (
    Case,
    Rule,
    average,
)

optgen_optim = pytest.importorskip("optgen_optim")


class Adan(Rule):
    """Xie et al. 2022, algorithm 1, its betas as one minus the paper's, with bias correction."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2, b3 = o["betas"]
        diff = g - s.get("g", g)
        s["g"] = g
        m, v = average(s, "m", b1, g), average(s, "v", b2, diff)
        n = average(s, "n", b3, (g + b2 * diff) * (g + b2 * diff))
        step = (m / (1 - b1**t) + b2 * (v / (1 - b2**t))) / (sqrt(n) / (1 - b3**t) ** 0.5 + o["eps"])
        decay = o["lr"] * o["weight_decay"]
        return p * (1 - decay) - o["lr"] * step if o.get("no_prox") else (p - o["lr"] * step) / (1 + decay)


class Mars(Rule):
    """Yuan et al. 2024, algorithm 2 with the gradient of the step before; x_0 = x_1 makes the first c the gradient."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        lr, decay, (b1, b2), c = o["lr"], o["weight_decay"], o["betas"], g
        if p.mid.ndim >= 2 or o.get("optimize_1d"):
            c = g + o["gamma"] * (b1 / (1 - b1)) * (g - s.get("g", g))
            s["g"] = g
            c = c / maximum(1.0, norm(c))
        else:
            b1, b2 = o.get("betas_1d", (0.9, 0.95))
            lr = lr * o.get("lr_1d_factor", 1.0)
            decay = o.get("weight_decay_1d", decay)
        m, v = average(s, "m", b1, c), average(s, "v", b2, c * c)
        return p - lr * (m / (1 - b1**t) / (sqrt(v) / (1 - b2**t) ** 0.5 + o["eps"]) + decay * p)


ADAN = {"lr": 0.02, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.1}
MARS = {"lr": 0.02, "betas": (0.95, 0.99), "eps": 1e-8, "weight_decay": 0.1, "gamma": 0.025}
CASES = [
    Case("Adan", Adan, ADAN, "timm.optim", "Adan"),
    Case("Adan", Adan, ADAN | {"no_prox": True}, "timm.optim", "Adan"),
    Case("MARS", Mars, MARS, "timm.optim", "Mars", {"betas_1d": (0.9, 0.95)}),
    Case("MARS", Mars, MARS | {"optimize_1d": True}, "timm.optim", "Mars"),
    Case("MARS", Mars, MARS | {"lr_1d_factor": 0.5, "betas_1d": (0.8, 0.9), "weight_decay_1d": 0.3}),
]  # fmt: skip
# A package of pure Python, where timm would need a torchvision made for the very build of torch. Its MARS begins with a
# gradient of zeros, so that it is another rule.
OTHER_PACKAGE = [
    Case("Adan", Adan, ADAN, "pytorch_optimizer", "Adan"),
    Case("Adan", Adan, ADAN | {"no_prox": True}, "pytorch_optimizer", "Adan", {}, {"no_prox": "weight_decouple"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ten_steps_are_the_papers(case: Case, target: str) -> None:
    case.follow(target)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*(case for case in CASES if case.package), *OTHER_PACKAGE], ids=str)
def test_ten_steps_of_the_package_are_the_papers(case: Case) -> None:
    case.follow_theirs()

"""StableAdamW, ADOPT and AdaBelief, which differ from Adam in what they divide by, against papers and packages."""

from __future__ import annotations

import numpy as np
import pytest
from oracles.ball import Ball, maximum, mean, sqrt
from support.independent_rules import (
    Case,
    Rule,
    average,
    clipped,
)

optgen_optim = pytest.importorskip("optgen_optim")


class StableAdamW(Rule):
    """Wortsman et al. 2023, algorithm 2."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in o["betas"])
        v, u = average(s, "v", b1, g), average(s, "u", b2, g * g)
        rms = sqrt(mean(g * g / maximum(u, o["eps"] ** 2)))
        rate = o["lr"] / maximum(1.0, rms)
        decay = rate / o["max_lr"] if o.get("decouple_lr") else rate
        return p - decay * o["weight_decay"] * p - rate * v / (sqrt(u) + o["eps"])


class Adopt(Rule):
    """Taniguchi et al. 2024, algorithm 2 with clipping; step 1 is the paper's step 0."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t - 1
        b1, b2 = o["betas"]
        if not o.get("decouple"):
            g = g + o["weight_decay"] * p
        if t == 0:
            s["v"] = g * g
            return p
        n = g / maximum(sqrt(s["v"]), o["eps"])
        if o.get("clip", True):
            n = clipped(n, t ** o.get("clip_exp", 0.25))
        m = average(s, "m", b1, n)
        s["v"] = b2 * s["v"] + (1 - b2) * (g * g)
        if o.get("decouple"):
            p = p * (1 - o["lr"] * o["weight_decay"])
        return p - o["lr"] * m


class AdaBelief(Rule):
    """Zhuang et al. 2020, algorithm 2; the rectified rate of Liu et al. 2019, algorithm 2."""

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        o, t = self.o, self.t
        b1, b2 = o["betas"]
        if o.get("decoupled_weight_decay", True):
            p = p * (1 - o["lr"] * o["weight_decay"])
        else:
            g = g + o["weight_decay"] * p
        m = average(s, "m", b1, g)
        var = average(s, "s", b2, (g - m) * (g - m)) + o["eps"]
        s["s"] = var
        if o.get("amsgrad"):
            var = s["max"] = maximum(s.get("max", Ball(np.zeros(g.shape))), var)
        m = m / (1 - b1**t)
        if not o.get("rectify"):
            return p - o["lr"] * m / (sqrt(var) / (1 - b2**t) ** 0.5 + o["eps"])
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length < 5:
            return p - o["lr"] * m
        r = (length - 4) / (longest - 4) * (length - 2) / (longest - 2) * longest / length
        return p - o["lr"] * (r * (1 - b2**t)) ** 0.5 * m / (sqrt(var) + o["eps"])


STABLE = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
ADOPT = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
BELIEF = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-12, "weight_decay": 0.1}
BELIEF_NAMES = {"decoupled_weight_decay": "decoupled_decay"}
CASES = [
    Case("StableAdamW", StableAdamW, STABLE, "optimi", "StableAdamW", {"foreach": False, "triton": False}),
    Case("StableAdamW", StableAdamW, STABLE | {"decouple_lr": True, "max_lr": 0.5, "weight_decay": 0.01},
         "optimi", "StableAdamW", {"foreach": False, "triton": False}),
    Case("ADOPT", Adopt, ADOPT, "timm.optim", "Adopt", {"clip_exp": 0.25}),
    Case("ADOPT", Adopt, ADOPT | {"decouple": True, "clip_exp": 0.5}, "timm.optim", "Adopt", {},
         {"decouple": "decoupled"}),
    Case("ADOPT", Adopt, ADOPT | {"clip": False, "decouple": True}, "timm.optim", "Adopt", {"clip_exp": None},
         {"clip": "", "decouple": "decoupled"}),
    Case("AdaBelief", AdaBelief, BELIEF, "timm.optim", "AdaBelief", {"rectify": False}),
    Case("AdaBelief", AdaBelief, BELIEF | {"rectify": True, "decoupled_weight_decay": False},
         "timm.optim", "AdaBelief", {}, BELIEF_NAMES),
    Case("AdaBelief", AdaBelief, BELIEF | {"amsgrad": True, "decoupled_weight_decay": False}),
]  # fmt: skip
# A package of pure Python, where timm would need a torchvision made for the very build of torch. Its ADOPT counts from
# one, and its decay comes before the first step, which the paper leaves out.
COUNTS_FROM_ONE = {"clip_lambda": lambda step: (step - 1) ** 0.25}
OTHER_PACKAGE = [
    Case("ADOPT", Adopt, ADOPT, "pytorch_optimizer", "ADOPT", COUNTS_FROM_ONE),
    Case("AdaBelief", AdaBelief, BELIEF, "pytorch_optimizer", "AdaBelief"),
    Case("AdaBelief", AdaBelief, BELIEF | {"rectify": True, "decoupled_weight_decay": False}, "pytorch_optimizer",
         "AdaBelief", {}, {"decoupled_weight_decay": "weight_decouple"}),
    Case("AdaBelief", AdaBelief, BELIEF | {"amsgrad": True, "decoupled_weight_decay": False}, "pytorch_optimizer",
         "AdaBelief", {}, {"decoupled_weight_decay": "weight_decouple", "amsgrad": "ams_bound"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ten_steps_are_the_papers(case: Case, target: str) -> None:
    case.follow(target)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [*(case for case in CASES if case.package), *OTHER_PACKAGE], ids=str)
def test_ten_steps_of_the_package_are_the_papers(case: Case) -> None:
    case.follow_theirs()

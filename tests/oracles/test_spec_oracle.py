"""The interpreter of specs against the rules that are written by hand from the published formulas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from oracles import (
    AdafactorOracle,
    AdamOracle,
    AdEMAMixOracle,
    LambOracle,
    LarsOracle,
    NovoGradOracle,
    ProdigyOracle,
    RAdamOracle,
    ScheduleFreeAdamWOracle,
    StableAdamWOracle,
)
from oracles.declared import load_catalogue, load_spec
from oracles.spec_oracle import SpecOracle

OWN = Path(__file__).parents[1] / "specs"
SHAPES = [(5, 3), (7,), (), (2, 3, 4), (300,)]
STEPS = 6
DECAY = {"lr": 0.01, "weight_decay": 0.1}
ADAMW = {"decoupled": True}
# class -> the rule by hand, what it is told besides, settings of both
CASES: dict[str, tuple[type[Any], dict[str, Any], dict[str, Any]]] = {
    "AdamW": (AdamOracle, ADAMW, DECAY),
    "AdamW-amsgrad": (AdamOracle, ADAMW, DECAY | {"amsgrad": True, "maximize": True}),
    "AdamW-clipped": (AdamOracle, ADAMW, DECAY | {"percentile_clipping": 50, "skip_zeros": True}),
    "AdamW-lamb": (AdamOracle, ADAMW, DECAY | {"trust_ratio": "lamb", "max_unorm": 0.5}),
    "AdamW-unorm": (AdamOracle, ADAMW, DECAY | {"max_unorm": 0.5}),
    "Adam": (AdamOracle, {"decoupled": False}, DECAY),
    "LAMB": (LambOracle, {}, DECAY),
    "LAMB-coupled": (LambOracle, {}, DECAY | {"adam_w_mode": False, "bias_correction": False}),
    "LAMB-none": (LambOracle, {}, DECAY | {"trust_ratio": "none", "max_unorm": 0.5}),
    "LARS": (LarsOracle, {}, DECAY | {"momentum": 0.9, "dampening": 0.3}),
    "LARS-nesterov": (LarsOracle, {}, DECAY | {"momentum": 0.9, "nesterov": True, "max_unorm": 0.0}),
    "LARS-paper": (LarsOracle, {}, DECAY | {"momentum": 0.9, "trust_ratio": "lars"}),
    "AdEMAMix": (AdEMAMixOracle, {}, {"t_alpha": 5.0, "t_beta3": 7.0}),
    "StableAdamW": (StableAdamWOracle, {}, DECAY),
    "Adafactor": (AdafactorOracle, {}, {"beta1": 0.9, "weight_decay": 0.1}),
    "Adafactor-rate": (AdafactorOracle, {}, {"lr": 0.01, "relative_step": False, "scale_parameter": False}),
    "NovoGrad": (NovoGradOracle, {}, DECAY | {"grad_averaging": True}),
    "RAdam": (RAdamOracle, {}, DECAY),
    "RAdam-decoupled": (RAdamOracle, {}, DECAY | {"decoupled_weight_decay": True, "trust_ratio": "lamb"}),
    "Prodigy": (ProdigyOracle, {}, {"d0": 1e-3, "weight_decay": 0.1, "use_bias_correction": True}),
    "Prodigy-growth": (ProdigyOracle, {}, {"d0": 1e-3, "growth_rate": 1.5, "safeguard_warmup": True}),
    "ScheduleFreeAdamW": (ScheduleFreeAdamWOracle, {}, {"warmup_steps": 4, "r": 1.0, "weight_decay": 0.1}),
}
FILES = {
    "AdEMAMix": "ademamix",
    "StableAdamW": "stable_adamw",
    "Adafactor": "adafactor",
    "NovoGrad": "novograd",
    "RAdam": "radam",
    "Prodigy": "prodigy",
    "ScheduleFreeAdamW": "schedule_free_adamw",
}


def interpreted(key: str, params: list[np.ndarray], settings: Mapping[str, Any], dtype: Any = None) -> SpecOracle:
    name = key.split("-")[0]
    row = load_spec(OWN / f"{FILES[name]}.yaml")[name] if name in FILES else load_catalogue()[name]
    return SpecOracle(row, params, settings, dtype)


def draw(shape: tuple[int, ...], t: int) -> np.ndarray:
    grad = torch.randn(shape, dtype=torch.float64) * (1 + t % 3)
    return torch.where(torch.rand(shape) < 0.1, 0.0, grad).numpy()


@pytest.mark.parametrize("key", CASES)
def test_equals_the_rule_by_hand(key) -> None:
    """The same numbers, and radii of the same size: either groups its operations in its own way, and rules by hand
    charge float32 for what is one number a tensor, too."""
    by_hand, told, settings = CASES[key]
    start = [torch.randn(shape, dtype=torch.float64).numpy() for shape in SHAPES]
    ours, theirs = interpreted(key, start, settings), by_hand(start, **settings, **told)
    if "train" in ours.rule.methods:
        ours.call("train")
    for t in range(1, STEPS + 1):
        grads = [draw(shape, t) for shape in SHAPES]
        ours.step(grads)
        theirs.step(grads)
        compare(ours, theirs, key, radii=t <= 2)  # which grow apart where they are carried on
    for method in sorted(name for name, each in ours.rule.methods.items() if not each.reads_grad):
        ours.call(method)
        getattr(theirs, method)()
        compare(ours, theirs, key)


def compare(ours: SpecOracle, theirs: Any, key: str, radii: bool = False) -> None:
    for i, shape in enumerate(SHAPES):
        pairs = {"param": (ours.balls[i], theirs.balls[i])}
        assert ours.state_balls[i].keys() == theirs.state_balls[i].keys()
        pairs |= {name: (ball, theirs.state_balls[i][name]) for name, ball in ours.state_balls[i].items()}
        for name, (mine, other) in pairs.items():
            what = f"{key}, {shape}: {name}"
            # the window of norms is stored in float32 by one of the two alone
            rtol = 1e-6 if "clipped" in key else 1e-11
            np.testing.assert_allclose(mine.mid, other.mid, rtol=rtol, atol=1e-13, err_msg=what)
            assert not radii or (mine.rad <= 8 * other.rad + 1e-12).all(), what

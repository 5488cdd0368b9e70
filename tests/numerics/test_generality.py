"""The language beyond the catalogue: the specs of tests/specs on every target against their float64 rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import (
    AdafactorOracle,
    AdEMAMixOracle,
    NovoGradOracle,
    Oracle,
    ProdigyOracle,
    RAdamOracle,
    ScheduleFreeAdamWOracle,
    StableAdamWOracle,
)
from oracles.ball import Ball

from numerics.bounds import assert_within
from numerics.harness import STEPS, Duel, set_grads, targeted

optgen = pytest.importorskip("optgen")
if not hasattr(optgen, "load"):
    pytest.skip("optgen.load is not there", allow_module_level=True)

SPECS = Path(__file__).parents[1] / "specs"
SHAPES = [(64, 3, 3, 3), (7,), (), (300, 5), (5, 300), (2, 3, 4, 5)]
ORACLES: dict[str, tuple[str, type[Oracle]]] = {
    "AdEMAMix": ("ademamix", AdEMAMixOracle),
    "StableAdamW": ("stable_adamw", StableAdamWOracle),
    "Adafactor": ("adafactor", AdafactorOracle),
    "ScheduleFreeAdamW": ("schedule_free_adamw", ScheduleFreeAdamWOracle),
    "NovoGrad": ("novograd", NovoGradOracle),
    "RAdam": ("radam", RAdamOracle),
    "Prodigy": ("prodigy", ProdigyOracle),
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("AdEMAMix", {"lr": 0.01}),
    ("AdEMAMix", {"lr": 0.01, "t_alpha": 5.0, "t_beta3": 7.0}),
    ("AdEMAMix", {"lr": 0.01, "t_beta3": 100.0, "maximize": True}),
    ("StableAdamW", {"lr": 0.01}),
    ("StableAdamW", {"lr": 0.01, "betas": (0.8, 0.9), "skip_zeros": True}),
    ("Adafactor", {}),
    ("Adafactor", {"warmup_init": True, "beta1": 0.9}),
    ("Adafactor", {"lr": 0.01, "relative_step": False, "scale_parameter": False, "weight_decay": 0.1}),
    ("Adafactor", {"beta1": 0.8, "clip_threshold": 0.5, "percentile_clipping": 50}),
    ("NovoGrad", {"weight_decay": 0.1}),
    ("NovoGrad", {"weight_decay": 0.1, "grad_averaging": True, "max_unorm": 0.05}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "trust_ratio": "lamb"}),
]
EIGHT_BIT: list[tuple[str, dict[str, Any]]] = [
    ("AdEMAMix", {"lr": 0.01}),
    ("StableAdamW", {"lr": 0.01}),
    ("Adafactor", {"beta1": 0.9}),
    ("NovoGrad", {}),
    ("RAdam", {"lr": 0.01}),
]


# How GPUs store numbers is no matter of the rule: tests/cuda, and the matrix for the rules of the catalogue.
without_cuda = pytest.mark.parametrize("target", ["torch", "cpu"], indirect=True)


def case_id(value: Any) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{key}={entry}" for key, entry in value.items()) or "defaults"
    return None


def make_duel(name: str, target: str, settings: dict[str, Any], dtype: torch.dtype = torch.float32) -> Duel:
    file, oracle = ORACLES[name]
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    opt = targeted(getattr(optgen.load(SPECS / f"{file}.yaml"), name), params, target, **settings)
    bits = settings.get("optim_bits", 32)
    ours = {key: value for key, value in settings.items() if key not in ("optim_bits", "block_wise")}
    codec = "fp32" if bits == 32 else "int8" if settings.get("block_wise", True) else "int8_tensor"
    rule = oracle(params, param_dtype=dtype, codec=codec, **ours)
    return Duel(params, opt, rule, [str(shape) for shape in SHAPES], settled=dtype == torch.float32)


def draw(params: list[torch.nn.Parameter], t: int) -> list[torch.Tensor]:
    return [(torch.randn(param.shape) * (1 + t % 3)).to(param.dtype) for param in params]


def check_engine(it: Duel, target: str) -> None:
    assert it.opt.engines() == {target: len(SHAPES)}


@pytest.mark.parametrize(("name", "settings"), CASES, ids=case_id)
@without_cuda
def test_rule(name, settings, target) -> None:
    it = make_duel(name, target, settings)
    for t in range(1, STEPS + 1):
        it.step(draw(it.params, t))
        check_engine(it, target)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["AdEMAMix", "StableAdamW", "Adafactor", "NovoGrad", "RAdam"])
@without_cuda
def test_rule_on_16_bit_parameters(name, dtype, target) -> None:
    it = make_duel(name, target, {}, dtype)
    for t in range(1, 4):
        it.step(draw(it.params, t))
        check_engine(it, target)


@pytest.mark.parametrize("block_wise", [True, False], ids=["blocks", "tensorwise"])
@pytest.mark.parametrize(("name", "settings"), EIGHT_BIT, ids=case_id)
@without_cuda
def test_rule_in_8_bits(name, settings, block_wise, target) -> None:
    it = make_duel(name, target, settings | {"optim_bits": 8, "min_8bit_size": 0, "block_wise": block_wise})
    for t in range(1, 5):
        it.step(draw(it.params, t))
        check_engine(it, target)


def test_radam_takes_both_branches() -> None:
    lengths = []
    for t in range(1, STEPS + 1):
        lengths.append(2 / 0.001 - 1 - 2 * t * 0.999**t / (1 - 0.999**t))
    assert min(lengths) < 5 < max(lengths)


# schedule-free AdamW: group states, methods, a step that is refused


def adopt_group(it: Duel) -> None:
    """Group values are float64 on both sides: they agree to rounding, and are not adopted."""
    group = it.opt.param_groups[0]
    for key, value in it.oracle.group.items():  # type: ignore[attr-defined]
        assert isinstance(group[key], (int, float)), f"{key} is a {type(group[key]).__name__}"
        assert group[key] == pytest.approx(value, rel=1e-12), key


SCHEDULE_FREE = [{}, {"warmup_steps": 4, "r": 1.0, "weight_decay": 0.1}, {"optim_bits": 8, "min_8bit_size": 0}]


@pytest.mark.parametrize("settings", SCHEDULE_FREE, ids=case_id)
def test_schedule_free(settings, target) -> None:
    it = make_duel("ScheduleFreeAdamW", target, {"lr": 0.01} | settings)
    it.opt.train()
    for t in range(1, STEPS + 1):
        it.step(draw(it.params, t))
        check_engine(it, target)
        adopt_group(it)
    for method in ("eval", "train"):
        it.adopt()
        before = it.values()
        getattr(it.opt, method)()
        getattr(it.oracle, method)()
        it.check(before)
        after = it.values()
        assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        getattr(it.opt, method)()  # a second call changes nothing
        assert all(np.array_equal(a, b) for a, b in zip(after, it.values(), strict=True))


def test_schedule_free_with_a_rate_of_zero(target) -> None:
    """The first steps of a warm-up by a scheduler: no weight yet, nothing is divided by it."""
    it = make_duel("ScheduleFreeAdamW", target, {"lr": 0.0})
    it.settled = False
    it.opt.train()
    it.step(draw(it.params, 1))
    assert it.opt.param_groups[0]["weight_sum"] == 0.0


@pytest.mark.parametrize("mode", ["new", "eval"])
def test_schedule_free_refuses_a_step_outside_training(mode, target) -> None:
    it = make_duel("ScheduleFreeAdamW", target, {})
    if mode == "eval":
        it.opt.train()
        it.step(draw(it.params, 1))
        it.opt.eval()
    set_grads(it.params, draw(it.params, 2))
    before = [param.detach().clone() for param in it.params]
    with pytest.raises(RuntimeError, match="ScheduleFreeAdamW: call train"):
        it.opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, it.params, strict=True))


# Prodigy: sums over all parameters, a global d


PRODIGY = [
    {},
    {"safeguard_warmup": True, "lr": 0.5, "use_bias_correction": True, "d_coef": 50.0},
    {"growth_rate": 1.5, "d_coef": 2.0, "weight_decay": 0.1},
    {"decouple": False, "weight_decay": 0.1, "beta3": 0.9},
]


@pytest.mark.parametrize("settings", PRODIGY, ids=case_id)
def test_prodigy(settings, target) -> None:
    it = make_duel("Prodigy", target, {"d0": 1e-3} | settings)
    it.settled = False  # d may be any number within its ball, and every element follows it
    group = it.oracle.group  # type: ignore[attr-defined]
    for _ in range(STEPS):
        it.step([param.detach() + 0.1 for param in it.params])  # the gradient of a parabola
        check_engine(it, target)
        held = it.opt.param_groups[0]
        for key, ball in group.items():
            assert_within(held[key], ball, key)
            assert ball.rad <= 1e-4 * abs(ball.mid), key
            group[key] = Ball(held[key])
    assert held["d"] > 1.5e-3


def test_prodigy_has_one_d_for_all_groups(target) -> None:
    """Two groups estimate the same d as one group of the same parameters."""
    prodigy = optgen.load(SPECS / "prodigy.yaml").Prodigy
    start = [torch.randn(300), torch.randn(20, 5)]
    found = []
    for groups in (lambda ps: ps, lambda ps: [{"params": ps[:1]}, {"params": ps[1:]}]):
        params = [torch.nn.Parameter(value.clone()) for value in start]
        opt = targeted(prodigy, groups(params), target, d0=1e-3)
        for _ in range(4):
            set_grads(params, [param.detach() + 0.1 for param in params])
            opt.step()
        found.append([group["d"] for group in opt.param_groups])
    assert found[1] == found[0] * 2
    assert found[0][0] > 1e-3


def test_group_values_survive_a_checkpoint(tmp_path, target) -> None:
    it = make_duel("ScheduleFreeAdamW", target, {"warmup_steps": 4})
    it.opt.train()
    for t in range(1, 4):
        it.step(draw(it.params, t))
    torch.save(it.opt.state_dict(), tmp_path / "checkpoint.pt")
    fresh = make_duel("ScheduleFreeAdamW", target, {"warmup_steps": 4})
    for a, b in zip(fresh.params, it.params, strict=True):
        a.data.copy_(b.data)
    fresh.opt.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    grads = draw(it.params, 4)
    for duel in (it, fresh):
        set_grads(duel.params, grads)
        duel.opt.step()
    for a, b in zip(fresh.params, it.params, strict=True):
        assert torch.equal(a, b)


ADAFACTOR_REFUSES = [
    ({"lr": 0.1}, "no effect with relative_step=True"),
    ({"relative_step": False}, "relative_step=False needs lr"),
    ({"lr": 0.1, "relative_step": False, "warmup_init": True}, "requires relative_step=True"),
]


@pytest.mark.parametrize(("settings", "message"), ADAFACTOR_REFUSES, ids=case_id)
def test_rules_of_a_spec_are_raised(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        optgen.load(SPECS / "adafactor.yaml").Adafactor([torch.nn.Parameter(torch.ones(3))], **settings)

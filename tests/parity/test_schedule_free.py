"""Schedule-free AdamW, SGD and RAdam against Defazio et al. 2024 and the package schedulefree."""

from __future__ import annotations

import importlib
import io
from typing import Any

import pytest
import torch
from oracles.ball import Ball, sqrt
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

CLASSES = ("AdamWScheduleFree", "SGDScheduleFree", "RAdamScheduleFree")


class ScheduleFree(Rule):
    """Equations 3 to 5 of the paper, x kept beside y and z; a subclass gives the rate and the scaled gradient."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.beta = settings["betas"][0] if "betas" in settings else settings["momentum"]
        self.z, self.x = list(self.params), list(self.params)
        self.largest, self.weights = 0.0, 0.0

    def rate(self) -> float:
        return float(self.o["lr"] * min(1.0, self.t / max(self.o.get("warmup_steps", 0), 1)))

    def before(self, grads: Any) -> None:
        self.gamma = self.rate()
        self.largest = max(self.largest, self.gamma)
        weight = self.t ** self.o.get("r", 0.0) * self.largest ** self.o.get("weight_lr_power", 2.0)
        self.weights += weight
        self.c = weight / self.weights if self.weights else 0.0

    def scaled(self, g: Ball, s: dict[str, Ball]) -> Ball:
        return g

    def advance(self, i: int, p: Ball, g: Ball, s: dict[str, Ball]) -> Ball:
        u = self.scaled(g, s) + self.o["weight_decay"] * p
        self.z[i] = self.z[i] - self.gamma * u
        self.x[i] = (1 - self.c) * self.x[i] + self.c * self.z[i]
        return (1 - self.beta) * self.z[i] + self.beta * self.x[i]


class AdamW(ScheduleFree):
    """Algorithm 1: the gradient over the root of the average of its square."""

    def scaled(self, g: Ball, s: dict[str, Ball]) -> Ball:
        beta2 = self.o["betas"][1]
        return g / (sqrt(average(s, "v", beta2, g * g)) / (1 - beta2**self.t) ** 0.5 + self.o["eps"])


class RAdam(AdamW):
    """The rectified rate of Liu et al. 2019 in place of a warm-up."""

    def lengths(self) -> tuple[float, float]:
        beta2 = self.o["betas"][1]
        longest = 2 / (1 - beta2) - 1
        return longest, longest - 2 * self.t * beta2**self.t / (1 - beta2**self.t)

    def rate(self) -> float:
        longest, length = self.lengths()
        if length <= 4:
            return 0.0 if self.o["silent_sgd_phase"] else float(self.o["lr"])
        square = (length - 4) / (longest - 4) * (length - 2) / (longest - 2) * longest / length
        return float(self.o["lr"] * square**0.5)

    def scaled(self, g: Ball, s: dict[str, Ball]) -> Ball:
        u = super().scaled(g, s)
        return u if self.lengths()[1] > 4 else g


ADAMW = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
CASES: dict[str, tuple[str, type[ScheduleFree], dict[str, Any]]] = {
    "AdamW": ("AdamWScheduleFree", AdamW, ADAMW),
    "AdamW-warmup": ("AdamWScheduleFree", AdamW, ADAMW | {"warmup_steps": 6, "r": 1.0, "weight_lr_power": 1.0}),
    "SGD": ("SGDScheduleFree", ScheduleFree, SGD),
    "SGD-warmup": ("SGDScheduleFree", ScheduleFree, SGD | {"warmup_steps": 6, "r": 0.5}),
    "RAdam": ("RAdamScheduleFree", RAdam, ADAMW | {"silent_sgd_phase": True}),
    "RAdam-loud": ("RAdamScheduleFree", RAdam, ADAMW | {"silent_sgd_phase": False}),
}


def run(opt: Any, rule: ScheduleFree, params: list[torch.nn.Parameter], what: str) -> None:
    """Ten steps at y, then the average x; the averages are those that the paper keeps beside y."""
    before = copies(params)
    opt.train()
    for t in range(1, STEPS + 1):
        grads = make_grads(params, t)
        set_grads(params, grads)
        rule.step(grads)
        opt.step()
    assert_inside(params, rule, f"{what} at y")
    assert_moved(params, before)
    opt.eval()
    # p + (1 - 1 / beta) (z - p) = x: the factors are of size 1 / beta, and p carries y's radius.
    rule.params = [(1 / rule.beta) * y + (1 - 1 / rule.beta) * z for y, z in zip(rule.params, rule.z, strict=True)]
    for x, own in zip(rule.x, rule.params, strict=True):
        assert (abs(x.mid - own.mid) <= own.rad).all()
    assert_inside(params, rule, f"{what} at x")


@pytest.mark.parametrize(("name", "formula", "settings"), CASES.values(), ids=CASES)
def test_ten_steps_are_the_papers(name: str, formula: Any, settings: dict[str, Any], target: str) -> None:
    params = make_params()
    opt = getattr(optgen_optim, name)(params, **settings, target=target)
    run(opt, formula(params, **settings), params, name)
    assert opt.param_groups[0]["k"] == STEPS


@pytest.mark.parametrize(("name", "formula", "settings"), CASES.values(), ids=CASES)
def test_ten_steps_of_the_package_are_the_papers(name: str, formula: Any, settings: dict[str, Any]) -> None:
    pytest.importorskip("schedulefree")
    params = make_params()
    opt = getattr(importlib.import_module("schedulefree"), name)(params, **settings)
    run(opt, formula(params, **settings), params, f"schedulefree {name}")


def test_the_rectified_rate_takes_both_branches() -> None:
    rule = RAdam(make_params(), **ADAMW, silent_sgd_phase=True)
    rates = []
    for rule.t in range(1, STEPS + 1):
        rates.append(rule.rate())
    assert rates[0] == 0 < rates[-1]


@pytest.mark.parametrize("name", CLASSES)
def test_a_step_outside_of_training_is_refused(name: str, target: str) -> None:
    params = make_params()
    opt = getattr(optgen_optim, name)(params, target=target)
    set_grads(params, make_grads(params, 1))
    message = rf"^{name}: step\(\) in eval mode: call train\(\) before training"
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert not opt.state
    opt.train()
    opt.step()
    opt.eval()
    before, k = copies(params), opt.param_groups[0]["k"]
    with pytest.raises(RuntimeError, match=message):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    assert opt.param_groups[0]["k"] == k


def saved(opt: Any) -> Any:
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_checkpoint_remembers_the_mode(name: str, mode: str, target: str) -> None:
    """One saved in training goes on at once; one saved for evaluation holds x, and train() brings y back."""
    params = make_params()
    opt = getattr(optgen_optim, name)(params, weight_decay=0.1, target=target)
    opt.train()

    def train(each: Any, values: list[torch.nn.Parameter], first: int, last: int) -> None:
        for t in range(first, last + 1):
            torch.manual_seed(t)
            set_grads(values, make_grads(values, t))
            each.step()

    train(opt, params, 1, 7)
    getattr(opt, mode)()
    again = copies(params)
    other = getattr(optgen_optim, name)(again, target=target)
    other.load_state_dict(saved(opt))
    assert other.param_groups[0]["train_mode"] == (mode == "train")
    getattr(other, mode)()  # it is in that mode already
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    if mode == "eval":
        with pytest.raises(RuntimeError, match=name):
            train(other, again, 8, 8)
        opt.train()
        other.train()
    train(opt, params, 8, 10)
    train(other, again, 8, 10)
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))
    assert opt.param_groups[0]["weight_sum"] == other.param_groups[0]["weight_sum"]
    for a, b in zip(params, again, strict=True):
        assert all(torch.equal(opt.state[a][key], other.state[b][key]) for key in opt.state[a])


@pytest.mark.parametrize("name", ["AdamWScheduleFree", "RAdamScheduleFree"])
def test_the_iterate_is_never_quantized(name: str, target: str) -> None:
    params = make_params()
    opt = getattr(optgen_optim, name)(params, optim_bits=8, min_8bit_size=0, target=target)
    opt.train()
    set_grads(params, make_grads(params, 1))
    opt.step()
    for param in params:
        assert opt.state[param]["z"].dtype == torch.float32
        assert opt.state[param]["exp_avg_sq"].dtype == torch.uint8


def test_beta_of_zero_is_refused() -> None:
    """x follows from y and z by a division by beta."""
    with pytest.raises(ValueError, match=r"AdamWScheduleFree: betas\[0\] must be in \(0, 1\)"):
        optgen_optim.AdamWScheduleFree(make_params(), betas=(0.0, 0.999))
    with pytest.raises(ValueError, match=r"SGDScheduleFree: momentum must be in \(0, 1\)"):
        optgen_optim.SGDScheduleFree(make_params(), momentum=0.0)

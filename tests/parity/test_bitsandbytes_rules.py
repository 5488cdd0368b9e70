"""Rules that bitsandbytes has, against its kernels for the CPU and against the formulas in float64, on balls.

Its classes for a CPU decay before the update, as ours do. What they refuse or drop (SGD's dampening and nesterov,
Adagrad's lr_decay, RMSprop's momentum) is compared with torch.optim in test_torch_rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numerics.bounds import assert_within
from numerics.harness import NAMES, STEPS, make_grads, make_params, set_grads, targeted
from oracles import AdEMAMixOracle, LarsOracle, Oracle
from oracles.ball import Ball
from oracles.base import array
from oracles.storage import code_book, decode
from support.catalogue import optimizer_class
from support.torch_balls import TorchOnBalls

pytest.importorskip("optgen_optim")

DECAY = {"lr": 0.01, "weight_decay": 0.1}
LOOKUP = 2.0**-15  # bitsandbytes on a CPU looks codes up by y rounded to steps of this size


class LionOracle(Oracle):
    """Chen et al. 2023, algorithm 2. A sign that rounding may turn makes a ball of both directions."""

    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}
    quantized = frozenset({"exp_avg"})

    betas: tuple[float, float]

    def new_states(self, param: Ball, grad: Ball) -> dict[str, Any]:
        return {"exp_avg": np.zeros(param.shape)}

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        beta1, beta2 = self.betas
        mixed = beta1 * s["exp_avg"] + (1 - beta1) * grad
        s["exp_avg"] = beta2 * s["exp_avg"] + (1 - beta2) * grad
        unsure = (np.abs(mixed.mid) <= mixed.rad) & (mixed.rad > 0)
        return Ball(np.sign(mixed.mid), np.where(unsure, 2.0, 0.0))

    def apply(self, param: Ball, update: Ball) -> Ball:
        return param * (1 - self.lr * self.weight_decay) - self.lr * update


class SGDOracle(LarsOracle):
    """LARS that scales nothing."""

    scaling: ClassVar[tuple[str, float]] = ("none", 0.0)


Kept = Mapping[str, tuple[str, int | None]]  # our state: the tensor of bitsandbytes' that holds it, its row in that
MOMENTUM: Kept = {"momentum_buffer": ("1", None)}
EXP_AVG: Kept = {"exp_avg": ("1", None)}
MIXED: Kept = {"exp_avg": ("1", 0), "exp_avg_slow": ("1", 1), "exp_avg_sq": ("2", None)}
SLOW = DECAY | {"betas": (0.9, 0.99, 0.999), "t_alpha": 5, "t_beta3": 7}
CASES: dict[str, tuple[type[Oracle], dict[str, Any], Kept]] = {
    "SGD": (SGDOracle, DECAY | {"momentum": 0.9}, MOMENTUM),
    "Lion": (LionOracle, DECAY, EXP_AVG),
    "AdEMAMix": (AdEMAMixOracle, DECAY, MIXED),
    "AdEMAMix-schedules": (AdEMAMixOracle, SLOW, MIXED),
}


def bnb_optimizer(name: str, params: Sequence[torch.Tensor], **settings: Any) -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    return getattr(bnb.optim, name)(params, **settings)


def copies(params: Sequence[torch.Tensor]) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


@pytest.mark.parametrize("case", CASES)
def test_equals_bitsandbytes_32bit(case, target) -> None:
    """Ours and theirs lie in the balls of the formula after ten steps, none adopted from another."""
    oracle_class, settings, _ = CASES[case]
    name = case.split("-")[0]
    mine = make_params()
    others, oracle = copies(mine), oracle_class(mine, param_dtype=torch.float32, **settings)
    ours = targeted(optimizer_class(f"{name}32bit"), mine, target, **settings)
    wide = name == "AdEMAMix"  # its class of 32 bits allocates one average where it needs two
    theirs = bnb_optimizer(name if wide else f"{name}32bit", others, **settings)
    for t in range(1, STEPS + 1):
        grads = make_grads(mine, t, torch.float32, nonfinite=False)
        oracle.step(grads)
        for params, opt in ((mine, ours), (others, theirs)):
            set_grads(params, grads)
            opt.step()
    for what, a, b, ball in zip(NAMES, mine, others, oracle.balls, strict=True):
        assert_within(a, ball, f"ours, {what}")
        assert_within(b, ball, f"bitsandbytes, {what}")
        assert np.median(ball.rad / np.maximum(np.abs(ball.mid), 1e-3)) < 1e-4, what


@pytest.mark.parametrize("name", ["Adagrad", "RMSprop"])
def test_equals_bitsandbytes_and_torch(name, target) -> None:
    mine = make_params()
    others, reference = copies(mine), [torch.nn.Parameter(param.detach().double()) for param in mine]
    ours = targeted(optimizer_class(f"{name}32bit"), mine, target, **DECAY)
    theirs = bnb_optimizer(f"{name}32bit", others, **DECAY)
    balls, third = TorchOnBalls(), getattr(torch.optim, name)(reference, foreach=False, **DECAY)
    for t in range(1, STEPS + 1):
        grads = make_grads(mine, t, torch.float32, nonfinite=False)
        for params, opt in ((mine, ours), (others, theirs)):
            set_grads(params, grads)
            opt.step()
        set_grads(reference, [grad.double() for grad in grads])
        with balls:
            third.step()
    for what, a, b, expected in zip(NAMES, mine, others, reference, strict=True):
        assert_within(a, balls.ball(expected), f"ours, {what}")
        assert_within(b, balls.ball(expected), f"bitsandbytes, {what}")


def part(state: Mapping[str, Any], kept: tuple[str, int | None], prefix: str) -> torch.Tensor:
    """bitsandbytes' codes ("state") or scales ("absmax") of one of our states."""
    key, row = kept
    tensor: torch.Tensor = state[f"{prefix}{key}"]
    return tensor if row is None else tensor[row]


@pytest.mark.parametrize("case", CASES)
def test_equals_bitsandbytes_8bit(case, target) -> None:
    """From bitsandbytes' own 8-bit states each step: both move the parameters alike, and its codes are never more than
    one from ours but near zero, where its lookup is coarser than the book."""
    oracle_class, settings, kept = CASES[case]
    name = f"{case.split('-')[0]}8bit"
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4096,), (5000,), (64, 80))]
    others = copies(mine)
    ours = targeted(optimizer_class(name), mine, target, **settings)
    theirs = bnb_optimizer(name, others, **settings)
    oracle = oracle_class(mine, param_dtype=torch.float32, codec="int8", **settings)
    for t in range(1, STEPS + 1):
        for i, (a, b) in enumerate(zip(mine, others, strict=True)):
            if t > 1:
                follow(ours.state[a], theirs.state[b], kept)
                a.data.copy_(b.data)
                oracle.adopt(i, b, read(theirs.state[b], kept))
        grads = make_grads(mine, t, torch.float32, nonfinite=False)
        for params, opt in ((mine, ours), (others, theirs)):
            set_grads(params, grads)
            opt.step()
        oracle.step(grads)
        for a, b, ball in zip(mine, others, oracle.balls, strict=True):
            assert_within(a, ball, "ours")
            assert_within(b, ball, "bitsandbytes")
            compare_codes(ours.state[a], theirs.state[b], kept)


def follow(our_state: dict[str, Any], their_state: Mapping[str, Any], kept: Kept) -> None:
    """Take over what bitsandbytes holds: same codes, same scales, other names."""
    for name, where in kept.items():
        our_state[name].copy_(part(their_state, where, "state"))
        scales = our_state[f"{name}_absmax"]
        scales.copy_(part(their_state, where, "absmax").reshape(scales.shape))


def read(state: Mapping[str, Any], kept: Kept) -> dict[str, np.ndarray]:
    return {
        name: decode(part(state, where, "state"), part(state, where, "absmax"), where[0] == "1")
        for name, where in kept.items()
    }


def compare_codes(ours: Mapping[str, Any], theirs: Mapping[str, Any], kept: Kept) -> None:
    for name, where in kept.items():
        mine = ours[name].reshape(-1).numpy().astype(int)
        other = part(theirs, where, "state").reshape(-1).numpy().astype(int)
        book = code_book(where[0] == "1")
        coarse = np.abs(book[mine] - book[other]) <= LOOKUP
        assert (coarse | (np.abs(mine - other) <= 1)).all(), name
        assert (coarse | (mine == other)).mean() > 0.98, f"{name}: the lookup misses few codes"
        scale = Ball(array(part(theirs, where, "absmax")).reshape(-1), 0)
        scale.rad = 2.0**-21 * scale.mid
        assert_within(ours[f"{name}_absmax"].reshape(-1), scale, name)

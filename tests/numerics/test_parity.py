"""The catalogue against torch.optim, and against bitsandbytes on the CPU for what it does right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from oracles import AdamOracle, LarsOracle
from oracles.ball import Ball
from oracles.base import array
from oracles.storage import code_book, decode
from support.catalogue import optimizer_class, rows

from numerics.bounds import assert_within
from numerics.harness import NAMES, STEPS, make_grads, make_params, set_grads, targeted

pytest.importorskip("optgen_optim")

DECAY = {"lr": 0.01, "weight_decay": 0.1}
MOMENTUM = DECAY | {"momentum": 0.9}
NO_CLIP = {"max_unorm": 0.0}
TORCH = {
    "AdamW": ("AdamW", "AdamW", DECAY, {}),
    "AdamW-amsgrad": ("AdamW", "AdamW", DECAY | {"amsgrad": True}, {}),
    "AdamW-maximize": ("AdamW", "AdamW", DECAY | {"maximize": True}, {}),
    "Adam": ("Adam", "Adam", DECAY, {}),
    "Adam-amsgrad-maximize": ("Adam", "Adam", DECAY | {"amsgrad": True, "maximize": True}, {}),
    "LAMB-none": ("LAMB", "AdamW", DECAY, {"trust_ratio": "none"} | NO_CLIP),
    "LAMB-none-coupled": ("LAMB", "Adam", DECAY, {"trust_ratio": "none", "adam_w_mode": False} | NO_CLIP),
    "LARS-SGD": ("LARS", "SGD", MOMENTUM | {"dampening": 0.3}, NO_CLIP),
    "LARS-SGD-nesterov": ("LARS", "SGD", MOMENTUM | {"nesterov": True}, NO_CLIP),
    "PytorchLARS-SGD": ("PytorchLARS", "SGD", DECAY, NO_CLIP),
}


def run_both(ours: Any, theirs: Any, mine: Sequence[torch.Tensor], others: Sequence[torch.Tensor], oracle: Any) -> None:
    """Ten steps on the same gradients, none adopted from another: the oracle's radii grow with the steps."""
    for t in range(1, STEPS + 1):
        grads = make_grads(mine, t, mine[0].dtype, nonfinite=False)
        for params in (mine, others):
            set_grads(params, grads)
        oracle.step(grads)
        ours.step()
        theirs.step()


@pytest.mark.parametrize("case", TORCH.values(), ids=TORCH)
def test_equals_torch(case, target) -> None:
    """Ours and torch's float32 results both lie in the ball around the float64 result, after ten steps."""
    name, torch_name, settings, only_ours = case
    if rows()[name].torch_only and target != "torch":
        pytest.skip("runs on the torch target alone")
    mine = make_params()
    others = [torch.nn.Parameter(param.detach().clone()) for param in mine]
    ours = targeted(optimizer_class(name), mine, target, **settings, **only_ours)
    theirs = getattr(torch.optim, torch_name)(others, **settings)
    if torch_name == "SGD":
        oracle: Any = LarsOracle(mine, param_dtype=torch.float32, **settings, **NO_CLIP)
    else:
        oracle = AdamOracle(mine, param_dtype=torch.float32, decoupled=torch_name == "AdamW", **settings)
    run_both(ours, theirs, mine, others, oracle)
    for what, a, b, ball in zip(NAMES, mine, others, oracle.balls, strict=True):
        assert_within(a, ball, f"ours, {what}")
        assert_within(b, ball, f"torch, {what}")
        assert np.median(ball.rad / np.maximum(np.abs(ball.mid), 1e-3)) < 1e-4, what


def test_state_names_and_kinds_are_torchs(target) -> None:
    param = torch.nn.Parameter(torch.ones(5, 3))
    states = []
    for opt in (
        targeted(optimizer_class("AdamW"), [param], target, amsgrad=True),
        torch.optim.AdamW([param], amsgrad=True),
    ):
        param.grad = torch.ones(5, 3)
        opt.step()
        states.append({name: (value.dtype, tuple(value.shape)) for name, value in opt.state[param].items()})
    assert states[0] == states[1]


LOOKUP = 2.0**-15  # bitsandbytes on a CPU looks codes up by y rounded to steps of this size
BNB_STATES = {"state1": ("exp_avg", True), "state2": ("exp_avg_sq", False)}


def bnb_optimizer(name: str, params: list[torch.Tensor], **settings: Any) -> Any:
    bnb = pytest.importorskip("bitsandbytes")
    if params[0].is_cuda:
        pytest.skip("its kernels for a GPU are others than those that this is derived for")
    return getattr(bnb.optim, name)(params, **settings)


def test_equals_bitsandbytes_32bit(target) -> None:
    mine = make_params()
    others = [torch.nn.Parameter(param.detach().clone()) for param in mine]
    ours = targeted(optimizer_class("AdamW32bit"), mine, target, **DECAY)
    theirs = bnb_optimizer("AdamW32bit", others, **DECAY)
    oracle = AdamOracle(mine, param_dtype=torch.float32, **DECAY)
    run_both(ours, theirs, mine, others, oracle)
    for what, a, b, ball in zip(NAMES, mine, others, oracle.balls, strict=True):
        assert_within(a, ball, f"ours, {what}")
        assert_within(b, ball, f"bitsandbytes, {what}")


def test_equals_bitsandbytes_8bit(target) -> None:
    """From bitsandbytes' own 8-bit states each step: both move the parameters alike, scales agree, and its codes
    are never more than one from ours but near zero, where its lookup is coarser than the book."""
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4096,), (5000,), (64, 80))]
    others = [torch.nn.Parameter(param.detach().clone()) for param in mine]
    ours = targeted(optimizer_class("AdamW8bit"), mine, target, **DECAY)
    theirs = bnb_optimizer("AdamW8bit", others, **DECAY)
    oracle = AdamOracle(mine, param_dtype=torch.float32, codec="int8", **DECAY)
    for t in range(1, STEPS + 1):
        for i, (a, b) in enumerate(zip(mine, others, strict=True)):
            follow(ours.state.get(a, {}), theirs.state[b], a, b)
            oracle.adopt(i, b, read_bnb(theirs.state[b]))
        grads = make_grads(mine, t, torch.float32, nonfinite=False)
        for params, opt in ((mine, ours), (others, theirs)):
            set_grads(params, grads)
            opt.step()
        oracle.step(grads)
        for a, b, ball in zip(mine, others, oracle.balls, strict=True):
            assert_within(a, ball, "ours")
            assert_within(b, ball, "bitsandbytes")
            compare_codes(ours.state[a], theirs.state[b])


def follow(our_state: dict, their_state: dict, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Take over what bitsandbytes holds: same codes, same scales, other names."""
    if not our_state:
        return
    ours.data.copy_(theirs.data)
    for key, (name, _) in BNB_STATES.items():
        our_state[name].copy_(their_state[key])
        scales = our_state[f"{name}_absmax"]
        scales.copy_(their_state[f"absmax{key[-1]}"].reshape(scales.shape))


def read_bnb(state: dict) -> dict[str, np.ndarray]:
    return {
        name: decode(state[key], state[f"absmax{key[-1]}"], signed).mid
        for key, (name, signed) in BNB_STATES.items()
        if key in state
    }


def compare_codes(ours: dict, theirs: dict) -> None:
    for key, (name, signed) in BNB_STATES.items():
        mine, other = ours[name].reshape(-1).numpy().astype(int), theirs[key].reshape(-1).numpy().astype(int)
        book = code_book(signed)
        coarse = np.abs(book[mine] - book[other]) <= LOOKUP
        assert (coarse | (np.abs(mine - other) <= 1)).all()
        assert (coarse | (mine == other)).mean() > 0.98, "the lookup misses few codes"
        scale = Ball(array(theirs[f"absmax{key[-1]}"]).reshape(-1), 0)
        scale.rad = 2.0**-21 * scale.mid
        assert_within(ours[f"{name}_absmax"].reshape(-1), scale, name)

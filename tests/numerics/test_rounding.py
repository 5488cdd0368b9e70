"""Roundings of parameters that the matrix lacks: dtypes side by side, elements left out; what a duel notices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.rounding import KEPT, ROUNDINGS
from support.catalogue import make_oracle, optimizer_class

from numerics.harness import Duel, duel, make_grads, make_params, targeted

pytest.importorskip("optgen_optim")

KEEPING = [name for name, rounding in ROUNDINGS.items() if rounding.kept is not None]
OTHERS = [name for name in ROUNDINGS if name != "nearest"]


def mixed(target: str, rounding: str, **settings: object) -> Duel:
    """AdamW on parameters of all dtypes that the rounding takes, in turn: positions are not those within a kernel."""
    dtypes = [torch.float32, *ROUNDINGS[rounding].dtypes]
    made = {dtype: make_params(dtype) for dtype in dtypes}
    params = [made[dtype][i] for i in range(4, 8) for dtype in dtypes]
    settings = {"rounding": rounding, "lr": 0.01, **settings}
    opt = targeted(optimizer_class("AdamW"), params, target, **settings)
    names = [f"{param.dtype} {tuple(param.shape)}" for param in params]
    return Duel(params, opt, make_oracle("AdamW", params, settings), names)


def run(it: Duel, steps: int = 4) -> None:
    for t in range(1, steps + 1):
        it.step([make_grads([param], t, param.dtype, nonfinite=False)[0] for param in it.params])


def test_draws_follow_from_positions_among_all_parameters(target: str) -> None:
    run(mixed(target, "stochastic", seed=2**53 - 1))


@pytest.mark.parametrize("rounding", KEEPING)
def test_float32_parameters_have_nothing_beside_them(rounding: str) -> None:
    it = mixed("torch", rounding)
    run(it)
    held = {param.dtype for param in it.params if KEPT in it.opt.state[param]}
    assert held == set(ROUNDINGS[rounding].dtypes)


@pytest.mark.parametrize("rounding", OTHERS)
def test_elements_that_take_no_part_keep_their_values(rounding: str) -> None:
    it = duel("AdamW", "torch", torch.bfloat16, rounding=rounding, skip_zeros=True, lr=1e-3)
    for t in range(1, 6):
        before = it.values()
        grads = make_grads(it.params, t, torch.bfloat16, nonfinite=False)
        it.step(grads)
        for old, new, grad in zip(before, it.values(), grads, strict=True):
            still = (grad == 0).numpy()
            assert np.array_equal(old[still], new[still])
            assert rounding == "stochastic" or still.all() or (old != new)[~still].mean() > 0.9


def test_another_seed_is_noticed() -> None:
    it = mixed("torch", "stochastic", seed=1)
    it.oracle = make_oracle("AdamW", it.params, {"rounding": "stochastic", "lr": 0.01, "seed": 2})
    with pytest.raises(AssertionError, match="out of bounds"):
        run(it, steps=1)


@pytest.mark.parametrize("rounding", KEEPING)
def test_what_is_lost_is_noticed(rounding: str) -> None:
    it = duel("AdamW", "torch", torch.bfloat16, rounding=rounding)
    run(it, steps=1)
    before = it.values()
    it.opt.state[it.params[7]][KEPT].zero_()
    with pytest.raises(AssertionError, match="kept beside it"):
        it.check(before)

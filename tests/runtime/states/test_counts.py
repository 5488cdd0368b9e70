"""Counts of steps beyond 2^24, from where float32 no longer holds every whole number."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit
from support.targets import ready
from torch import Tensor

from optgen.runtime.states.philox import Draw
from runtime.training import same, saved, snapshot

LAST = 2**24  # the last number of a step that float32 counts to


@pytest.fixture(params=["torch", "cpu", "cuda"])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each target; cuda on the stand-in."""
    with ready(request.param) as name:
        yield name


def late(target: str, steps: float = LAST - 1, **settings: Any) -> tuple[Tensor, Any]:
    """A parameter, and an optimizer that has stepped it so many times."""
    torch.manual_seed(5)
    param = torch.nn.Parameter(torch.randn(64, 33).bfloat16())
    opt = AdamW([param], lr=1e-4, target=target, **settings)
    train(opt, param, 1)
    checkpoint = opt.state_dict()
    checkpoint["state"][0]["step"] = torch.tensor(steps, dtype=torch.float32)
    opt.load_state_dict(checkpoint)
    return param, opt


def train(opt: Any, param: Tensor, steps: int) -> None:
    generator = torch.Generator().manual_seed(6)
    for _ in range(steps):
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        opt.step()


def exact(opt: Any) -> float:
    """Number of steps in a checkpoint."""
    return float(saved(opt)["state"][0]["step"])


def test_counts_go_on_and_keep_torchs_form(target: str) -> None:
    param, opt = late(target)
    for number in range(LAST, LAST + 6):
        train(opt, param, 1)
        step, count = opt.state[param]["step"], saved(opt)["state"][0]["step"]
        assert (step.dtype, step.shape, float(step)) == (torch.float32, (), float(torch.tensor(float(number)).float()))
        assert (float(count), count.shape) == (number, ())
        assert count.dtype is (torch.float32 if float(step) == number else torch.float64)
    theirs = torch.optim.AdamW([torch.nn.Parameter(param.detach().clone())])
    theirs.load_state_dict({key: value for key, value in saved(opt).items() if key != "optgen"})
    assert float(theirs.state[theirs.param_groups[0]["params"][0]]["step"]) == LAST + 5


def test_draws_do_not_repeat(target: str) -> None:
    param, opt = late(target, rounding="stochastic", seed=9)
    start = param.detach().clone()
    moments = {name: opt.state[param][name].clone() for name in ("exp_avg", "exp_avg_sq")}
    results = []
    for number in range(LAST, LAST + 5):
        with torch.no_grad():
            param.copy_(start)
            for name, value in moments.items():
                opt.state[param][name].copy_(value)
        train(opt, param, 1)
        results.append(param.detach().clone())
        assert exact(opt) == number
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
    bits = [Draw(9, 0, number).bits16(64, "cpu") for number in range(LAST, LAST + 5)]
    assert not any(torch.equal(a, b) for i, a in enumerate(bits) for b in bits[:i])


def test_every_target_draws_the_same() -> None:
    results = []
    for target in ("torch", "cpu", "cuda"):
        with ready(target):
            param, opt = late(target, rounding="stochastic", percentile_clipping=50)
            train(opt, param, 4)
            results.append((param.detach().clone(), opt.state[param]["gnorm_vec"].clone()))
    for values, window in results[1:]:
        assert torch.equal(window, results[0][1])
        assert (values != results[0][0]).float().mean() < 0.01, "but for the last place of what is rounded"


@pytest.mark.parametrize("way", ["checkpoint", "deepcopy", "file"])
def test_a_run_goes_on_as_if_it_had_not_been_interrupted(way: str, target: str) -> None:
    param, opt = late(target, rounding="stochastic")
    train(opt, param, 3)
    if way == "checkpoint":
        twin = torch.nn.Parameter(param.detach().clone())
        other: Any = AdamW([twin], target=target, rounding="stochastic")
        other.load_state_dict(saved(opt))
        assert exact(other) == LAST + 2
    elif way == "deepcopy":
        twin, other = copy.deepcopy((param, opt))
    else:
        file = io.BytesIO()
        torch.save((param, opt), file)
        file.seek(0)
        twin, other = torch.load(file, weights_only=False)
    train(opt, param, 3)
    train(other, twin, 3)
    assert exact(opt) == exact(other) == LAST + 5
    assert same(snapshot(opt, [param]), snapshot(other, [twin]))


def test_a_count_that_is_set_is_followed(target: str) -> None:
    param, opt = late(target)
    train(opt, param, 3)
    opt.state[param]["step"].fill_(7.0)
    train(opt, param, 1)
    assert float(opt.state[param]["step"]) == exact(opt) == 8.0
    opt.state[param]["step"] = LAST + 5
    train(opt, param, 1)
    assert exact(opt) == LAST + 6
    opt.state[param]["step"] = torch.tensor(3.0)
    train(opt, param, 1)
    assert float(opt.state[param]["step"]) == exact(opt) == 4.0


def test_a_skipped_step_is_not_counted(target: str) -> None:
    param, opt = late(target)
    train(opt, param, 3)
    opt.grad_scale, opt.found_inf = torch.ones(1), torch.ones(1)
    train(opt, param, 1)
    assert exact(opt) == LAST + 2
    opt.found_inf = torch.zeros(1)
    train(opt, param, 1)
    assert exact(opt) == LAST + 3


def test_counts_of_several_sets_of_gradients_are_one(target: str) -> None:
    """Engines of each set are kept, and advance the same counts."""
    params = [torch.nn.Parameter(torch.randn(8)) for _ in range(2)]
    opt = AdamW8bit(params, target=target)
    train(opt, params[0], 1)
    opt.state[params[0]]["step"].fill_(LAST)
    for number in range(1, 6):
        params[1].grad = torch.randn(8) if number % 2 else None
        train(opt, params[0], 1)
        assert exact(opt) == LAST + number


@pytest.mark.parametrize("steps", [-5.0, float("nan"), float("inf"), 1e30, 2.5])
def test_nonsense_written_into_a_count_does_the_same_on_every_target(steps: float) -> None:
    """It is computed with as it is, and reaches no memory: a window has a slot for it, and draws a number."""
    results = []
    for target in ("torch", "cpu", "cuda"):
        with ready(target):
            param, opt = late(target, 3.0, rounding="stochastic", percentile_clipping=50)
            train(opt, param, 1)
            opt.state[param]["step"].fill_(steps)
            train(opt, param, 1)
            results.append((param.detach().float(), opt.state[param]["gnorm_vec"], opt.state[param]["step"]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0.01, atol=0.0, equal_nan=True)

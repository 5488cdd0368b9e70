"""Rules whose states are matrices of shapes of their own: on every target, in few bits, against float64."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.targets import ready
from torch import Tensor, nn

import optgen
from matrices.small import Rule, followed, galore

SPECS = Path(__file__).parent / "specs"
SHAPES = ((24, 40), (40, 24), (16, 16), (3, 30))
TARGETS = ("torch", "cpu", "cuda")
STEPS = 7


@cache
def loaded(name: str, cls: str) -> Any:
    return getattr(optgen.load(SPECS / f"{name}.yaml"), cls)


def gradients(seed: int, shapes: Any = SHAPES, steps: int = STEPS) -> list[list[Tensor]]:
    """Of every shape, those of all steps."""
    sources = [torch.Generator().manual_seed(100 * seed + index) for index in range(len(shapes))]
    pairs = zip(shapes, sources, strict=True)
    return [[torch.randn(shape, generator=source) for _ in range(steps)] for shape, source in pairs]


def trained(
    cls: Any, target: str, shapes: Any = SHAPES, steps: int = STEPS, **settings: Any
) -> tuple[list[Tensor], Any]:
    params = [nn.Parameter(grads[0].clone()) for grads in gradients(0, shapes)]
    with ready(target) as chosen:
        opt = cls(params, target=chosen, **settings)
        for grads in zip(*gradients(1, shapes, steps), strict=True):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            opt.step()
    return [param.detach() for param in params], opt


def assert_follows(found: list[Tensor], rule: Rule, shapes: Any = SHAPES, steps: int = STEPS) -> None:
    starts, grads = gradients(0, shapes), gradients(1, shapes, steps)
    for param, start, own in zip(found, starts, grads, strict=True):
        right = followed(rule, start[0].double().numpy(), [g.double().numpy() for g in own])
        worst = abs(param.double().numpy() - right.param).max()
        assert worst <= right.error, (tuple(param.shape), worst, right.error)
        assert right.error < 0.02 * abs(right.param - start[0].double().numpy()).max(), "the bound says nothing"


GALORE = {"rank": 4, "update_proj_gap": 3}


@pytest.mark.parametrize("target", TARGETS)
def test_galore_follows_the_formula(target: str) -> None:
    """Tall, wide, square and of fewer rows than the rank, with two refreshes on the way."""
    found, opt = trained(loaded("galore", "Galore"), target, weight_decay=0.1, **GALORE)
    assert_follows(found, galore(rank=4, gap=3, weight_decay=0.1))
    shapes = [{name: tuple(value.shape) for name, value in entry.items()} for entry in opt.state.values()]
    assert shapes[0] == {"step": (), "basis": (4, 24), "exp_avg": (40, 4), "exp_avg_sq": (40, 4)}
    assert shapes[3] == {"step": (), "basis": (3, 3), "exp_avg": (30, 3), "exp_avg_sq": (30, 3)}


@pytest.mark.parametrize("settings", [{}, {"optim_bits": 16}, {"optim_bits": 8}, {"optim_bits": 4}], ids=str)
def test_targets_agree(settings: dict[str, Any]) -> None:
    small = {"min_8bit_size": 0} if settings else {}
    results = [trained(loaded("galore", "Galore"), target, **GALORE, **settings, **small) for target in TARGETS]
    (first, opt), *others = results
    for found, other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, found, strict=True))
        for entry, theirs in zip(opt.state.values(), other.state.values(), strict=True):
            assert all(torch.equal(entry[key].cpu(), theirs[key].cpu()) for key in entry)


def test_small_states_keep_their_precision() -> None:
    """`min_8bit_size` counts the numbers of the state, not those of the parameter."""
    _, opt = trained(loaded("galore", "Galore"), "cpu", steps=1, optim_bits=8, min_8bit_size=150, **GALORE)
    assert [entry["exp_avg"].dtype for entry in opt.state.values()] == [torch.uint8] * 2 + [torch.float32] * 2
    assert {entry["basis"].dtype for entry in opt.state.values()} == {torch.float32}


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_resumes_bit_for_bit(bits: int) -> None:
    cls, settings = loaded("galore", "Galore"), {**GALORE, "optim_bits": bits}
    if bits < 32:
        settings["min_8bit_size"] = 0
    whole, _ = trained(cls, "cpu", **settings)
    half, first = trained(cls, "cpu", steps=5, **settings)
    params = [nn.Parameter(x.clone()) for x in half]
    opt = cls(params, target="cpu", **settings)
    opt.load_state_dict(first.state_dict())
    for grads in list(zip(*gradients(1), strict=True))[5:]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))


def test_a_checkpoint_of_another_rank_brings_it() -> None:
    cls = loaded("galore", "Galore")
    _, opt = trained(cls, "cpu", **GALORE)
    other = cls([nn.Parameter(torch.zeros(shape)) for shape in SHAPES], rank=2)
    saved = opt.state_dict()
    other.load_state_dict(saved)
    assert other.param_groups[0]["rank"] == 4
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"][:, :2].clone()
    with pytest.raises(ValueError, match=r"parameter 0: exp_avg has shape \(40, 2\), not \(40, 4\)"):
        other.load_state_dict(saved)


def test_a_rank_that_changes_is_refused() -> None:
    _, opt = trained(loaded("galore", "Galore"), "cpu", **GALORE)
    opt.param_groups[0]["rank"] = 3
    with pytest.raises(ValueError, match=r"state 'basis' has shape \(4, 24\), not \(3, 24\)"):
        opt.step()


@pytest.mark.parametrize("target", TARGETS)
def test_a_matrix_that_is_not_finite_is_left_and_named(target: str) -> None:
    cls = loaded("galore", "Galore")
    before, opt = trained(cls, target, SHAPES[:2], **GALORE)
    starts = [value.clone() for value in before]
    bad, good = opt.param_groups[0]["params"]
    states = {key: value.clone() for key, value in opt.state[bad].items() if key != "step"}
    bad.grad[2, 3] = float("nan")
    with ready(target), pytest.warns(UserWarning, match=r"galore: parameter 0 of shape \(24, 40\) was left as it was"):
        opt.step()
    assert torch.equal(bad, starts[0])
    assert all(torch.equal(opt.state[bad][key], value) for key, value in states.items())
    assert not torch.equal(good, starts[1])
    assert opt.state[good]["step"] == STEPS + 1


def test_within_backward() -> None:
    cls, results = loaded("galore", "Galore"), []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 20, bias=False), nn.Tanh(), nn.Linear(20, 12, bias=False))
        opt = cls(model.parameters(), fused_backward=fused, target="cpu", **GALORE)
        for _ in range(4):
            opt.zero_grad()
            model(torch.eye(12)).square().mean().backward()
            opt.step()
        results.append([param.detach().clone() for param in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

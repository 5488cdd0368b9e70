"""LOMO and AdaLOMO against lomo-optim, and against their algorithms in its order of operations, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optgen_optim import LOMO, AdaLOMO
from support.targets import ready
from torch import Tensor, nn

STEPS = 4
RATE, DECAY = 0.05, 0.1


class Model(nn.Module):
    """Matrices, a vector and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(6, 9), nn.Linear(9, 4)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.tanh(self.first(x))) * self.scale
        return result


def loss_of(model: nn.Module, step: int, dtype: torch.dtype = torch.float32) -> Tensor:
    data = torch.randn(7, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
    result: Tensor = model(data).square().mean()
    return result


def lomo(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
    """A parameter after a step of LOMO."""
    return param * (1 - RATE * DECAY) - RATE * grad


def adalomo(param: Tensor, grad: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
    """A parameter after a step of AdaLOMO."""
    decay = 1 - step**-0.8
    squared = grad * grad + 1e-30
    if param.ndim == 2:
        row = state["row"] = decay * state.get("row", torch.zeros(())) + (1 - decay) * squared.mean(-1)
        col = state["col"] = decay * state.get("col", torch.zeros(())) + (1 - decay) * squared.mean(-2)
        update = grad * (row / row.mean()).rsqrt()[:, None] * col.rsqrt()[None]
    else:
        average = state["all"] = decay * state.get("all", torch.zeros(())) + (1 - decay) * squared
        update = grad * average.rsqrt()
    update = update / max(1.0, float(update.square().mean().sqrt()))
    rate = RATE * max(1e-3, float(param.square().mean().sqrt()))
    return param * (1 - rate * DECAY) - rate * update


@pytest.mark.parametrize("target", ["torch", "cpu", "cuda"])
@pytest.mark.parametrize(("cls", "rule"), [(LOMO, lomo), (AdaLOMO, adalomo)])
def test_the_algorithm(cls: Any, rule: Any, target: str) -> None:
    model, other = Model(), Model().double()
    states: list[dict[str, Tensor]] = [{} for _ in other.parameters()]
    with ready(target) as chosen:
        opt = cls(model.parameters(), lr=RATE, weight_decay=DECAY, target=chosen)
        for step in range(STEPS):
            loss_of(model, step).backward()
            assert all(param.grad is None for param in model.parameters())
            opt.step()
    for step in range(STEPS):
        other.zero_grad()
        loss_of(other, step, torch.float64).backward()
        with torch.no_grad():
            for param, state in zip(other.parameters(), states, strict=True):
                param.copy_(rule(param, param.grad, state, step + 1))
    for param, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param.double(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("cls", "name"), [(LOMO, "Lomo"), (AdaLOMO, "AdaLomo")])
def test_it_is_lomo_optims(cls: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs puts its states on a GPU, and fails for scalars."""
    package = pytest.importorskip("lomo_optim")
    monkeypatch.setattr(Tensor, "cuda", lambda self: self)
    ours, theirs = Model(), Model()
    for model in (ours, theirs):
        model.scale.requires_grad_(False)
    opt = cls([param for param in ours.parameters() if param.requires_grad], lr=RATE, weight_decay=DECAY)
    del theirs.scale
    theirs.scale = 1.5  # type: ignore[assignment]
    original = getattr(package, name)(theirs, lr=RATE, weight_decay=DECAY)
    for step in range(STEPS):
        loss_of(ours, step).backward()
        opt.step()
        original.fused_backward(loss_of(theirs, step), RATE)
    for key, param in theirs.named_parameters():
        found = dict(ours.named_parameters())[key]
        start = dict(Model().named_parameters())[key]
        bound = 8 * STEPS * 2**-24 * param.detach().abs().max()  # some roundings a step, in either
        assert (found - param).detach().abs().max() <= bound
        assert (found - start).detach().abs().max() > 1000 * bound, "it has hardly moved"


@pytest.mark.parametrize("cls", [LOMO, AdaLOMO])
def test_it_learns(cls: Any) -> None:
    model = Model()
    opt = cls(model.parameters(), lr=0.1)
    first = float(loss_of(model, 0).detach())
    for _ in range(30):
        loss_of(model, 0).backward()
        opt.step()
    assert float(loss_of(model, 0).detach()) < first / 4


def test_tied_weights_are_updated_once() -> None:
    weight = nn.Parameter(torch.ones(3))
    opt = LOMO([weight], lr=0.5)
    (weight.sum() + 2 * weight.sum()).backward()
    opt.step()
    assert torch.equal(weight, torch.full((3,), 1 - 0.5 * 3))

"""clip_by_last_norm: the norm of a step clips the next one, within backward and in a step of all parameters."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from optgen_optim import LOMO, SGD, AdaLOMO, AdamW, Prodigy, create
from support.targets import ready
from torch import Tensor, nn

from runtime.training import same, saved, snapshot

LIMIT = 0.5


def make_model() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def loss_of(model: nn.Module, step: int) -> Tensor:
    data = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
    result: Tensor = model(data).square().sum() * (1 + step)
    return result


def train(model: nn.Module, opt: Any, first: int = 0, last: int = 4) -> None:
    for step in range(first, last):
        opt.zero_grad()
        loss_of(model, step).backward()
        opt.step()


def clipped(model: nn.Module, steps: int, rate: float) -> list[float]:
    """SGD in float64, each gradient clipped by the norm of the one before; the norms."""
    model.double()
    norms: list[float] = []
    for step in range(steps):
        model.zero_grad()
        data = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).double()
        (model(data).square().sum() * (1 + step)).backward()
        factor = min(1.0, LIMIT / (norms[-1] + 1e-6)) if norms else 1.0
        grads = [param.grad for param in model.parameters()]
        norms.append(math.sqrt(sum(float(grad.square().sum()) for grad in grads)))  # type: ignore[union-attr]
        with torch.no_grad():
            for param, grad in zip(model.parameters(), grads, strict=True):
                param -= rate * factor * grad  # type: ignore[operator]
    return norms


@pytest.mark.parametrize("target", ["torch", "cpu", "cuda"])
@pytest.mark.parametrize("cls", [LOMO, SGD])
def test_the_norm_of_the_step_before(cls: Any, target: str) -> None:
    settings = {} if cls is LOMO else {"clip_by_last_norm": True}
    model, other = make_model(), make_model()
    with ready(target) as chosen:
        opt = cls(model.parameters(), lr=0.01, max_grad_norm=LIMIT, target=chosen, **settings)
        train(model, opt)
    norms = clipped(other, 4, 0.01)
    assert min(norms) > 2 * LIMIT
    assert float(opt.param_groups[0]["last_grad_squares"]) == pytest.approx(norms[-1] ** 2, rel=1e-4)
    for param, wanted in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(param, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [LOMO, AdaLOMO])
def test_saved_and_copied(cls: Any) -> None:
    model = make_model()
    opt = cls([{"params": list(part.parameters())} for part in (model[0], model[2])], max_grad_norm=LIMIT)
    train(model, opt, last=2)
    other, theirs = copy.deepcopy((model, opt))
    third, its = pickle.loads(pickle.dumps((model, opt)))
    fresh = make_model()
    fresh.load_state_dict(model.state_dict())
    resumed = cls([{"params": list(part.parameters())} for part in (fresh[0], fresh[2])], max_grad_norm=LIMIT)
    checkpoint = saved(opt)
    assert isinstance(checkpoint["param_groups"][1]["last_grad_squares"], float)
    resumed.load_state_dict(checkpoint)
    for each, its_own in ((model, opt), (other, theirs), (third, its), (fresh, resumed)):
        train(each, its_own, first=2)
    for each in (other, third, fresh):
        assert all(map(torch.equal, model.parameters(), each.parameters()))
    assert same(saved(opt), saved(resumed))
    checkpoint["param_groups"][0]["last_grad_squares"] = "1"
    before = snapshot(resumed, list(fresh.parameters()))
    with pytest.raises(ValueError, match="last_grad_squares is a str, not a number"):
        resumed.load_state_dict(checkpoint)
    assert same(before, snapshot(resumed, list(fresh.parameters())))


def test_a_norm_that_is_not_finite_is_not_handed_on() -> None:
    param = nn.Parameter(torch.ones(3))
    opt = SGD([param], lr=0.1, max_grad_norm=1.0, clip_by_last_norm=True, nonfinite="propagate")
    for grad in (torch.ones(3), torch.tensor([1.0, math.inf, 1.0])):
        param.grad = grad
        opt.step()
    assert opt.param_groups[0]["last_grad_squares"] == 3.0


def test_a_group_that_is_added_has_the_norm() -> None:
    first, second = (nn.Parameter(torch.ones(3)) for _ in range(2))
    opt = LOMO([first], lr=0.5, max_grad_norm=1.0)
    (3 * first).sum().backward()
    opt.step()
    opt.add_param_group({"params": [second]})
    (3 * second).sum().backward()
    wanted = 1 - 0.5 * 3 / (math.sqrt(27) + 1e-6)
    torch.testing.assert_close(second.detach(), torch.full((3,), wanted))


def test_a_compiled_step(fresh_dynamo: None) -> None:
    one, other = make_model(), make_model()
    opt, plain = (SGD(m.parameters(), lr=0.01, max_grad_norm=LIMIT, clip_by_last_norm=True) for m in (one, other))
    step = torch.compile(lambda: opt.step(), backend="eager")
    for number in range(3):
        opt.zero_grad()
        loss_of(one, number).backward()
        step()
    train(other, plain, last=3)
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_refusals() -> None:
    model = make_model()
    params = list(model.parameters())
    with pytest.raises(ValueError, match="clip_by_last_norm=True does not go with capturable=True"):
        SGD(params, clip_by_last_norm=True, capturable=True)
    with pytest.raises(ValueError, match="clip_by_last_norm=True takes the norm of the last step"):
        AdamW(params, fused_backward=True, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="keeps states of the whole optimizer"):
        Prodigy(params, fused_backward=True, clip_by_last_norm=True)
    opt = SGD(params, max_grad_norm=1.0)
    opt.override(params[0], clip_by_last_norm=True)
    loss_of(model, 0).backward()
    before = snapshot(opt, params)
    with pytest.raises(ValueError, match="clip_by_last_norm is one choice for the optimizer"):
        opt.step()
    assert same(before, snapshot(opt, params))
    with pytest.raises(ValueError, match="clips by the norm of one rule's gradients, and here are several"):
        create({"*.bias": "sgd", ...: "adamw"}, model, max_grad_norm=1.0, clip_by_last_norm=True)


def test_several_backward_passes_are_refused() -> None:
    model = make_model()
    opt = LOMO(model.parameters(), lr=0.01)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="second gradient since the last step"):
        loss_of(model, 1).backward()
    opt.step()

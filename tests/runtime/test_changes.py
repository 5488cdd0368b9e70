"""Parameters, states and settings that are changed by hand between steps: noticed, or refused, never misread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from optgen_optim import LARS, AdamW, AdamW8bit, PytorchLARS

pytestmark = pytest.mark.usefixtures("each_sweep")


def stepped(target: str, shape: tuple[int, ...] = (20, 16)) -> tuple[torch.Tensor, AdamW]:
    param = torch.nn.Parameter(torch.randn(shape))
    opt = AdamW([param], target=target)
    param.grad = torch.randn(shape)
    opt.step()
    return param, opt


def test_a_parameter_cut_short_is_refused(target: str) -> None:
    param, opt = stepped(target)
    whole = param.data
    before = whole.clone()
    param.data = whole[:10]
    param.grad = torch.randn(10, 16)
    with pytest.raises(ValueError, match="exp_avg"):
        opt.step()
    assert torch.equal(whole, before)


def test_a_parameter_turned_in_place_is_read_as_it_lies(target: str) -> None:
    torch.manual_seed(0)
    param, opt = stepped(target, (16, 16))
    twin = torch.nn.Parameter(param.detach().t().contiguous())
    other = AdamW([twin], target="torch")
    other.load_state_dict(opt.state_dict())
    param.data = param.data.t()
    grad = torch.randn(16, 16)
    param.grad, twin.grad = grad, grad.clone()
    opt.step()
    other.step()
    torch.testing.assert_close(param.detach(), twin.detach(), rtol=1e-6, atol=1e-6)


def test_a_state_made_shorter_is_refused(target: str) -> None:
    param, opt = stepped(target)
    before = param.detach().clone()
    opt.state[param]["exp_avg"].resize_(10)
    with pytest.raises(ValueError, match="exp_avg"):
        opt.step()
    assert torch.equal(param.detach(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": float("nan")}, "Invalid learning rate: nan"),
        ({"lr": -1.0}, "Invalid learning rate: -1.0"),
        ({"betas": (2.0, 0.9)}, "Invalid beta parameter at index 0: 2.0"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"weight_decay": float("nan")}, "Invalid weight_decay value: nan"),
    ],
)
def test_settings_changed_between_steps_are_checked(target: str, change: dict[str, object], message: str) -> None:
    param, opt = stepped(target)
    before = param.detach().clone()
    opt.param_groups[0].update(change)
    with pytest.raises(ValueError, match=message):
        opt.step()
    assert torch.equal(param.detach(), before)


def test_changing_sets_of_gradients_keep_their_engines(target: str) -> None:
    params = [torch.nn.Parameter(torch.randn(8)) for _ in range(3)]
    opt = AdamW8bit(params, target=target)
    seen = []
    for step in range(8):
        for index, param in enumerate(params):
            param.grad = torch.randn(8) if step < 2 or index != step % 2 else None
        opt.step()
        seen.append(id(opt._kept[0]))
    assert len(set(seen[4:])) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: AdamW([{"params": []}]), "holds no tensor"),
        (lambda p: AdamW([{"params": [p], "args": None}]), "args is an argument of the class"),
        (lambda p: AdamW([torch.zeros(1).expand(8)]), "is expanded"),
        (lambda p: PytorchLARS([p], dampening=0.5), "dampening=0.5 has no effect without momentum"),
        (lambda p: LARS([p], 0.1, momentum=0.9, nesterov=True, dampening=0.5), "Nesterov momentum requires"),
    ],
)
def test_what_could_not_act_is_refused(make: Callable[[torch.Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(torch.zeros(4, requires_grad=True))


def test_norms_of_very_small_and_large_numbers(target: str) -> None:
    from optgen_optim import LAMB

    for size in (1e-25, 1e25):
        param = torch.nn.Parameter(torch.full((64,), size))
        opt = LAMB([param], lr=0.1, target=target)
        param.grad = torch.full((64,), 1.0)
        opt.step()
        torch.testing.assert_close(param.detach(), torch.full((64,), 0.9 * size), rtol=1e-5, atol=0.0)


def test_a_gradient_cut_short_in_place_is_refused(target: str) -> None:
    """Its memory ends before the parameter's does."""
    param, opt = stepped(target)
    before = param.detach().clone()
    param.grad = torch.zeros(20, 16)
    param.grad.data = torch.ones(3)
    with pytest.raises(ValueError, match=r"AdamW: a gradient of shape \(3,\) for a parameter of \(20, 16\)"):
        opt.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_a_state_replaced_by_its_transposed_view_is_read_as_such(name: str, target: str) -> None:
    results = []
    for transposed in (False, True):
        torch.manual_seed(0)
        param, opt = stepped(target, (16, 16))
        state = opt.state[param]
        state[name] = state[name].t() if transposed else state[name].t().contiguous()
        for _ in range(2):
            param.grad = torch.randn(16, 16)
            opt.step()
        results.append(param.detach().clone())
    assert torch.equal(*results)

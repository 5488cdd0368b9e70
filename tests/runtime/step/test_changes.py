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
        seen.append(id(opt._kept.of_all[0]))
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


@pytest.mark.parametrize("shape", [(16, 20), (320,), (20, 16, 1)])
def test_a_gradient_of_as_many_elements_and_another_shape_is_refused(shape: tuple[int, ...], target: str) -> None:
    param, opt = stepped(target)
    before = param.detach().clone()
    param.grad = torch.zeros(20, 16)
    param.grad.data = torch.ones(shape)
    with pytest.raises(ValueError, match=r"AdamW: a gradient of shape .* for a parameter of \(20, 16\)"):
        opt.step()
    assert torch.equal(param, before)


def test_a_parameter_that_is_a_negative_view_is_read_as_it_lies(target: str) -> None:
    results = []
    for negative in (True, False):
        torch.manual_seed(0)
        param, opt = stepped(target)
        param.data = torch._neg_view(-param.data) if negative else param.data.clone()
        param.grad = torch.randn(20, 16)
        opt.step()
        results.append(param.detach().clone())
    assert torch.equal(*results)


def by_hand(value: object) -> torch.Tensor:
    """With a gradient, so that a step takes it."""
    assert isinstance(value, torch.Tensor)
    value.grad = torch.ones_like(value)
    return value


PUT_IN_BY_HAND: dict[str, tuple[Callable[[torch.Tensor], object], type[Exception], str]] = {
    "twice": (lambda param: param, ValueError, "holds the same parameter twice, at positions 0 and 1"),
    "no tensor": (lambda _: 3, TypeError, "one of the params is int"),
    "complex": (lambda _: by_hand(torch.zeros(3, dtype=torch.complex64)), TypeError, "not complex64"),
    "meta": (lambda _: by_hand(torch.zeros(3, device="meta")), TypeError, "have no values"),
    "expanded": (lambda _: by_hand(torch.zeros(1).expand(5)), ValueError, "is expanded"),
}


@pytest.mark.parametrize("what", PUT_IN_BY_HAND)
def test_what_is_put_into_a_group_by_hand_is_checked(what: str, target: str) -> None:
    param, opt = stepped(target)
    before = param.detach().clone()
    make, error, message = PUT_IN_BY_HAND[what]
    opt.param_groups[0]["params"].append(make(param))
    with pytest.raises(error, match=f"AdamW: .*{message}"):
        opt.step()
    assert torch.equal(param, before)
    opt.param_groups[0]["params"].pop()
    opt.step()
    assert float(opt.state[param]["step"]) == 2.0


def test_a_parameter_in_two_groups_and_params_that_are_no_list_are_refused(target: str) -> None:
    param, opt = stepped(target)
    opt.param_groups.append({**opt.param_groups[0], "params": [param]})
    with pytest.raises(ValueError, match="AdamW: param groups 0 and 1 hold the same parameter"):
        opt.step()
    opt.param_groups[1]["params"] = param
    with pytest.raises(TypeError, match="AdamW: params of param group 1 is a list, not a Parameter"):
        opt.step()


@pytest.mark.parametrize(
    ("lr", "error", "message"),
    [
        (None, TypeError, "AdamW: lr must be a number in"),
        (torch.tensor(0.1, device="meta"), TypeError, "AdamW: lr must be a number in"),
        (torch.tensor([0.1]).to_sparse(), TypeError, "AdamW: lr must be a number in"),
        (torch.ones(2), ValueError, "Tensor lr must be 1-element"),
    ],
    ids=["none", "meta", "sparse", "two"],
)
def test_a_rate_without_a_number_is_refused(lr: object, error: type[Exception], message: str, target: str) -> None:
    param, opt = stepped(target)
    before = param.detach().clone()
    opt.param_groups[0]["lr"] = lr
    with pytest.raises(error, match=message):
        opt.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("settings", [{}, {"cautious": True}, {"max_grad_norm": 0.5, "max_unorm": 0.5}])
def test_a_rate_beyond_float32_is_infinite_on_every_target(settings: dict[str, object], target: str) -> None:
    """As it is in the kernels' float32; elements that nothing moves are then no numbers."""
    param = torch.nn.Parameter(torch.randn(50))
    opt = AdamW([param], lr=1e39, weight_decay=0.0, target=target, **settings)
    param.grad = torch.randn(50)
    param.grad[0] = 0.0
    opt.step()
    assert param[0].isnan()
    assert torch.equal(param[1:], -float("inf") * param.grad[1:].sign())


@pytest.mark.parametrize("entry", [None, [1.0]])
def test_a_parameters_state_that_is_no_dict_is_refused(entry: object, target: str) -> None:
    param, opt = stepped(target)
    opt.state[param] = entry
    with pytest.raises(TypeError, match="AdamW: the state of a parameter is a dict, not a "):
        opt.step()


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


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_tensor_among_the_numbers_of_a_setting_is_read_at_every_step(kind: type, target: str) -> None:
    param, opt = stepped(target)
    twin, other = stepped(target)
    with torch.no_grad():
        twin.copy_(param)
    other.load_state_dict(opt.state_dict())
    beta = torch.tensor(0.5, dtype=torch.float64)
    opt.param_groups[0]["betas"] = kind((beta, 0.999))
    for value in (0.5, 0.25, 0.75, 0.75):
        beta.fill_(value)
        other.param_groups[0]["betas"] = (value, 0.999)
        param.grad = twin.grad = torch.randn(20, 16)
        opt.step()
        other.step()
        assert torch.equal(param, twin)
    beta.fill_(2.0)
    with pytest.raises(ValueError, match=r"Invalid beta parameter at index 0: 2\.0"):
        opt.step()
    assert torch.equal(param, twin)


def test_numbers_that_follow_from_settings_are_those_of_the_step(target: str) -> None:
    """With a gradient scale in some steps alone, another rate in others, and a sum over all parameters."""
    results = []
    for anew in (False, True):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(20, 16))
        opt = AdamW([param], max_grad_norm=0.5, target=target)
        for step in range(8):
            param.grad = torch.randn(20, 16)
            opt.param_groups[0]["lr"] = 1e-3 if step < 4 else torch.tensor(1e-2)
            if step % 3 == 1:
                opt.grad_scale = torch.tensor(8.0)
            if anew:
                opt._kept.forget()
            opt.step()
            opt.__dict__.pop("grad_scale", None)
        results.append(param.detach().clone())
    assert torch.equal(*results)

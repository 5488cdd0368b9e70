"""Behaviour of torch's optimizers: closures, hooks, copies; and a step which fails changes nothing."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from optgen_optim import LAMB, AdamW, AdamW8bit
from torch import nn

from runtime.training import SMALL, make_params, same, set_grads, snapshot, train


def test_closure(target) -> None:
    model = nn.Linear(3, 1)
    opt = AdamW(model.parameters(), lr=0.1, target=target)
    data = torch.ones(4, 3)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        opt.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        return loss

    first = closure()
    with torch.no_grad():
        assert torch.equal(opt.step(closure), first)
    for _ in range(50):
        last = opt.step(closure)
    assert last < first
    assert opt.step() is None


def test_a_closure_that_raises_changes_nothing() -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    train(opt, params, 1, 1)
    before = snapshot(opt, params)

    def closure() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        opt.step(closure)
    assert same(before, snapshot(opt, params))


def test_hooks_surround_every_step_once(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    other = LAMB(make_params(), target=target)
    seen: list[str] = []
    before = opt.register_step_pre_hook(lambda *_: seen.append(f"before {len(opt.state)}"))
    opt.register_step_post_hook(lambda *_: seen.append(f"after {len(opt.state)}"))
    train(opt, params, 1, 1)
    train(other, other.param_groups[0]["params"], 1, 1)
    before.remove()
    train(opt, params, 2, 2)
    assert seen == ["before 0", "after 4", "after 4"]


def test_zero_grad() -> None:
    params = make_params()
    opt = AdamW(params)
    set_grads(params, 1)
    opt.zero_grad(set_to_none=False)
    assert all(not param.grad.any() for param in params)
    opt.zero_grad()
    assert all(param.grad is None for param in params)
    opt.step()
    assert not opt.state


@pytest.mark.parametrize("how", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alone(how, target) -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, percentile_clipping=20, target=target)
    opt.override(params[1], optim_bits=32)
    train(opt, params, 1, 2)
    other = how(opt)
    copied = other.param_groups[0]["params"]
    before = snapshot(opt, params)
    train(other, copied, 3, 4)
    assert same(before, snapshot(opt, params)), "the original is left alone"
    train(opt, params, 3, 4)
    assert same(snapshot(opt, params), snapshot(other, copied))
    other.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})
    other.load_state_dict(other.state_dict())


def test_a_pickle_of_before_goes_on() -> None:
    """One that was made when counts of steps were a module of `optgen.runtime`."""
    kept = pickle.loads((Path(__file__).parent / "data" / "optimizer.pickle").read_bytes())
    params = kept.param_groups[0]["params"]
    assert {id(count.state) for count in kept._counts.values()} == {id(kept.state[param]["step"]) for param in params}
    fresh = [nn.Parameter(param.detach().clone()) for param in params]
    other = AdamW8bit(fresh, min_8bit_size=0, target="torch")
    other.load_state_dict(kept.state_dict())
    for opt, own in ((kept, params), (other, fresh)):
        train(opt, own, 3, 4)
        assert [float(opt.state[param]["step"]) for param in own] == [4.0, 4.0]
    assert same(snapshot(kept, params), snapshot(other, fresh))


def test_a_copy_before_the_first_step(target) -> None:
    params = make_params()
    other = copy.deepcopy(AdamW(params, target=target))
    train(other, other.param_groups[0]["params"], 1, 1)
    assert other.engines() == {target: 4}


class Child(AdamW):
    """A user's own subclass."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, lr=0.5, **settings)


def test_subclasses(target) -> None:
    params = make_params()
    opt = Child(params, target=target)
    train(opt, params, 1, 1)
    assert opt.param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match="Child"):
        Child(params, weight_decay=-1)


def test_state_bytes() -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, target="torch")
    assert opt.state_bytes() == 0
    train(opt, params, 1, 1)
    assert opt.state_bytes() == 2 * (1200 + 5 * 4) + 2 * (300 + 2 * 4) + 2 * 4 * 7 + 2 * 4 + 4 * 4


def sparse(param: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(param).to_sparse()


BAD_GRADIENTS: dict[str, tuple[Any, type[Exception], str]] = {
    "sparse": (sparse, RuntimeError, "AdamW does not support sparse gradients, got torch.sparse_coo; use dense ones"),
    "complex": (lambda p: torch.ones_like(p, dtype=torch.complex64), TypeError, "not complex64"),
    "float64": (lambda p: torch.ones_like(p, dtype=torch.float64), TypeError, "bfloat16 and float16, not float64"),
    "int64": (lambda p: torch.ones_like(p, dtype=torch.int64), TypeError, "AdamW: gradients are float32, "),
}


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "third step"])
@pytest.mark.parametrize("kind", BAD_GRADIENTS)
def test_a_bad_gradient_changes_nothing(kind, steps, target) -> None:
    make, error, message = BAD_GRADIENTS[kind]
    params = make_params(shapes=((300,), (40, 30), (7,)))
    opt = AdamW(params, percentile_clipping=50, target=target)
    train(opt, params, 1, steps)
    set_grads(params, steps + 1)
    good = params[1].grad
    bad = make(params[1])
    params[1].grad = None
    if bad.dtype != params[1].dtype:
        if not hasattr(params[1], "grad_dtype"):
            pytest.skip("this torch keeps gradients in the parameter's dtype")
        params[1].grad_dtype = bad.dtype
    params[1].grad = bad
    before = snapshot(opt, params)
    for _ in range(2):
        with pytest.raises(error) as raised:
            opt.step()
        assert message in str(raised.value)
        assert same(before, snapshot(opt, params))
    params[1].grad = None
    if hasattr(params[1], "grad_dtype"):
        params[1].grad_dtype = torch.float32
    params[1].grad = good
    opt.step()
    assert [float(opt.state[p]["step"]) for p in params] == [steps + 1] * 3


def test_steps_in_inference_and_autocast(target) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    set_grads(params, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        opt.step()
    with torch.inference_mode():
        opt.step()
    opt.step()
    assert opt.state[params[0]]["exp_avg"].dtype is torch.float32
    assert float(opt.state[params[0]]["step"]) == 3


def test_autograd_sees_that_parameters_changed(target) -> None:
    param = nn.Parameter(torch.ones(5))
    opt = AdamW([param], target=target)
    loss = (param * param).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

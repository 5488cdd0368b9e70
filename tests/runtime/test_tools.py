"""Tools around an optimizer, with every class: copies, scalers, hooks, names, groups that come later."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from optgen_optim import AdamW, AdamW8bit
from support.catalogue import each_class, optimizer_class, required, rows
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from runtime.training import SMALL, make_params, same, saved, set_grads, snapshot, train

every_class = pytest.mark.parametrize("name", each_class())


def build(name: str, params: Any, **settings: Any) -> Any:
    own = {**required(name), **({"target": "torch"} if "target" in rows()[name].accepted else {})}
    if "min_8bit_size" in rows()[name].accepted:
        own["min_8bit_size"] = SMALL
    opt = optimizer_class(name)(params, **own, **settings)
    if hasattr(opt, "train"):
        opt.train()
    return opt


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_step_keeps_nothing_of_what_calls_it() -> None:
    """Not even where ZeroRedundancyOptimizer is about, whose steps are told by the frames that they come from."""
    importlib.import_module("torch.distributed.optim.zero_redundancy_optimizer")
    params = make_params()
    opt = AdamW(params, target="torch", max_grad_norm=1.0)
    held = nn.Module()
    gone = weakref.ref(held)
    train(opt, params, 1, 1)
    del held
    assert gone() is None


# Copies


def through_torch_save(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
    "save": through_torch_save,
}


@every_class
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_goes_on_as_the_original_does(name: str, how: str) -> None:
    """Parameters and optimizer together, in the middle of training."""
    params = make_params(of=name)
    opt = build(name, params)
    train(opt, params, 1, 3)
    copied, other = COPIES[how]((params, opt))
    assert type(other) is type(opt)
    assert all(a is b for a, b in zip(copied, other.param_groups[0]["params"], strict=True))
    before = snapshot(opt, params)
    train(other, copied, 4, 5)
    assert same(snapshot(opt, params), before)
    train(opt, params, 4, 5)
    assert same(snapshot(other, copied), snapshot(opt, params))


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_an_lr_of_its_own(how: str, target: str) -> None:
    params = make_params()
    opt = AdamW([{"params": params[:2]}, {"params": params[2:]}], lr=torch.tensor(0.5), target=target)
    train(opt, params, 1, 1)
    copied, other = COPIES[how]((params, opt))
    assert other.param_groups[0]["lr"] is other.param_groups[1]["lr"], "one tensor for both groups, as before"
    other.param_groups[0]["lr"].fill_(0.0)
    assert float(opt.param_groups[0]["lr"]) == 0.5
    before = [param.detach().clone() for param in copied]
    other.param_groups[0]["weight_decay"] = other.param_groups[1]["weight_decay"] = 0.0
    train(other, copied, 2, 2)
    assert same([param.detach() for param in copied], before)


# Gradient scalers


WITHIN_BACKWARD = {name for name in rows() if getattr(optimizer_class(name), "fixed", {}).get("fused_backward", False)}


@pytest.mark.parametrize("name", each_class(sorted(rows().keys() - WITHIN_BACKWARD)))
def test_a_scaler_changes_nothing(name: str) -> None:
    """By a power of two, bit for bit; and a step that it skips leaves all as it was."""
    results = []
    for scale in (None, 2.0**10):
        params = make_params(of=name)
        opt = build(name, params)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=100, enabled=scale is not None)
        scaler.scale(torch.zeros(()))
        for step in range(1, 4):
            set_grads(params, step)
            for param in params:
                assert param.grad is not None
                param.grad.mul_(scale or 1.0)
            scaler.step(opt)
            scaler.update()
            if step == 2 and scale is not None:
                before = snapshot(opt, params)
                assert params[0].grad is not None
                params[0].grad.view(-1)[0] = torch.inf
                scaler.step(opt)
                scaler.update(scale)
                assert same(snapshot(opt, params), before)
        results.append(snapshot(opt, params))
    assert same(*results)


@pytest.mark.parametrize("name", sorted(WITHIN_BACKWARD))
def test_classes_that_step_within_backward_refuse_a_scaler(name: str) -> None:
    params = make_params(of=name)
    opt = build(name, params)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.zeros(()))
    set_grads(params, 1)
    before = snapshot(opt, params)
    with pytest.raises(RuntimeError, match=rf"{name}: fused_backward=True does not go with torch\.amp\.GradScaler"):
        scaler.step(opt)
    assert same(snapshot(opt, params), before)


# Hooks


def test_hooks_of_steps() -> None:
    """In torch's order, with what a step was called with; a hook can change it, and see what a step has done."""
    params = make_params()
    opt = AdamW(params, target="torch")
    calls: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("all before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("all after")),
    ]

    def closure() -> float:
        calls.append("closure")
        return 3.0

    def other_closure() -> float:
        calls.append("other closure")
        return 4.0

    def replace(opt: Any, args: Any, kwargs: Any) -> Any:
        calls.append(f"before {len(opt.state)} {kwargs['closure'] is closure}")
        return args, {"closure": other_closure}

    try:
        opt.register_step_pre_hook(replace)
        opt.register_step_post_hook(lambda opt, args, kwargs: calls.append(f"after {len(opt.state)}"))
        set_grads(params, 1)
        assert opt.step(closure=closure) == 4.0
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["all before", "before 0 True", "other closure", "after 4", "all after"]


def test_a_hook_that_raises_leaves_everything(target: str) -> None:
    params = make_params()
    opt = AdamW(params, target=target)
    train(opt, params, 1, 1)

    def refuse(*_: Any) -> None:
        raise ZeroDivisionError

    handle = opt.register_step_pre_hook(refuse)
    before = snapshot(opt, params)
    with pytest.raises(ZeroDivisionError):
        train(opt, params, 2, 2)
    assert same(snapshot(opt, params), before)
    handle.remove()
    train(opt, params, 2, 2)


def test_hooks_of_checkpoints() -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=SMALL, target="torch")
    train(opt, params, 1, 2)
    calls: list[str] = []

    def add(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append("second")
        return {**state_dict, "mine": 7}

    opt.register_state_dict_pre_hook(lambda _: calls.append("before"))
    opt.register_state_dict_post_hook(add)
    opt.register_state_dict_post_hook(lambda *_: calls.append("first"), prepend=True)
    checkpoint = opt.state_dict()
    assert calls == ["before", "first", "second"]
    assert checkpoint["mine"] == 7

    def take(opt: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append(f"taken {state_dict['mine']}")
        return {key: value for key, value in state_dict.items() if key != "mine"}

    others = [nn.Parameter(param.detach().clone()) for param in params]
    other = AdamW8bit(others, min_8bit_size=SMALL, target="torch")
    other.register_load_state_dict_pre_hook(take)
    other.register_load_state_dict_post_hook(lambda opt: calls.append(f"there {len(opt.state)}"))
    other.load_state_dict(checkpoint)
    assert calls[3:] == ["taken 7", "there 4"]
    train(opt, params, 3, 3)
    train(other, others, 3, 3)
    assert same(snapshot(other, others), snapshot(opt, params))


# Names


def model_of(layers: int = 2, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(*[nn.Linear(20, 20, bias) for _ in range(layers)])


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


@every_class
def test_named_parameters_are_as_unnamed_ones(name: str) -> None:
    results = []
    for named in (False, True):
        model = model_of(bias=rows()[name].rule.ndim is None)
        params = list(model.parameters())
        opt = build(name, model.named_parameters() if named else params)
        train(opt, params, 1, 2)
        groups = opt.state_dict()["param_groups"]
        wanted = [label for label in NAMES if label in dict(model.named_parameters())]
        assert [group.get("param_names") for group in groups] == [wanted if named else None]
        found = snapshot(opt, params)
        for group in found["groups"]:
            group.pop("param_names", None)
        results.append(found)
    assert same(*results)


def test_names_are_kept_by_copies_and_checkpoints(target: str) -> None:
    model = model_of()
    params = list(model.parameters())
    decayed = [(name, param) for name, param in model.named_parameters() if "weight" in name]
    others = [(name, param) for name, param in model.named_parameters() if "bias" in name]
    opt = AdamW8bit([{"params": decayed}, {"params": others, "weight_decay": 0.0}], min_8bit_size=SMALL, target=target)
    names = [["0.weight", "1.weight"], ["0.bias", "1.bias"]]
    train(opt, params, 1, 2)
    for copied in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):
        assert [group["param_names"] for group in copied.param_groups] == names
    checkpoint = saved(opt)
    assert [group["param_names"] for group in checkpoint["param_groups"]] == names

    groups = [{"params": [p for _, p in part]} for part in (decayed, others)]
    unnamed = AdamW8bit([dict(group) for group in groups], min_8bit_size=SMALL, target=target)
    unnamed.load_state_dict(checkpoint)
    theirs = torch.optim.AdamW([dict(group) for group in groups])
    theirs.load_state_dict(torch.optim.AdamW([{"params": decayed}, {"params": others}]).state_dict())
    taken = [group.get("param_names") for group in theirs.param_groups]
    assert [group.get("param_names") for group in unnamed.param_groups] == taken == names  # as torch has it

    named = AdamW8bit([{"params": decayed}, {"params": others}], min_8bit_size=SMALL, target=target)
    plain = saved(AdamW8bit([dict(group) for group in groups], min_8bit_size=SMALL, target=target))
    named.load_state_dict(plain)
    assert [group["param_names"] for group in named.param_groups] == names


def test_names_of_checkpoints_of_torch(target: str) -> None:
    model, other = model_of(), model_of()
    theirs = torch.optim.AdamW(model.named_parameters())
    train(theirs, list(model.parameters()), 1, 2)
    ours = AdamW(other.named_parameters(), target=target)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["param_names"] == NAMES
    back = torch.optim.AdamW(model.named_parameters())
    train(ours, list(other.parameters()), 3, 3)
    back.load_state_dict({**ours.state_dict(), "param_groups": theirs.state_dict()["param_groups"]})
    assert back.param_groups[0]["param_names"] == NAMES
    assert float(back.state[model[0].weight]["step"]) == 3.0


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"params": [nn.Parameter(torch.ones(2))]}, "all optimizer param groups should be with/without names"),
        ({"params": [("a", nn.Parameter(torch.ones(2))), nn.Parameter(torch.ones(2))]}, "number 1 has none"),
        ({"params": [nn.Parameter(torch.ones(2))], "param_names": ["a", "b"]}, "2 param_names for 1 parameters"),
        ({"params": [nn.Parameter(torch.ones(2))], "param_names": "a"}, "param_names is a list of strings, not 'a'"),
        ({"params": [("a", nn.Parameter(torch.ones(2)))], "param_names": ["b"]}, "named 'a' and, in param_names, 'b'"),
    ],
    ids=["without", "some", "too many", "no list", "twice"],
)
def test_names_that_do_not_fit(group: dict[str, Any], message: str, target: str) -> None:
    model = model_of()
    opt = AdamW(model.named_parameters(), target=target)
    with pytest.raises((ValueError, TypeError)) as raised:
        opt.add_param_group(group)
    assert message in str(raised.value)
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": [("more", nn.Parameter(torch.ones(2)))]})
    assert opt.param_groups[1]["param_names"] == ["more"]


# Groups that come in the middle of training


@every_class
def test_a_group_that_comes_later_is_as_one_that_had_no_gradients(name: str) -> None:
    """Its states start with its first step; those of others go on."""
    if optimizer_class(name).rule.shared_states:  # type: ignore[attr-defined]
        pytest.skip("a group that comes later has states of its own: test_methods.py")
    results = []
    for late in (False, True):
        params = make_params(of=name)
        groups = [{"params": params[:2]}, {"params": params[2:], **({} if name == "PytorchLARS" else {"lr": 0.02})}]
        if "relative_step" in rows()[name].accepted:
            groups[1]["relative_step"] = False
        opt = build(name, groups[:1] if late else groups)
        for step in range(1, 6):
            set_grads(params, step)
            if step < 3:
                for param in params[2:]:
                    param.grad = None
            if step == 3 and late:
                opt.add_param_group(groups[1])
            opt.step()
        results.append(snapshot(opt, params))
    assert same(*results)

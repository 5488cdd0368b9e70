"""Checkpoints that do not fit: the difference is named, and nothing is loaded."""

from __future__ import annotations

from typing import Any

import optgen_optim
import pytest
import torch
from optgen_optim import LARS, Adam, AdamW, AdamW8bit
from support.catalogue import accepted, optimizer_class, required

from runtime.training import make_params, same, saved, snapshot, train


def refused(opt: Any, params: Any, checkpoint: Any, *parts: str) -> None:
    before = snapshot(opt, params)
    with pytest.raises(ValueError, match=type(opt).__name__) as raised:
        opt.load_state_dict(checkpoint)
    for part in parts:
        assert part in str(raised.value)
    said = str(raised.value).rpartition("does not fit: ")[2].split("; ")
    assert len(said) == len(set(said))
    assert same(before, snapshot(opt, params))
    train(opt, params, 9, 9)


def test_a_coupled_checkpoint_is_not_one_of_the_decoupled_class() -> None:
    params = make_params()
    theirs = torch.optim.Adam(params)
    train(theirs, params, 1, 1)
    message = "group 0 has decoupled_weight_decay=False, and AdamW is decoupled_weight_decay=True"
    refused(AdamW(params), params, saved(theirs), message)
    Adam(params).load_state_dict(saved(theirs))


def test_misfits_are_named_and_nothing_is_loaded() -> None:
    params = make_params()
    opt = AdamW(params, target="torch")
    train(opt, params, 1, 1)
    good = saved(opt)

    other = make_params(shapes=((30, 40), (300,), (8,), ()))
    wrong = AdamW(other, target="torch")
    train(wrong, other, 1, 1)
    refused(opt, params, saved(wrong), "parameter 0: exp_avg has shape (30, 40), not (40, 30)", "parameter 2", "(8,)")
    refused(opt, params, AdamW(params[:3]).state_dict(), "group 0 has 3 parameters, not 4")
    two = [{"params": params[:2]}, {"params": params[2:]}]
    refused(opt, params, AdamW(two).state_dict(), "2 param groups, not 1")
    with pytest.raises(TypeError, match="AdamW: load_state_dict takes what state_dict\\(\\) returned, not a str"):
        opt.load_state_dict("checkpoint.pt")
    refused(opt, params, {}, "no 'state' and no 'param_groups'")
    refused(opt, params, {"model": {}, "param_groups": []}, "no 'state'", "model")

    def changed(**entry: Any) -> dict[str, Any]:
        first = {key: value for key, value in {**good["state"][0], **entry}.items() if value is not None}
        return {**good, "state": {**good["state"], 0: first}}

    refused(opt, params, changed(exp_avg=3), "parameter 0: exp_avg is a int, not a tensor")
    refused(
        opt,
        params,
        changed(exp_avg=torch.zeros(40, 30, dtype=torch.int64)),
        "parameter 0: state 'exp_avg' is int64 of shape (40, 30) with no scales, which no codec stores: it is float32",
    )
    codes = torch.zeros(40, 30, dtype=torch.uint8)
    refused(opt, params, changed(exp_avg=codes), "state 'exp_avg' is uint8 of shape (40, 30) with no scales")
    refused(opt, params, changed(exp_avg=codes, exp_avg_absmax=torch.ones(3)), "shape (40, 30) with 3 scales")
    refused(opt, params, changed(exp_avg=codes, exp_avg_absmax=3), "exp_avg_absmax is not a float32 tensor")
    refused(opt, params, changed(exp_avg_sq=None), "exp_avg_sq missing")
    refused(opt, params, changed(step="two"), "parameter 0: step is 'two', and must be a number of steps")

    momentum = torch.optim.SGD(params, lr=0.1, momentum=0.9)
    train(momentum, params, 1, 1)
    refused(opt, params, saved(momentum), "exp_avg, exp_avg_sq missing, there is momentum_buffer")


def test_settings_of_a_checkpoint_are_checked() -> None:
    params = make_params()
    opt = AdamW8bit(params, target="torch")
    bad = opt.state_dict()
    bad["param_groups"][0]["lr"] = -1.0
    refused(opt, params, bad, "Invalid learning rate: -1.0")
    refused(opt, params, AdamW(params, amsgrad=True).state_dict(), "AdamW8bit does not support amsgrad=True")
    lists = opt.state_dict()
    lists["param_groups"][0]["betas"] = [0.5, 0.6]
    opt.load_state_dict(lists)
    assert opt.param_groups[0]["betas"] == (0.5, 0.6)


def test_without_a_count_that_the_rule_needs() -> None:
    params = make_params(torch.float32)
    opt = AdamW(params)
    train(opt, params, 1, 2)
    checkpoint = saved(opt)
    del checkpoint["state"][1]["step"]
    refused(opt, params, checkpoint, "parameter 1: step missing, there is exp_avg, exp_avg_sq")


@pytest.mark.parametrize("name", optgen_optim.CLASSES)
def test_what_does_not_fit_a_class_is_named(name) -> None:
    """Of every class: other shapes, groups, rules, newer versions, states of nobody; nothing is loaded then."""
    cls, settings = optimizer_class(name), required(name)
    shapes = ((8, 40), (7,))
    params = make_params(shapes=shapes, of=name)
    if "target" in accepted(name):
        settings |= {"target": "torch"}

    def trained(shapes: Any) -> tuple[Any, Any]:
        members = make_params(shapes=shapes, of=name)
        opt = cls(members, **settings)
        getattr(opt, "train", lambda: None)()
        train(opt, members, 1, 1)
        return opt, members

    opt, params = trained(shapes)
    good = saved(opt)
    state = next((key for key, value in good["state"][0].items() if value.dim()), None)
    if state is not None:
        wrong = saved(trained(((9, 41), (7,)))[0])
        refused(opt, params, wrong, "parameter 0: ", "has shape")
    refused(
        opt, params, saved(cls(make_params(shapes=shapes[:1], of=name), **settings)), "group 0 has 1 parameters, not 2"
    )
    two = cls([{"params": [param]} for param in make_params(shapes=shapes, of=name)], **settings)
    refused(opt, params, saved(two), "it has 2 param groups, not 1")
    mark = good["optgen"]
    refused(opt, params, {**good, "optgen": {**mark, "rule": "of_mine", "class": "Mine"}}, "it is of Mine (rule of_min")
    refused(opt, params, {**good, "optgen": {**mark, "version": 2}}, "it has version 2, and this optgen reads up to 1")
    refused(opt, params, {**good, "optgen": "of mine"}, "its 'optgen' is 'of mine', which has no version and rule")
    refused(opt, params, {**good, "state": {**good["state"], 7: {}}}, "it has states of 7, which no group holds")
    refused(opt, params, {**good, "state": [1]}, "its 'state' is not a dict of dicts")
    refused(opt, params, {**good, "param_groups": {}}, "its 'param_groups' is not a list of dicts")
    refused(opt, params, {**good, "param_groups": [{"lr": 1.0}]}, "group 0 has no 'params'")
    strange = {"state": {0: {**good["state"][0], "of_mine": torch.ones(2)}}, "param_groups": good["param_groups"]}
    refused(opt, params, strange, f"parameter 0: {opt.rule.name} has no state of_mine")
    opt.load_state_dict({**strange, "optgen": mark})
    assert torch.equal(opt.state[params[0]]["of_mine"], torch.ones(2)), "a checkpoint of this rule: the user's own"
    for shared in opt.rule.shared_states:
        groups = [{**good["param_groups"][0], shared.name: "three"}]
        refused(opt, params, {**good, "param_groups": groups}, f"group 0: {shared.name} is a str, not a number")


def test_rules_whose_states_have_the_same_names() -> None:
    """Neither library nor shape tells these apart: the checkpoint does."""
    params = make_params()
    lars = LARS(params, lr=0.1, momentum=0.9, target="torch")
    train(lars, params, 1, 1)
    sgd = optgen_optim.SGD(params, 0.1, 0.9, target="torch")
    refused(sgd, params, saved(lars), "it is of LARS (rule lars), and SGD has the rule sgd")
    adam = torch.optim.Adam(params)
    train(adam, params, 1, 1)
    lion = optgen_optim.Lion(params, target="torch")
    refused(lion, params, saved(adam), "parameter 0: lion has no state exp_avg_sq")


class Hollow(torch.Tensor):
    """As a DTensor: it says of itself that it is dense, and has no memory."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} of what has no values")


UNREADABLE = {
    "sparse": (torch.Tensor.to_sparse, "is torch.sparse_coo, not dense"),
    "meta": (lambda value: value.to("meta"), "is on the device meta, without values"),
    "hollow": (Hollow, "is a Hollow without memory of its own"),
}


@pytest.mark.parametrize("form", UNREADABLE)
@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "bitsandbytes"])
def test_tensors_without_numbers_are_named(theirs: bool, form: str) -> None:
    """Tensors without numbers anywhere in a checkpoint: states, scales, code books, counts, settings."""
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=256, target="torch")
    train(opt, params, 1, 1)
    good = opt.bitsandbytes_state_dict() if theirs else opt.state_dict()
    make, message = UNREADABLE[form]
    for number in (0, 2):  # one with states of 8 bits, and one without
        for key, value in good["state"][number].items():
            if isinstance(value, torch.Tensor):
                state = {**good["state"], number: {**good["state"][number], key: make(value)}}
                refused(opt, params, {**good, "state": state}, f"parameter {number}: {key} {message}")
    for key, value in {"lr": make(torch.ones(1)), "betas": (0.9, make(torch.ones(1)))}.items():
        groups = [{**good["param_groups"][0], key: value}]
        refused(opt, params, {**good, "param_groups": groups}, f"group 0: {key} {message}")
    groups = [{**good["param_groups"][0], "weight_decay": torch.ones(2)}]
    refused(opt, params, {**good, "param_groups": groups}, "group 0: weight_decay is a tensor of shape (2,)")


def test_betas_of_bitsandbytes_that_are_none() -> None:
    params = make_params()
    opt = optgen_optim.SGD(params, 0.1, 0.9, target="torch")
    train(opt, params, 1, 1)
    checkpoint = opt.bitsandbytes_state_dict()
    for betas in ((), torch.ones(2), "half"):
        groups = [{**checkpoint["param_groups"][0], "betas": betas}]
        with pytest.raises((TypeError, ValueError), match="SGD"):
            opt.load_state_dict({**checkpoint, "param_groups": groups})


def test_what_the_class_fixes_is_not_replaced() -> None:
    params = make_params()
    opt = Adam(params, target="torch")
    message = "group 0 has decoupled_weight_decay=True, and Adam is decoupled_weight_decay=False"
    refused(opt, params, saved(AdamW(params)), message)


def test_groups_that_disagree_on_what_is_one_number() -> None:
    params = make_params()
    opt = AdamW([{"params": params[:2]}, {"params": params[2:]}], target="torch")
    bad = opt.state_dict()
    bad["param_groups"][1]["max_grad_norm"] = 3.0
    refused(opt, params, bad, "max_grad_norm is one number for the optimizer")


def test_a_warning_that_is_an_error_stops_loading_before_it_begins() -> None:
    params = make_params()
    wide = AdamW(params, target="torch")
    train(wide, params, 1, 2)
    narrow = AdamW8bit(params, min_8bit_size=256, target="torch")
    train(narrow, params, 1, 1)
    before = snapshot(narrow, params)
    with pytest.raises(optgen_optim.StoredAnewWarning, match="stores states as fp32"):
        narrow.load_state_dict(saved(wide))
    assert same(before, snapshot(narrow, params))


def test_a_checkpoint_is_not_changed_by_loading() -> None:
    params = make_params()
    opt = AdamW8bit(params, min_8bit_size=256, target="torch")
    opt.override(params[0], lr=0.5)
    train(opt, params, 1, 1)
    checkpoint, copy = saved(opt), saved(opt)
    opt.load_state_dict(checkpoint)
    train(opt, params, 2, 3)
    opt.override(params[0], lr=0.25)
    assert same(checkpoint, copy)

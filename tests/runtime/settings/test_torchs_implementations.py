"""`fused`, `foreach` and `differentiable`, which choose an implementation in torch.optim: taken, or refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.catalogue import optimizer_class, required, rows
from torch import nn

from runtime.training import make_params, same, snapshot, train

KEYWORDS = {"fused": None, "foreach": None, "differentiable": False}
CLASHES = [{"fused": True, "differentiable": True}, {"fused": True, "foreach": True}]


def stepped(make: Callable[..., Any], **settings: Any) -> tuple[Any, list[nn.Parameter]]:
    params = make_params()
    opt = make(params, **settings)
    train(opt, params, 1, 3)
    return opt, params


def said(make: Callable[..., Any], **settings: Any) -> tuple[type[Exception], str]:
    with pytest.raises((RuntimeError, ValueError, TypeError)) as raised:
        make(make_params(), **settings)
    return type(raised.value), str(raised.value)


@pytest.mark.parametrize("name", rows())
def test_every_class_takes_them_by_keyword(name: str) -> None:
    known = inspect.signature(optimizer_class(name)).parameters
    assert {key: known[key].default for key in KEYWORDS} == KEYWORDS
    assert all(known[key].kind is inspect.Parameter.KEYWORD_ONLY for key in KEYWORDS)
    for settings in ({"fused": False}, {"foreach": True}, {"foreach": False, "differentiable": False}):
        group = optimizer_class(name)(make_params(of=name), **required(name), **settings).param_groups[0]  # type: ignore[call-arg]
        assert {key: group[key] for key in KEYWORDS} == KEYWORDS | settings


@pytest.mark.parametrize(
    "settings", [{"fused": True}, {"fused": False}, {"foreach": True}, {"foreach": False}], ids=str
)
def test_a_value_that_is_taken_changes_nothing(settings: dict[str, Any]) -> None:
    found = [snapshot(*stepped(optimizer_class("AdamW"), target="cpu", **own)) for own in ({}, settings)]
    found[0]["groups"][0].update(settings)
    assert same(*found)


@pytest.mark.parametrize("settings", CLASHES, ids=str)
def test_what_torch_refuses_together_is_refused_in_its_words(settings: dict[str, Any]) -> None:
    error, words = said(torch.optim.AdamW, **settings)
    found, message = said(optimizer_class("AdamW"), **settings)
    assert found is error is RuntimeError
    assert message.startswith(words)
    assert "AdamW: leave" in message.removeprefix(words)


@pytest.mark.parametrize("settings", [{"foreach": True}, {"fused": False}, {}], ids=str)
def test_a_differentiable_step_is_refused(settings: dict[str, Any]) -> None:
    found, message = said(optimizer_class("SGD8bit"), momentum=0.9, differentiable=True, **settings)
    assert found is ValueError
    assert message.startswith("SGD8bit: differentiable=True asks for steps that autograd goes through")
    assert message.endswith("leave it out, or take a class of torch.optim")


def test_fused_steps_of_plain_operations_are_refused() -> None:
    message = "AdamW: fused=True asks for kernels, and target='torch' has none; leave one of them out"
    assert said(optimizer_class("AdamW"), fused=True, target="torch") == (ValueError, message)
    assert said(optimizer_class("PytorchLARS"), fused=True) == (ValueError, message.replace("AdamW", "PytorchLARS"))


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_no_other_value_is_taken(keyword: str) -> None:
    _, message = said(optimizer_class("Adam"), **{keyword: 3})
    assert message.startswith(f"Adam: {keyword} must be ")
    assert message.endswith("not 3")


def test_groups_and_overrides_are_looked_at_too() -> None:
    AdamW: Any = optimizer_class("AdamW")
    with pytest.raises(ValueError, match="differentiable=True asks"):
        AdamW([{"params": make_params(), "differentiable": True}])
    opt = AdamW(make_params(), fused=True)
    before = opt.state_dict()
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        opt.override(opt.param_groups[0]["params"][0], foreach=True)
    assert opt.state_dict() == before
    opt.param_groups[0]["differentiable"] = True
    with pytest.raises(RuntimeError, match="`fused` does not support `differentiable`"):
        train(opt, opt.param_groups[0]["params"], 1, 1)


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"differentiable": True}, {}], ids=str)
@pytest.mark.parametrize("target", ["cpu", "torch"])
def test_checkpoints_of_torch_go_on_whatever_computed_them(settings: dict[str, Any], target: str) -> None:
    """And back again; what an optimizer was given itself stays."""
    theirs, _ = stepped(torch.optim.AdamW)
    theirs.param_groups[0].update(settings)
    params = make_params()
    ours: Any = optimizer_class("AdamW")(params, foreach=False, target=target)  # type: ignore[call-arg]
    ours.load_state_dict(theirs.state_dict())
    assert {key: ours.param_groups[0][key] for key in KEYWORDS} == KEYWORDS | {"foreach": False}
    train(ours, params, 4, 4)
    assert float(ours.state[params[0]]["step"]) == 4
    back = torch.optim.AdamW(params)
    back.load_state_dict(ours.state_dict())
    train(back, params, 5, 5)
    assert float(back.state[params[0]]["step"]) == 5


def test_older_checkpoints_and_groups_have_none_of_them() -> None:
    opt, _ = stepped(optimizer_class("AdamW"), target="torch")
    saved = opt.state_dict()
    for group in saved["param_groups"]:
        for key in KEYWORDS:
            del group[key]
    opt.load_state_dict(saved)
    assert {key: opt.param_groups[0][key] for key in KEYWORDS} == KEYWORDS
    opt.step()

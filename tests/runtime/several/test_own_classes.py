"""Rules given by their classes, of whichever package: beside others, in groups, saved and copied."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from optgen_optim import AdamW, create, for_model
from torch import nn

import optgen
from runtime.several.models import make_model

SPEC = """\
name: calm
doc: Momentum over its root mean square in the tensor.
hyperparameters: {lr: 1e-2, beta: 0.9, eps: 1e-8}
states: {exp_avg}
blocks:
  step: |
    exp_avg = beta * exp_avg + (1 - beta) * grad
    update = exp_avg / (rms(exp_avg) + eps)
  apply: |
    param = param - lr * update
"""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("own") / "calm.yaml"
    path.write_text(SPEC, encoding="utf-8")
    return optgen.load(path).Calm


def stepped(optimizer: Any, steps: int = 2, first: int = 0) -> list[torch.Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return [param.detach().clone() for param in params]


def test_it_stands_for_its_name() -> None:
    named, given = (create({"*.weight": rule, ...: AdamW}, make_model()) for rule in ("lion", optgen_optim.Lion))
    assert given.param_groups[0]["rule"] == "Lion"
    assert all(map(torch.equal, stepped(named), stepped(given)))
    alone = create(AdamW, make_model().parameters(), bits=8)
    assert type(alone) is AdamW
    assert alone.param_groups[0]["optim_bits"] == 8


def test_a_class_of_another_package(calm: Any) -> None:
    model = make_model()
    opt = for_model(model, {"rule": calm, "lr": 1e-3}, AdamW, show=False)
    assert {name: type(part) for name, part in opt.parts.items()} == {"Calm": calm, "AdamW": AdamW}
    chosen = create(lambda name, param: calm if param.ndim == 2 else "adamw", make_model())
    assert set(chosen.parts) == {"Calm", "AdamW"}
    opt.add_param_group({"params": [("more", nn.Parameter(torch.ones(8, 8)))], "rule": "Calm"})
    assert len(opt.parts["Calm"].param_groups) == 2
    grouped = create([{"params": [nn.Parameter(torch.ones(8, 8))], "rule": calm}])
    assert grouped.param_groups[0]["rule"] == "Calm"


def test_saved_resumed_and_copied(calm: Any) -> None:
    def made() -> Any:
        return for_model(make_model(), calm, AdamW, show=False)

    whole, begun, resumed = made(), made(), made()
    right = stepped(whole, 4)
    stepped(begun)
    for source, into in zip(begun.param_groups, resumed.param_groups, strict=True):
        for param, other in zip(source["params"], into["params"], strict=True):
            other.data.copy_(param.data)
    resumed.load_state_dict(begun.state_dict())
    assert all(map(torch.equal, stepped(resumed, 2, 2), right))
    assert all(map(torch.equal, stepped(copy.deepcopy(begun), 2, 2), right))


def test_two_classes_of_one_name(calm: Any, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(SPEC.replace("beta: 0.9", "beta: 0.8"), encoding="utf-8")
    other = optgen.load(tmp_path / "other.yaml").Calm
    assert other is not calm
    message = re.escape("two classes have the name Calm, of ")
    with pytest.raises(ValueError, match=message):
        create({"*.weight": calm, ...: other}, make_model())
    opt = create({"*": calm}, make_model())
    with pytest.raises(ValueError, match=message):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(8, 8))], "rule": other})
    assert len(opt.param_groups) == 1


def test_a_class_that_is_no_rule() -> None:
    with pytest.raises(TypeError, match="an optimizer is given by its class or the name of it, such as 'adamw', not"):
        create({"*": torch.optim.AdamW}, make_model())

"""Choosing rules by names, modules and a function; what matches nothing or twice is listed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optgen_optim import CombinedOptimizer, create
from torch import nn

from runtime.several.models import Model, make_model


def names_of(opt: CombinedOptimizer) -> dict[str, list[str]]:
    return {group["rule"]: group["param_names"] for group in opt.param_groups}


def test_names() -> None:
    opt = create({"layers.?.weight": "lion", "*bias": "SGD", "embed.*": "adamw8bit", ...: "adamw"}, make_model())
    assert names_of(opt) == {
        "Lion": [f"layers.{i}.weight" for i in range(3)],
        "SGD": ["layers.0.bias", "layers.1.bias", "layers.2.bias", "norm.bias"],
        "AdamW8bit": ["embed.weight"],
        "AdamW": ["norm.weight", "head.weight"],
    }


def test_modules_and_named_tensors() -> None:
    model = make_model()
    opt = create({nn.Embedding: "adamw", nn.LayerNorm: "adamw32bit", model.layers: "lion", "head.*": "sgd"}, model)
    assert [len(names) for names in names_of(opt).values()] == [1, 2, 6, 1]
    pairs = create({"layers.*": "lion", ...: "adamw"}, model.named_parameters())
    assert len(names_of(pairs)["Lion"]) == 6


def test_a_function() -> None:
    opt = create(lambda name, param: {"rule": "lion", "lr": 1e-3} if param.ndim == 2 else "adamw", make_model())
    assert names_of(opt)["Lion"] == ["embed.weight", *(f"layers.{i}.weight" for i in range(3)), "head.weight"]
    assert len(opt.param_groups) == 2


def test_what_is_tied_or_frozen() -> None:
    model = make_model(tied=True)
    model.norm.requires_grad_(False)
    opt = create({"head.*": "adamw", ...: "lion"}, model)  # any of its names
    assert names_of(opt)["AdamW"] == ["embed.weight"]
    assert not any("norm" in name for names in names_of(opt).values() for name in names)


def test_everything_that_is_wrong_is_listed() -> None:
    with pytest.raises(ValueError, match="each parameter has one rule") as caught:
        create({"*.weight": "lion", "*embed*": "adamw", "nothing*": "sgd", nn.Conv2d: "sgd"}, make_model())
    assert str(caught.value).splitlines()[1:] == [
        "  'nothing*' matches no parameter that is trained",
        "  Conv2d matches no parameter that is trained",
        "  embed.weight is matched by '*.weight' and by '*embed*'",
        "  nothing matches layers.0.bias, layers.1.bias, layers.2.bias, norm.bias; a key ... stands for all others",
    ]
    with pytest.raises(ValueError, match=r"`...` is left with no parameter"):
        create({"*": "lion", ...: "adamw"}, make_model())


def test_long_lists_are_cut() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(20)))
    with pytest.raises(ValueError, match="and 28 more are matched twice"):
        create({"*": "lion", "*t": "adamw", "*s": "adamw"}, model)
    with pytest.raises(ValueError, match=r"nothing matches 0.bias, .* and 8 more"):
        create({"*.weight": "lion"}, model)


WRONG: list[tuple[Any, Any, str]] = [
    ({"*": 3}, Model, "a rule is a class or the name of one, as 'adamw', or its settings"),
    ({"*": {"lr": 1e-3}}, Model, "a rule is a class or the name of one"),
    ({3: "adamw"}, Model, "rules go by patterns of names, classes of modules, modules of the model, and ..."),
    ({"*": {"rule": "lion", "beta": 3}}, Model, "Lion takes no 'beta'; did you mean 'betas'"),
    ({nn.Linear: "lion", ...: "adamw"}, lambda: Model().named_parameters(), "create needs the model"),
    ({"*": "lion"}, lambda: Model().parameters(), "for several rules params is a model, or pairs"),
    ({"*": "lion"}, lambda: 3, "for several rules params is a model, or pairs"),
    (lambda name, param: None, Model, "the function returns None for embed.weight"),
    (3, Model, "create takes a class or the name of one, such as 'adamw', rules by patterns"),
    ([{"params": [], "rule": "lion"}], Model, "leave params out"),
    ([3], lambda: None, "a param group is a dict with the keys 'params' and 'rule'"),
]


@pytest.mark.parametrize(("rules", "params", "message"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_what_is_no_rule(rules: Any, params: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        create(rules, params())


def test_settings_that_not_all_rules_take() -> None:
    message = "Lion takes no 'eps', which is given for all rules: give it with those that take it"
    with pytest.raises(TypeError, match=message):
        create({nn.Linear: "lion", ...: "adamw"}, make_model(), eps=1e-6)
    with pytest.raises(ValueError, match="there is no optimizer 'lionn'; did you mean 'lion'"):
        create({"*": "lionn"}, make_model())
    with pytest.raises(ValueError, match="AdamW8bit stores its states in 8 bits, not 4"):
        create({nn.Linear: "lion", ...: "adamw8bit"}, make_model(), bits=4)
    for scale in (0, -1.0, True, "2", float("inf")):
        with pytest.raises(ValueError, match="lr_scale is a number above 0"):
            create({"*": {"rule": "lion", "lr_scale": scale}}, make_model())
    with pytest.raises(TypeError, match="LARS has no learning rate that lr_scale=2 could scale"):
        create({"*": {"rule": "lars", "lr_scale": 2, "momentum": 0.9}}, make_model())


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="none requires a gradient"):
        create({"*": "lion"}, make_model().requires_grad_(False))
    with pytest.raises(ValueError, match="no param groups"):
        create([])
    with pytest.raises(ValueError, match="needs the key 'rule'"):
        create([{"params": [torch.nn.Parameter(torch.ones(2))]}])

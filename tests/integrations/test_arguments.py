"""Arguments, by keyword and as a string: each has the type that is declared, or is refused with what would be right."""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import Any

import pytest
import torch
from support.tiny_gpt2 import quiet, tiny_gpt2

from optgen.integrations.overrides import override_modules, override_names
from optgen.integrations.transformers import SERVED, optimizer

transformers = pytest.importorskip("transformers")

GIVEN = {"lr": 1e-3, "weight_decay": 0.0}


def arguments(**given: Any) -> Any:
    return transformers.TrainingArguments(**quiet(given))


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("sgd", "momentum=0.9, dampening=0.1", {"momentum": 0.9, "dampening": 0.1}),
        ("sgd", "momentum=0.9,nesterov=True", {"nesterov": True}),
        ("sgd", "momentum=0.9,nesterov=no", {"nesterov": False}),
        ("adamw_8bit", "min_8bit_size=1e4", {"min_8bit_size": 10000}),
        ("adamw_8bit", "beta2=0.95", {"betas": (0.9, 0.95)}),
        ("adamw_torch", "betas=(0.8, 0.95),eps=1e-6", {"betas": (0.8, 0.95), "eps": 1e-6}),
        (
            "ademamix",
            "beta3=0.99,t_beta3=100,t_alpha=None",
            {"betas": (0.9, 0.999, 0.99), "t_beta3": 100.0, "t_alpha": None},
        ),
        ("stable_adamw", "decouple_lr=True,max_lr=0.5", {"decouple_lr": True, "max_lr": 0.5}),
        ("stable_adamw", "decouple_lr=False,max_lr=None", {"decouple_lr": False, "max_lr": None}),
        ("stable_adamw", "kahan_sum=True", {"rounding": "kahan"}),
        ("adamw_torch_4bit", "block_size=64,bf16_stochastic_round=yes", {"block_size": 64, "rounding": "stochastic"}),
        ("adamw_anyprecision", "use_kahan_summation=1,momentum_dtype=bfloat16", {"momentum_dtype": "bfloat16"}),
        ("adafactor", "beta1=0.9,scale_parameter=False", {"beta1": 0.9, "scale_parameter": False}),
        ("paged_adamw_8bit", "optim_bits=8,target=torch", {"target": "torch"}),
        ("rmsprop_bnb_8bit", "alpha=0.9,centered=false", {"alpha": 0.9, "centered": False}),
        ("adamw_torch", "", {}),
    ],
)
def test_a_string_is_read_by_declared_types(name: str, text: str, wanted: dict[str, Any]) -> None:
    for args, optim_args in ((arguments(optim_args=text), None), (arguments(), text)):
        _, kwargs = optimizer(name, args, optim_args=optim_args)
        found = {key: kwargs[key] for key in wanted}
        assert found == wanted
        assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in wanted.items()}


def test_arguments_stand_before_those_of_trainer() -> None:
    args = arguments(learning_rate=1e-3, adam_beta1=0.5, adam_beta2=0.75, adam_epsilon=1e-4, weight_decay=0.5)
    _, kwargs = optimizer("adamw_torch", args, lr=0.25, beta1=0.125, weight_decay=0.0625)
    assert kwargs == {"lr": 0.25, "betas": (0.125, 0.75), "eps": 1e-4, "weight_decay": 0.0625}
    factory, kwargs = optimizer("adamw_torch", args, weight_decay=0.0625)
    made = factory()(tiny_gpt2(), **kwargs)
    assert [group["weight_decay"] for group in made.param_groups] == [0.0625, 0.0]


def test_without_trainers_arguments_the_rest_is_their_defaults() -> None:
    _, kwargs = optimizer("stable_adamw", **GIVEN)
    assert kwargs == {**GIVEN, "betas": (0.9, 0.999), "eps": 1e-8}
    assert optimizer("schedule_free_sgd", **GIVEN)[1] == {**GIVEN, "warmup_steps": 0}


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "sgd",
        {"momentun": 0.9},
        TypeError,
        "optimizer('sgd'): SGD takes no 'momentun'; did you mean 'momentum'? it takes ",
    ),
    ("sgd", {"optim_args": "momentun=0.9"}, TypeError, "SGD takes no 'momentun'; did you mean 'momentum'?"),
    ("lion_32bit", {"eps": 1e-8}, TypeError, "Lion32bit takes no 'eps'"),
    ("sgd", {"momentum": "0.9"}, TypeError, "SGD: momentum must be a number in [0, inf), not '0.9'"),
    ("sgd", {"momentum": True}, TypeError, "SGD: momentum must be a number in [0, inf), not True"),
    ("sgd", {"nesterov": "False"}, TypeError, "SGD: nesterov must be True or False, not 'False'"),
    (
        "sgd",
        {"optim_args": "nesterov=maybe"},
        TypeError,
        "optimizer('sgd'): nesterov must be true or false, not 'maybe'",
    ),
    ("sgd", {"optim_args": "momentum=high"}, TypeError, "momentum must be a number in [0, inf), not 'high'"),
    ("adamw_8bit", {"optim_args": "min_8bit_size=0.5"}, TypeError, "must be a whole number in [0, inf), not '0.5'"),
    ("adamw_torch", {"optim_args": "codec=int9"}, TypeError, "codec must be one of auto, fp32, bf16"),
    (
        "adamw_torch",
        {"optim_args": "betas=0.9"},
        TypeError,
        "betas must be 2 numbers, as (0.9, 0.999), in [0, 1), not '0.9'",
    ),
    ("adamw_torch", {"optim_args": "beta2=(0.9)x"}, TypeError, "beta2 must be a number in [0, 1), not '(0.9)x'"),
    ("adamw_torch", {"optim_args": "beta2=1.5"}, ValueError, "betas[1] must be in [0, 1)"),
    ("adamw_torch", {"optim_args": "beta2"}, ValueError, "optim_args has 'beta2', which is not name=value"),
    ("adamw_torch", {"optim_args": "beta2=0.9,beta2=0.8"}, ValueError, "optim_args has beta2 twice"),
    ("adamw_torch", {"optim_args": "beta2=0.9", "beta2": 0.9}, TypeError, "beta2 is given twice, once in optim_args"),
    ("adamw_torch", {"beta2": 0.9, "betas": (0.9, 0.9)}, TypeError, "beta2 and betas mean the same; give one of them"),
    ("adamw_torch", {"optim_args": {"beta2": 0.9}}, TypeError, "optim_args is a string such as 'eps=1e-6,beta2=0.95'"),
    ("adamw_torch", {"lr": -1.0}, ValueError, "lr must be in [0, inf)"),
    ("adamw_torch", {"args": "--lr 1"}, TypeError, "args are the trainer's TrainingArguments, not '--lr 1'"),
    (
        "adafactor",
        {"relative_step": True},
        ValueError,
        "optimizer('adafactor') has relative_step=False, and it cannot be True",
    ),
    ("paged_adamw_8bit", {"optim_bits": 32}, ValueError, "has optim_bits=8, and it cannot be 32"),
    ("paged_adamw_8bit", {"is_paged": False}, ValueError, "has is_paged=True, and it cannot be False"),
    ("adamw_torch_4bit", {"optim_bits": 4.0}, ValueError, "has optim_bits=4, and it cannot be 4.0"),
    ("adamw_torch_8bit", {"amsgrad": True}, ValueError, "does not support amsgrad=True"),
    ("adamw_torch_8bit", {"bf16_stochastic_round": 1}, TypeError, "bf16_stochastic_round must be True or False, not 1"),
    ("stable_adamw", {"kahan_sum": True, "rounding": "nearest"}, TypeError, "kahan_sum and rounding mean the same"),
    ("adamw_torch", {"overrides": {"*": 8}}, TypeError, "overrides are settings by patterns of names, as {"),
    ("adamw_torch", {"overrides": ["*"]}, TypeError, "overrides are settings by patterns of names, as {"),
    ("adamw_torch", {"overrides": {"*": {"bits": 8}}}, ValueError, "AdamW.override takes no 'bits'"),
    ("paged_adamw_16bit", {}, ValueError, "no optimizer 'paged_adamw_16bit'; did you mean 'paged_adamw_8bit'? known: "),
    (3, {}, TypeError, "optimizer takes a name such as 'paged_adamw_8bit', not 3"),  # type: ignore[list-item]
]


@pytest.mark.parametrize(("name", "given", "error", "message"), REFUSED)
def test_what_is_refused(name: str, given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        optimizer(name, **({"args": arguments()} | given))


@pytest.mark.parametrize("name", SERVED)
def test_every_name_refuses_unknown_keys_and_wrong_types(name: str) -> None:
    """Refuses what Transformers drops or passes on as a string: each number, flag and choice, given both ways."""
    needed = {"optim_target_modules": "all-linear", "max_grad_norm": 0.0 if "layerwise" in name else 1.0}
    own = partial(arguments, **needed)
    factory, _ = optimizer(name, own())
    with pytest.raises(TypeError, match="takes no 'nonsense'"):
        optimizer(name, own(), nonsense=1)
    with pytest.raises(TypeError, match="takes no 'nonsense'"):
        optimizer(name, own(optim_args="nonsense=1"))
    rule = factory.cls.rule
    taken = inspect.signature(factory.cls).parameters
    tried = [key for key in (*rule.hypers, *rule.options, *rule.storage) if key in taken]
    assert {"lr", "weight_decay"} <= set(tried)
    for key in tried:
        if key in SERVED[name].locked:  # which it refuses with that reason
            continue
        with pytest.raises((TypeError, ValueError), match=key):
            optimizer(name, own(), **{key: "nonsense"})
        with pytest.raises(TypeError, match=f"{key} must be"):
            optimizer(name, own(optim_args=f"{key}=nonsense"))


def test_what_trainer_does_not_hand_on_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"does not know lr and weight_decay: .*, args\), or lr=…, weight_decay=…"):
        optimizer("paged_adamw_8bit")
    with pytest.raises(ValueError, match="does not know weight_decay"):
        optimizer("paged_adamw_8bit", lr=1e-3)


def test_a_warmup_of_a_share_of_all_steps_is_refused_where_the_rule_counts_steps() -> None:
    with pytest.raises(ValueError, match="warmup_steps must be a whole number"):
        optimizer("schedule_free_adamw", arguments(warmup_steps=0.1))


def test_a_factory_takes_a_model_alone() -> None:
    factory, kwargs = optimizer("adamw_torch", **GIVEN)
    model = tiny_gpt2()
    with pytest.raises(TypeError, match=r"not for a list\. For groups of your own take its class, factory\.cls"):
        factory()(list(model.parameters()), **kwargs)
    assert isinstance(factory.cls(model.parameters(), **kwargs), torch.optim.Optimizer)


def bits(made: Any, param: torch.Tensor) -> int | None:
    """The bits of a parameter's own, or None."""
    for group in made.param_groups:
        for index, member in enumerate(group["params"]):
            if member is param:
                return group.get("overrides", {}).get(index, {}).get("optim_bits")
    raise AssertionError


def test_overrides_by_name() -> None:
    model = tiny_gpt2()
    wanted = {"lm_head.*": {"optim_bits": 8}, "*.h.?.mlp.c_fc.weight": {"optim_bits": 16}}
    factory, kwargs = optimizer("adamw_torch", **GIVEN, overrides=wanted)
    made = factory()(model, **kwargs)
    assert bits(made, model.transformer.wte.weight) == 8  # which is the head too
    assert bits(made, model.transformer.wpe.weight) is None
    assert [bits(made, block.mlp.c_fc.weight) for block in model.transformer.h] == [16, 16]
    factory, kwargs = optimizer("adamw_8bit", **GIVEN, overrides={"*.wte.weight": {"optim_bits": 8}})
    made = factory()(model, **kwargs)
    assert [bits(made, getattr(model.transformer, name).weight) for name in ("wte", "wpe")] == [8, 32]
    factory, kwargs = optimizer("adamw_8bit", **GIVEN, overrides={"wte": {"optim_bits": 8}})
    with pytest.raises(ValueError, match="no parameter with a name like 'wte' to override: the model has none"):
        factory()(model, **kwargs)


def test_overrides_of_modules() -> None:
    import optgen_optim

    model = tiny_gpt2()
    made = optgen_optim.AdamW8bit(model.parameters())
    names = override_modules(made, model, (torch.nn.Embedding, torch.nn.LayerNorm), optim_bits=32)
    assert names[:3] == ["transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.ln_1.weight"]
    assert len(names) == 2 + 2 * 5
    with pytest.raises(ValueError, match="no parameter of a Conv2d to override: the model has none"):
        override_modules(made, model, torch.nn.Conv2d, optim_bits=32)
    with pytest.raises(ValueError, match="override takes no 'bits'"):
        override_modules(made, model, torch.nn.Embedding, bits=32)
    few = optgen_optim.AdamW8bit(model.transformer.h.parameters())
    with pytest.raises(ValueError, match="no parameter of a Embedding to override: the optimizer trains none of them"):
        override_modules(few, model, torch.nn.Embedding, optim_bits=32)
    with pytest.raises(TypeError, match="AdamW has no overrides: pass the optimizer of a generated class"):
        override_names(torch.optim.AdamW(model.parameters()), model, "*", optim_bits=32)

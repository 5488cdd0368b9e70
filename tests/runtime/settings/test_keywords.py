"""Keywords that a class does not have: the message says which was meant. Classes that people derive are as before."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import re
import sys
from typing import Any

import optgen_optim
import pytest
import torch
from support.catalogue import optimizer_class, rows
from support.compiling import ROOT

import optgen
from optgen.runtime.settings.keywords import ADVICE, ELSEWHERE


def params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(4))]


@pytest.mark.parametrize("name", sorted(rows()))
def test_a_misspelt_keyword_of_every_class_gets_the_right_one(name: str) -> None:
    cls = optimizer_class(name)
    for key in list(inspect.signature(cls).parameters)[1:]:
        if len(key) == 1:
            continue
        wrong = key + key[-1]
        with pytest.raises(TypeError) as caught:
            cls(params(), **{wrong: None})
        assert str(caught.value) == f"{name}() got an unexpected keyword argument {wrong!r}; did you mean {key!r}?"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("bets", "did you mean 'betas'?"),
        ("learning_rate", "write lr"),
        ("bf16_stochastic_round", 'write rounding="stochastic"'),
        ("wd", "write weight_decay"),
        ("beta1", "write betas=(beta1, beta2)"),
        ("set_grad_none", "give it to optimizer.zero_grad"),
        ("nonsense", "known: amsgrad, args, betas, block_size"),
    ],
)
def test_hints(key: str, hint: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"AdamW() got an unexpected keyword argument '{key}'; {hint}")):
        optgen_optim.create("adamw", params(), **{key: 1})


def test_what_is_written_for_other_libraries_words_exists_and_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    every = {key for name in rows() for key in inspect.signature(optimizer_class(name)).parameters}
    assert all(here.partition("=")[0] in every for here in ELSEWHERE.values())
    assert all(f"`{key}`" in page for key in (*ELSEWHERE, *ADVICE))


@pytest.mark.parametrize("library", ["torchao.optim", "optimi"])
def test_keywords_of_other_libraries_that_differ_stand_on_the_page(library: str) -> None:
    module = pytest.importorskip(library)
    page = (
        (ROOT / "docs" / "migration.md").read_text(encoding="utf-8").partition("\n## Keywords of other libraries\n")[2]
    )
    ours = {name.lower(): optimizer_class(name) for name in rows()}
    compared = 0
    for name, theirs in vars(module).items():
        if name.lower() in ours and inspect.isclass(theirs):
            known = inspect.signature(ours[name.lower()]).parameters
            for key in inspect.signature(theirs).parameters:
                assert key in known or f"`{key}`" in page, (name, key)
                compared += 1
    assert compared > 10


def test_peft_leaves_a_class_with_a_name_of_its_own_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/migration.md has it; embeddings keep 32 bits, the adapters 8."""
    peft = pytest.importorskip("peft")
    loraplus = importlib.import_module("peft.optimizers")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(64, 256)
            self.proj = torch.nn.Linear(256, 256)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.proj(self.embedding(tokens))

    class LoraAdamW8bit(optgen_optim.AdamW8bit):
        pass

    config = peft.LoraConfig(r=32, target_modules=["proj"], modules_to_save=["embedding"])
    model = peft.get_peft_model(Model(), config)
    optimizer = loraplus.create_loraplus_optimizer(model, LoraAdamW8bit, lr=1e-4, loraplus_lr_ratio=16)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight.requires_grad:
            optimizer.override(module.weight, optim_bits=32)
    model(torch.arange(64)).square().sum().backward()
    optimizer.step()
    found = {
        name: optimizer.state[param]["exp_avg"].dtype
        for name, param in model.named_parameters()
        if "exp_avg" in optimizer.state[param]
    }
    assert {dtype for name, dtype in found.items() if "embedding" in name} == {torch.float32}
    assert {dtype for name, dtype in found.items() if "lora" in name} == {torch.uint8}
    with pytest.raises(ImportError):
        loraplus.create_loraplus_optimizer(model, optgen_optim.AdamW8bit, lr=1e-4, loraplus_lr_ratio=16)


def test_no_hint_at_an_argument_that_the_class_lacks() -> None:
    with pytest.raises(TypeError, match=r"SGD\(\) got an unexpected keyword argument 'beta1'; known: "):
        optgen_optim.SGD(params(), lr=0.1, beta1=0.9)  # type: ignore[call-arg]


def test_a_class_that_people_derive_takes_what_it_says() -> None:
    class Scaled(optimizer_class("AdamW")):  # type: ignore[misc]
        def __init__(self, params: Any, scale: float, **settings: Any) -> None:
            super().__init__(params, **settings)
            self.scale = scale

    class Narrow(optimizer_class("AdamW")):  # type: ignore[misc]
        def __init__(self, params: Any, rate: float) -> None:
            super().__init__(params, lr=rate)

    assert Scaled(params(), 2.0, lr=0.5).defaults["lr"] == 0.5
    with pytest.raises(TypeError, match=r"Scaled\(\) got an unexpected keyword argument 'bets'; did you mean 'betas'"):
        Scaled(params(), 2.0, bets=(0.9, 0.99))
    with pytest.raises(TypeError, match=r"Narrow\(\) got an unexpected keyword argument 'rat'; did you mean 'rate'"):
        Narrow(params(), rat=0.5)


def test_signatures_pickles_and_copies_are_as_without() -> None:
    cls = optgen_optim.AdamW8bit
    assert list(inspect.signature(cls).parameters)[:4] == ["params", "lr", "betas", "eps"]
    optimizer = cls(params(), lr=0.25)
    assert copy.deepcopy(optimizer).defaults["lr"] == 0.25
    assert pickle.loads(pickle.dumps(optimizer)).defaults["lr"] == 0.25


def test_classes_of_loaded_specs_say_it_too() -> None:
    cls = optgen.load(ROOT / "tests" / "runtime" / "data" / "packages" / "kept.yaml").Kept
    with pytest.raises(TypeError, match=r"Kept\(\) got an unexpected keyword argument 'bet'; did you mean 'beta'\?"):
        cls(params(), bet=0.5)

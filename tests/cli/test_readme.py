"""The README's examples work, and its outputs are those of the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import optgen
from optgen.compiler import compile_specs
from optgen.diagnostics import SpecError

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(language: str, containing: str) -> str:
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", README)
    return next(text for found, text in blocks if found == language and containing in text)


def test_the_example_trains() -> None:
    model = torch.nn.Linear(64, 64)
    loss = model(torch.ones(1, 64)).square().mean()
    before = model.weight.detach().clone()
    exec(block("python", "from optgen_optim import"), {"model": model, "loss": loss})
    assert not torch.equal(before, model.weight)


def test_the_own_rule_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_optimizer.yaml").write_text(block("yaml", "my_optimizer"))
    names = {"model": torch.nn.Linear(64, 64)}
    exec(block("python", "optgen.load"), names)
    optimizer = names["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert type(optimizer).__name__ == "MyOptimizer"
    names["model"](torch.ones(1, 64)).sum().backward()
    optimizer.step()


def test_the_mistake_is_shown_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_optimizer.yaml").write_text(block("yaml", "my_optimizer").replace("exp_avg = beta *", "exp_avg = beta3 *"))
    with pytest.raises(SpecError) as raised:
        compile_specs([Path("my_optimizer.yaml")], "mine")
    assert str(raised.value) + "\n" == block("", "error[")


def test_load_is_what_the_package_offers() -> None:
    assert callable(optgen.load)

"""The spec that `optgen new` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import optgen
from optgen.new import NewSpecError, class_name, new_spec, spec_name, write_new_spec


@pytest.mark.parametrize(
    ("given", "rule", "class_"),
    [
        ("my_rule", "my_rule", "MyRule"),
        ("MyRule", "my_rule", "MyRule"),
        ("my-rule", "my_rule", "MyRule"),
        ("LAMB", "lamb", "Lamb"),
        ("Adam2", "adam2", "Adam2"),
        ("a__b_", "a_b", "AB"),
    ],
)
def test_names(given: str, rule: str, class_: str) -> None:
    assert spec_name(given) == rule
    assert class_name(rule) == class_


@pytest.mark.parametrize("name", ["", "1a", "a b", "a/b", "../a", "ü", "a" * 65, "_a"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(NewSpecError, match="cannot name a rule"):
        spec_name(name)


@pytest.mark.parametrize("name", ["class", "rule", "any", "Literal"])
def test_names_that_classes_cannot_have_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(NewSpecError, match="has a meaning in Python or in generated packages; give another name"):
        write_new_spec(name, tmp_path / "new.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["", "8bit"])
def test_the_new_rule_trains(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "my_rule.yaml"
    path.write_text(new_spec("my_rule", "my_rule.yaml"))
    param = torch.randn(8, 1024, requires_grad=True)
    optimizer = getattr(optgen.load(path), f"MyRule{suffix}")([param], lr=0.1)
    before = param.square().mean().item()
    for _ in range(5):
        optimizer.zero_grad()
        param.square().mean().backward()
        optimizer.step()
    assert param.square().mean().item() < before


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "my_rule.yaml"
    path.write_text(new_spec("my_rule", 'a"b\nname: other; touch x #\u2028.yaml'), encoding="utf-8")
    assert optgen.load(path).MyRule.__name__ == "MyRule"

"""Files with the keys that they had before: `rules`, `variants`, `rejects`, `family`, and variants.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from optgen.diagnostics import Reporter, SpecError
from optgen.spec.loader import SpecSet, load_specs

RULE = """\
name: a
hyperparameters: {lr: 1.0}
rules:
  - {when: lr > 5, message: too large}
blocks:
  step: param = param - lr * grad
variants:
  One: {rejects: [{when: lr > 2, message: large}]}
"""
TABLE = """\
rejects:
  high: {when: lr > 3, message: high}
variants:
  Two: {family: a, rejects: [high]}
"""


def _loaded(folder: Path, **files: str) -> SpecSet:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_specs([folder], Reporter())


def test_they_are_read(tmp_path: Path) -> None:
    specs = _loaded(tmp_path, a=RULE, variants=TABLE)
    assert [refused.when for refused in specs.rules["a"].spec.refusals] == ["lr > 5"]
    assert specs.rules["a"].text("refusals", 0, "when").text == "lr > 5"
    assert {name: variant.rule for name, variant in specs.classes.items()} == {"Two": "a", "One": "a"}
    assert [placed.when.text for placed in specs.refusals_of("One")] == ["lr > 2"]
    assert [placed.when.text for placed in specs.refusals_of("Two")] == ["lr > 3"]
    two = specs.declared["Two"]
    assert str(two.document.locate(*two.at("rule"))).endswith("variants.yaml:4:17")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RULE + "refusals: []\n", "a.yaml:3:1: `rules` is called `refusals` now, and the file has both"),
        (RULE.replace("rejects", "refusals: [], rejects"), "a.yaml:8:23: `rejects` is called `refusals` now"),
        (RULE.replace("lr > 5", "mu > 5"), "a.yaml:4:12: `mu` is not a setting"),
    ],
)
def test_mistakes_stand_where_they_are(tmp_path: Path, text: str, said: str) -> None:
    from optgen.compiler import check_specs

    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as error:
        check_specs([tmp_path / "a.yaml"], Reporter())
    (found,) = error.value.diagnostics
    assert said in f"{found.location}: {found.message}"


def test_one_table_a_build(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"a build takes one classes\.yaml, found `.*`, `.*variants\.yaml`"):
        _loaded(tmp_path, a=RULE, variants=TABLE, classes="classes: {}")

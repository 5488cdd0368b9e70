"""Words of the vocabulary: short forms, what a spec says itself, and a folder's own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from optgen.diagnostics import Reporter, SpecError
from optgen.spec.loader import LoadedSpec, load_specs

RULE = "name: a\n{}\nblocks:\n  step: param = param - lr * grad\n"


def _loaded(folder: Path, declarations: str, **files: str) -> LoadedSpec:
    for name, text in {"a": RULE.format(declarations), **files}.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_specs([folder / "a.yaml"], Reporter()).rules["a"]


def test_a_default_alone_has_what_the_vocabulary_says(tmp_path: Path) -> None:
    spec = _loaded(
        tmp_path, "hyperparameters: {lr: 0.5, betas: [0.5, 0.75], t: {default: 1}}\noptions: {amsgrad: true}"
    ).spec
    lr, betas = spec.hyperparameters["lr"], spec.hyperparameters["betas"]
    assert (lr.default, lr.range, lr.doc.raw) == (0.5, "[0, inf)", "Step size.")
    assert lr.label is not None
    assert lr.label.raw == "learning rate"
    assert (betas.names, betas.default, betas.range) == (["beta1", "beta2"], [0.5, 0.75], "[0, 1)")
    assert spec.hyperparameters["t"].range == "(-inf, inf)"
    assert spec.options["amsgrad"].default is True
    assert spec.options["amsgrad"].doc.raw.startswith("Divide by the root of the largest")


def test_what_a_spec_says_comes_first(tmp_path: Path) -> None:
    text = 'hyperparameters:\n  lr: {default: -1.0, range: "(-inf, inf)", doc: Mine.}\n  betas: {names: [fast, slow]}'
    spec = _loaded(tmp_path, text).spec
    lr, betas = spec.hyperparameters["lr"], spec.hyperparameters["betas"]
    assert (lr.default, lr.range, lr.doc.raw) == (-1.0, "(-inf, inf)", "Mine.")
    assert lr.label is not None
    assert betas.names == ["fast", "slow"]
    assert betas.required


@pytest.mark.parametrize(("text", "optional"), [("null", True), ("", True), ("{}", False)])
def test_null_is_optional(tmp_path: Path, text: str, optional: bool) -> None:
    lr = _loaded(tmp_path, f"hyperparameters:\n  lr: {text}").spec.hyperparameters["lr"]
    assert (lr.optional, lr.required) == (optional, not optional)
    assert lr.range == "[0, inf)"


def test_states(tmp_path: Path) -> None:
    """A mapping says all of a state: how it is stored does not change with a vocabulary."""
    text = "hyperparameters: {lr: 1}\noptions: {amsgrad: false}\n"
    text += "states:\n  exp_avg_sq:\n  max_exp_avg_sq: Mine.\n  h: Of me.\n"
    spec = _loaded(tmp_path, text).spec
    assert spec.states["exp_avg_sq"].range == "unsigned"
    assert spec.states["max_exp_avg_sq"].when == "amsgrad"
    assert spec.states["max_exp_avg_sq"].codecs == ["fp32", "bf16", "fp16"]
    assert spec.states["max_exp_avg_sq"].doc.raw == "Mine."
    assert (spec.states["h"].range, spec.states["h"].doc.raw) == ("signed", "Of me.")
    spec = _loaded(tmp_path, "hyperparameters: {lr: 1}\nstates: {exp_avg_sq: {}, max_exp_avg_sq: {doc: Mine.}}").spec
    assert spec.states["exp_avg_sq"].range == "signed"
    assert spec.states["max_exp_avg_sq"].when is None
    assert spec.states["max_exp_avg_sq"].codecs is None


def test_a_folder_may_have_words_of_its_own(tmp_path: Path) -> None:
    words = 'hyperparameters:\n  lr: {range: "(0, 1)", doc: Rate.}\n  tau: {range: "[1, inf)", integer: true}\n'
    spec = _loaded(tmp_path, "hyperparameters: {lr: 0.5, tau: 4, eps: 1e-8}", vocabulary=words).spec
    assert (spec.hyperparameters["lr"].range, spec.hyperparameters["lr"].doc.raw) == ("(0, 1)", "Rate.")
    assert spec.hyperparameters["tau"].integer
    assert spec.hyperparameters["eps"].range == "[0, inf)"


def test_places_of_short_forms(tmp_path: Path) -> None:
    loaded = _loaded(tmp_path, "hyperparameters:\n  lr: 0.5\n  betas: [0.5, 0.75]\nstates:\n  exp_avg:\n  h: Text.")
    places = {
        ("hyperparameters", "lr", "default"): "3:7",
        ("hyperparameters", "betas", "default", 1): "4:16",
        ("hyperparameters", "betas", "names", 0): "4:3",
        ("states", "exp_avg", "when"): "6:3",
        ("states", "h", "doc"): "7:6",
    }
    found = {path: str(loaded.locate(*path)).split(".yaml:")[1] for path in places}
    assert found == places


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("hyperparameters: {tau: {range: '[1, 0]'}}", "vocabulary.yaml:1:32: `[1, 0]` is empty"),
        ("hyperparameters: {tau: {default: 1}}", "vocabulary.yaml:1:25: unknown key `default`"),
        ("options: {mode: {choices: []}}", "vocabulary.yaml:1:27: `mode` has no choice"),
        ("colour: red", "vocabulary.yaml:1:1: unknown key `colour`"),
    ],
)
def test_mistakes_in_a_vocabulary(tmp_path: Path, words: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        _loaded(tmp_path, "hyperparameters: {lr: 0.5}", vocabulary=words)
    (found,) = error.value.diagnostics
    assert found.location is not None
    assert f"{found.location}: {found.message}".endswith(said)


def test_one_vocabulary_a_build(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yaml").write_text(RULE.format("hyperparameters: {lr: 1}").replace("a", name, 1))
        (tmp_path / name / "vocabulary.yaml").write_text("{}")
    with pytest.raises(SpecError, match=r"a build takes one vocabulary\.yaml"):
        load_specs([tmp_path / "a", tmp_path / "b"], Reporter())

"""Messages about stages and the rules that they are put on, word for word.

`OPTGEN_UPDATE=1 pytest tests/spec/test_stages.py` writes stages.txt again; read the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.compiling import ROOT

from optgen.compiler import compile_specs
from optgen.diagnostics import SpecError, format_diagnostics
from optgen.errors import UserError

EXPECTED = Path(__file__).parent / "stages.txt"
RULES = {
    "plain": "name: plain\nhyperparameters: {lr: 0.1}\nblocks:\n  step: |\n    param = param - lr * grad\n",
    "averaged": "name: averaged\nhyperparameters: {lr: 0.1, betas: [0.9, 0.999]}\nstates: {exp_avg}\n"
    "blocks:\n  step: |\n    exp_avg = beta1 * exp_avg + beta2 * grad\n    update = exp_avg\n"
    "  apply: |\n    param = param - lr * update\n",
    "bare": "name: bare\nblocks:\n  step: |\n    param = param - grad\n",
}
HEAD = "stage: put\n"
GRAD = f"{HEAD}blocks:\n  grad: |\n    "
UPDATE = f"{HEAD}blocks:\n  update: |\n    "
APPLY = f"{HEAD}blocks:\n  apply: |\n    "
SCALE = 'hyperparameters: {NAME: {default: 2.0, range: "(0, inf)"}}\n'
CASES: dict[str, tuple[str, str]] = {
    "a hyperparameter of the rule": (
        "averaged",
        HEAD + SCALE.replace("NAME", "lr") + "blocks: {grad: grad = lr * grad}\n",
    ),
    "a part of a hyperparameter of the rule": (
        "averaged",
        HEAD + SCALE.replace("NAME", "beta1") + "blocks: {grad: grad = beta1 * grad}\n",
    ),
    "a state of the rule": ("averaged", HEAD + "states: {exp_avg}\nblocks: {grad: exp_avg = exp_avg + grad}\n"),
    "a setting of every rule": (
        "averaged",
        HEAD + "options: {cautious: {default: true}}\nblocks:\n  update: |\n    if cautious:\n      update = -update\n",
    ),
    "a storage setting": (
        "averaged",
        HEAD + SCALE.replace("NAME", "seed") + "blocks: {grad: grad = seed * grad}\n",
    ),
    "a name in another case": (
        "averaged",
        HEAD + SCALE.replace("NAME", "LR") + "blocks: {grad: grad = LR * grad}\n",
    ),
    "a rule without update": ("plain", UPDATE + "update = -update\n"),
    "a rule without a setting": ("bare", APPLY + "param = param * (1 - lr)\n"),
    "a rule without an option": ("plain", GRAD + "if nesterov:\n        grad = 2 * grad\n"),
    "a value of the rule's own": ("averaged", APPLY + "param = param + denom\n"),
    "update before it is named": ("averaged", GRAD + "grad = grad + update\n"),
    "update assigned before the rule": ("averaged", GRAD + "update = grad\n    grad = 2 * grad\n"),
    "update assigned behind the rule": ("averaged", APPLY + "update = 2 * update\n    param = param - update\n"),
    "grad assigned behind the step": ("averaged", UPDATE + "grad = 2 * grad\n    update = grad\n"),
    "a state of the rule is assigned": ("averaged", GRAD + "exp_avg = 0 * grad\n    grad = exp_avg\n"),
    "a setting of the rule is assigned": ("averaged", GRAD + "lr = 2\n    grad = lr * grad\n"),
    "a block that stages do not have": ("averaged", HEAD + "blocks:\n  step: |\n    grad = 2 * grad\n"),
    "no equations": ("averaged", HEAD + "blocks: {}\n"),
    "no name": ("averaged", "stage:\nblocks: {grad: grad = 2 * grad}\n"),
    "a rule is no stage": ("averaged", RULES["plain"]),
    "a long name": ("averaged", f"stage: {'long_' * 12}\nblocks:\n  grad: |\n    grad = 2 * grad\n"),
    "a setting that nothing reads": (
        "averaged",
        HEAD + SCALE.replace("NAME", "extra") + "blocks:\n  grad: |\n    grad = 2 * grad\n",
    ),
    "a value that nothing reads": ("averaged", GRAD + "twice = 2 * grad\n    grad = -grad\n"),
    "a file of another name": ("averaged", GRAD.replace("put", "other") + "grad = -grad\n"),
    "a matrix of a shape of its own": (
        "averaged",
        HEAD + "states: {square: {shape: [rows, rows]}}\nblocks:\n  grad: |\n    grad = -grad\n",
    ),
    "loops and functions": (
        "averaged",
        HEAD + "functions: |\n  def twice(x):\n    return x + nope\n" + "blocks:\n  grad: |\n"
        "    for beta in betas:\n      grad = twice(grad) * gamma\n",
    ),
}
WARNED = ("a setting that nothing reads", "a value that nothing reads", "a file of another name")


def said(folder: Path, name: str) -> str:
    """Errors, or else warnings, of a stage on a rule; without the folder's name."""
    rule, text = CASES[name]
    (folder / f"{rule}.yaml").write_text(RULES[rule])
    (folder / "put.yaml").write_text(text)
    try:
        text = format_diagnostics(compile_specs([folder / "put.yaml"], None, folder / f"{rule}.yaml").warnings)
    except SpecError as error:
        text = str(error)
    return "\n".join(line.rstrip() for line in text.replace(f"{folder.as_posix()}/", "").split("\n"))


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)\n\n", EXPECTED.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text.strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_update(tmp_path: Path) -> None:
    if not os.environ.get("OPTGEN_UPDATE"):
        pytest.skip("OPTGEN_UPDATE is not set")
    EXPECTED.write_text("\n".join(f"## {name}\n\n{said(tmp_path, name)}\n" for name in CASES), encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_says_exactly(name: str, tmp_path: Path) -> None:
    assert said(tmp_path, name) == sections()[name]


def test_every_text_has_its_case() -> None:
    assert list(sections()) == list(CASES)


def test_nothing_wrong_is_accepted() -> None:
    for name, text in sections().items():
        assert text.startswith("warning[" if name in WARNED else "error["), name


def test_a_name_that_optgen_does_not_have() -> None:
    with pytest.raises(UserError, match="no rule and no class `adamq`: did you mean `adam`"):
        compile_specs([ROOT / "examples" / "stages" / "lookahead.yaml"], None, "adamq")


def test_a_stage_twice() -> None:
    stage = ROOT / "examples" / "stages" / "centralize.yaml"
    with pytest.raises(SpecError, match="two stages are called `centralize`"):
        compile_specs([stage, stage], None, "sgd")


def test_a_stage_without_a_rule() -> None:
    with pytest.raises(SpecError, match="is a stage, not a rule"):
        compile_specs([ROOT / "examples" / "stages" / "centralize.yaml"], None)


@pytest.mark.parametrize("onto", ["AdamW", "adamw", "Adam", "adam", ROOT / "specs" / "adam.yaml"])
def test_rules_go_by_their_names_those_of_classes_and_paths(onto: str | Path) -> None:
    package = compile_specs([ROOT / "examples" / "stages" / "centralize.yaml"], None, onto)
    assert {info.rule for info in package.classes} == {"centralize_adam"}
    assert any(info.name.startswith("CentralizeAdam") for info in package.classes)


def test_a_stage_is_put_on_every_rule_of_a_folder(tmp_path: Path) -> None:
    for name in ("plain", "bare"):
        (tmp_path / f"{name}.yaml").write_text(RULES[name])
    package = compile_specs([ROOT / "examples" / "stages" / "centralize.yaml"], None, tmp_path)
    assert [info.name for info in package.classes] == ["CentralizeBare", "CentralizePlain"]


def test_words_and_functions_beside_a_stage(tmp_path: Path) -> None:
    (tmp_path / "put.yaml").write_text(HEAD + "hyperparameters: {warm: 3}\nblocks: {grad: grad = later(grad)}\n")
    (tmp_path / "vocabulary.yaml").write_text('hyperparameters:\n  warm: {range: "[1, 9]", doc: Steps.}\n')
    (tmp_path / "functions.yaml").write_text("functions: |\n  def later(x):\n    return x * min(1, step / warm)\n")
    package = compile_specs([tmp_path / "put.yaml"], None, "sgd")
    assert package.classes[0].whole_rule.hypers["warm"].range == "[1, 9]"

"""Declarations of shared.yaml beside equations: combinations that are refused, settings that need a choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import optgen
from optgen.compiler import compile_specs
from optgen.diagnostics import SpecError

SHARED = """\
hyperparameters:
  most: {default: 0.0, needs: {form: bounded}}
options:
  form: {default: plain, choices: [plain, bounded], needs: update}
storage:
  optim_bits: {default: 32, choices: [32, 8]}
  min_8bit_size: {default: 4096, integer: true}
  block_wise: {default: true}
refusals:
  - {when: most > 0 and form != "bounded", message: "{name}: most={most} needs form='bounded'"}
blocks:
  update: |
    update = update + 100 * grad
    if form == "bounded" and most > 0:
        update = min(update, most)
"""
RULE = """\
name: probe
hyperparameters:
  lr: {default: 1.0}
OPTIONSblocks:
  step: |
    grad = 7 * grad
    update = 0 * grad
  apply: param = param - lr * update - grad
"""
NO_UPDATE = "name: probe\nhyperparameters:\n  lr: {default: 1.0}\nblocks:\n  step: param = param - lr * grad\n"
OWN_FORM = "options:\n  form: {default: plain, choices: [plain, round]}\n"
USE_OF_FORM = '    if form == "round":\n        update = floor(update)\n'


def written(folder: Path, rule: str = RULE, shared: str = SHARED, options: str = "") -> Path:
    (folder / "shared.yaml").write_text(shared, encoding="utf-8")
    (folder / "probe.yaml").write_text(rule.replace("OPTIONS", options), encoding="utf-8")
    return folder / "probe.yaml"


def errors(path: Path) -> list[str]:
    with pytest.raises(SpecError) as caught:
        compile_specs([path], "probe")
    return [f"{d.location}: {d.rule}: {d.message}" for d in caught.value.diagnostics]


def test_grad_in_update_is_what_the_first_stage_left_and_apply_has_the_rules_own(tmp_path: Path, target: str) -> None:
    param = torch.zeros(3, requires_grad=True)
    param.grad = torch.tensor([1.0, 2.0, -1.0])
    optgen.load(written(tmp_path)).Probe([param], target=target).step()
    assert param.tolist() == [-107.0, -214.0, 107.0]


def test_grad_cannot_be_assigned_in_update(tmp_path: Path) -> None:
    said = errors(written(tmp_path, shared=SHARED.replace("update = update + 100 * grad", "grad = update")))
    assert any("not-assignable: `grad` cannot be assigned after the `step` block" in line for line in said)


def test_a_combination_that_all_rules_refuse(tmp_path: Path) -> None:
    params = [torch.zeros(3, requires_grad=True)]
    probe = optgen.load(written(tmp_path)).Probe
    with pytest.raises(ValueError, match=r"Probe: most=2\.0 needs form='bounded'"):
        probe(params, most=2.0)
    probe(params, most=2.0, form="bounded")


@pytest.mark.parametrize("text", [NO_UPDATE, RULE.replace("  apply", USE_OF_FORM + "  apply")], ids=["stage", "choice"])
def test_what_a_rule_lacks_is_neither_offered_nor_refused(tmp_path: Path, text: str) -> None:
    params = [torch.zeros(3, requires_grad=True)]
    probe = optgen.load(written(tmp_path, text, options=OWN_FORM)).Probe
    assert "most" not in probe(params).defaults
    with pytest.raises(TypeError, match="most"):
        probe(params, most=2.0)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("{form: bounded}", "{shape: bounded}", "undefined-name: `shape` is not a shared option with `choices`"),
        ("{form: bounded}", "{form: bounden}", "unknown-choice: `bounden` is not a choice of `form`"),
        ("most={most}", "most={moist}", "undefined-name: `{moist}` in this message is not a setting"),
        ("when: most > 0", "when: moist > 0", "undefined-name: `moist` is not a setting"),
    ],
)
def test_mistakes_are_said_with_their_place(tmp_path: Path, before: str, after: str, message: str) -> None:
    said = errors(written(tmp_path, shared=SHARED.replace(before, after)))
    assert any(line.split(":")[0].endswith("shared.yaml") and line.endswith(message) for line in said), said

"""States that have the name of a function: what stands before a bracket is the function, all else the state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.compiling import refusal, write_spec

import optgen

SPEC = """\
name: namesakes
hyperparameters:
  lr: {default: 0.5, range: "[0, inf)"}
states:
  sum: {range: unsigned, init: 3}
  max: {shape: tensor}
blocks:
  step: |
    sum = sum + grad * grad
    max = max(max, sum(sum))
    param = param - lr * grad / max
"""


def test_a_state_may_have_the_name_of_a_function(tmp_path: Path, target: str) -> None:
    cls = optgen.load(write_spec(tmp_path, SPEC)).Namesakes
    param = torch.nn.Parameter(torch.zeros(4))
    opt = cls([param], target=target)
    param.grad = torch.ones(4)
    opt.step()
    state = opt.state[param]
    assert state["sum"].tolist() == [4.0] * 4
    assert float(state["max"]) == 16.0
    assert param.tolist() == [-0.5 / 16] * 4
    param.grad = torch.zeros(4)
    opt.step()
    assert float(state["max"]) == 16.0


@pytest.mark.parametrize("section", ["hyperparameters", "options"])
def test_settings_may_not(tmp_path: Path, section: str) -> None:
    declared = {"hyperparameters": "  sqrt: {default: 1}\n", "options": "options:\n  sqrt: {default: false}\n"}[section]
    said = refusal(tmp_path, SPEC.replace("states:\n", f"{declared}states:\n"))
    assert "error[reserved-name]: `sqrt` is a reserved name" in said


def test_a_call_is_no_use_of_a_state(tmp_path: Path) -> None:
    said = refusal(tmp_path, SPEC.replace("  max:", "  sqrt: {}\n  max:").replace("/ max", "/ sqrt(max)"))
    assert said.startswith("warning[unused]: `sqrt` is never used")

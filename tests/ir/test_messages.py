"""Messages of rules: whatever passes the check can be filled in."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.compiling import write_spec

import optgen
from optgen.diagnostics import Reporter
from optgen.spec.messages import check_message, message_fields
from optgen.spec.source import SourceFile, SourceText

SPEC = """\
name: shown
hyperparameters:
  lr: {default: 0.5}
  betas: {default: [0.5, 0.75], names: [beta1, beta2]}
options:
  mode: {default: plain, choices: [plain, other]}
states:
  total: {shape: group, init: 3}
refusals:
  - {when: mode == "other", message: "{name} {lr} {betas} {beta2} {mode} {mode!r} {seed} {{{name}}} {{}}"}
  - {when: total > 2, message: "{name}: {total} {beta1}", on: step}
blocks:
  step: |
    total = total + 1
    update = beta1 * beta2 * grad
    if mode == "plain":
        update = -update
  apply: param = param - lr * update
"""
BITS = ("{", "}", "{{", "}}", "lr", "mode", "beta1", "!r", "!x", ":", "d", ".", "[0]", "0", " ", "name", "__class__")


def test_settings_parts_and_states_are_shown(tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, SPEC)).Shown
    param = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"^Shown 0\.5 \(0\.5, 0\.75\) 0\.75 other 'other' 0 \{Shown\} \{\}$"):
        cls([param], mode="other")
    opt = cls([param], target="torch")
    param.grad = torch.ones(2)
    with pytest.raises(ValueError, match=r"^Shown: 3\.0 0\.5$"):
        opt.step()


@given(st.lists(st.sampled_from(BITS), max_size=8).map("".join))
@example("{lr}}}")
@example("{{{lr}}}")
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_can_be_filled_in_and_shows_settings_alone(message: str) -> None:
    reporter = Reporter()
    text = SourceText(message, SourceFile("rule.yaml", f'"{message}"'), 0, len(message) + 2, '"')
    check_message(text, ("lr", "mode", "beta1"), reporter)
    shown = {"name": "Class", "lr": 0.5, "mode": "plain", "beta1": 0.25}
    for diagnostic in reporter.diagnostics:
        assert diagnostic.location is not None
    if not reporter.has_errors:
        values = {"{{": "{", "}}": "}"}
        for name in message_fields(message):
            values |= {f"{{{name}}}": str(shown[name]), f"{{{name}!r}}": repr(shown[name])}
        forms = "|".join(map(re.escape, values))  # found from the left, as braces are paired
        assert message.format_map(shown) == re.sub(forms, lambda found: values[found[0]], message)

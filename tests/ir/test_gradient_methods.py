"""Methods that read gradients: the shared stage before them, inputs, and what they do not keep."""

from __future__ import annotations

from pathlib import Path

from support.compiling import compiled, refusal

SPEC = """\
name: probe
hyperparameters:
  lr: {default: 0.1}
states:
  square: {range: unsigned}
blocks:
  step: |
    param = param - lr * grad / (1 + square)
methods:
  measure:
    grad: true
    block: |
      square = grad * grad
"""


def test_the_shared_stage_comes_first(tmp_path: Path) -> None:
    planned = compiled(tmp_path, SPEC)
    plan = planned.plans["measure"]
    assert plan.program.inputs["grad"].role == "grad"
    assert plan.program.inputs["grad_scale"].role == "input"
    assert {"grad_scale_given", "maximize", "skip_zeros"} <= set(planned.rule.guards.guards)
    assert planned.rule.reads_gradients("measure")
    assert planned.rule.reads_gradients("step")


def test_what_the_shared_stage_keeps_is_for_steps(tmp_path: Path) -> None:
    planned = compiled(tmp_path, SPEC)
    assert "gnorm_vec" not in planned.plans["measure"].program.outputs
    assert "gnorm_vec" in planned.plans["step"].program.outputs


def test_other_methods_have_no_gradient(tmp_path: Path) -> None:
    message = refusal(tmp_path, SPEC.replace("    grad: true\n", ""))
    assert "undefined-name" in message
    assert "`grad`" in message


def test_grad_is_true_or_false(tmp_path: Path) -> None:
    assert "true or false" in refusal(tmp_path, SPEC.replace("grad: true", "grad: 1"))

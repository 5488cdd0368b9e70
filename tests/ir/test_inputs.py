"""Inputs that are set for a step: what they may be used for, and what is said where they may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.compiling import ROOT, compiled, refusal, write_spec

from optgen.compiler import check_specs
from optgen.diagnostics import Reporter, SpecError
from optgen.ir.formula import atom
from optgen.ir.nodes import Const, Kind, Select

SPEC = """\
name: probe
hyperparameters:
  lr: {default: 0.1}
inputs:
  loss: {doc: The loss of this step.}
states:
  exp_avg: {STATE}
blocks:
  step: |
    STEP
METHODS"""
STEP = """if loss is not None:
        grad = grad * where(loss > 1, 2, 1)
    exp_avg = grad
    param = param - lr * exp_avg"""


def spec(step: str = STEP, state: str = "", methods: str = "") -> str:
    return SPEC.replace("STATE", state).replace("STEP", step).replace("METHODS", methods)


def test_an_input_is_one_number_for_all_and_its_presence_a_guard(tmp_path: Path) -> None:
    planned = compiled(tmp_path, spec())
    program = planned.plans["step"].program
    assert program.inputs["loss"].kind is Kind.GLOBAL
    guard = planned.rule.guards.guards["loss_given"]
    assert (guard.about, guard.subject, guard.op) == ("input", "loss", "given")
    choices = [let.expr for let in program.lets if isinstance(let.expr, Select)]
    assert [choice.kind for choice in choices if choice.formula == atom("loss_given")] == [Kind.GLOBAL]


REFUSED = {
    "read without asking": (spec("param = param - lr * loss"), "maybe-undefined", "it is missing with `loss is None`"),
    "value in if": (
        spec(STEP.replace("loss is not None", "loss > 1")),
        "run-time-condition",
        "`loss` is set for each step: its value is not known before the step",
    ),
    "assigned": (spec(f"loss = 1\n    {STEP}"), "not-assignable", "`loss` is given from outside"),
    "in a method": (
        spec(methods="methods:\n  train: {block: param = param * loss}"),
        "undefined-name",
        "`loss` is not a hyperparameter, state or earlier value",
    ),
    "asked for in a method": (
        spec(methods="methods:\n  train: {block: 'if loss is None: param = param + 1'}"),
        "undefined-name",
        "`loss` is not an option, hyperparameter or fact of `probe`",
    ),
    "in an initial value": (spec(state="init: loss"), "undefined-name", "`loss` is not a hyperparameter"),
    "as a state's condition": (
        spec(state="when: loss is not None"),
        "run-time-condition",
        "whether `exp_avg` exists cannot depend on `loss`, which is set for one step",
    ),
    "in a rule": (
        spec(methods="refusals:\n  - {when: loss > 1, message: no}"),
        "undefined-name",
        "`loss` is not a setting",
    ),
    "a case apart": (
        spec(STEP.replace("exp_avg = grad", "exp_avg = grad * Loss")).replace("{default: 0.1}", "{}\n  Loss: {}"),
        "reserved-name",
        "`loss` and `Loss` differ in case only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    text, error, message = REFUSED[name]
    said = refusal(tmp_path, text)
    assert said.startswith(f"error[{error}]: ")
    assert message in said


OF_PARAMETERS = """\
name: probe
ndim: 2
inputs:
  logits: {shape: row, doc: A number of each row.}
blocks:
  step: |
    STEP
METHODS"""


def of_parameters(step: str, methods: str = "", logits: str = "shape: row,") -> str:
    text = OF_PARAMETERS.replace("STEP", step).replace("METHODS", methods)
    return text.replace("shape: row,", logits)


def test_an_input_of_parameters_is_a_state_that_a_step_takes(tmp_path: Path) -> None:
    planned = compiled(tmp_path, of_parameters("param = param - logits * grad"))
    program = planned.plans["step"].program
    assert program.inputs["logits"].kind is Kind.ROW
    assert program.outputs["logits"] == Const(0.0)
    assert not planned.rule.spec.inputs


REFUSED_OF_PARAMETERS = {
    "assigned": (
        of_parameters("logits = 1\n    param = param - grad"),
        "not-assignable",
        "`logits` is given from outside and cannot be assigned here",
    ),
    "of another kind": (
        of_parameters("param = param - norm(grad, over=matrix) * logits", logits="shape: param,"),
        "",
        "row",
    ),
    "a default without a shape": (
        of_parameters("param = param - grad", logits="default: 3,"),
        "default",
        "`logits` is one number for all, which is not there where it is not set",
    ),
    "a state too": (
        of_parameters("param = param - logits * grad", methods="states: {logits: {shape: row}}"),
        "duplicate-name",
        "`logits` is a state and an input",
    ),
    "a default that is not finite": (
        of_parameters("param = param - logits * grad", logits="shape: row, default: 1e999,"),
        "",
        "",
    ),
}


@pytest.mark.parametrize("name", REFUSED_OF_PARAMETERS)
def test_refused_of_parameters(name: str, tmp_path: Path) -> None:
    text, error, message = REFUSED_OF_PARAMETERS[name]
    said = refusal(tmp_path, text)
    assert error in said
    assert message in said


def test_an_input_of_parameters_is_a_rule_s_own(tmp_path: Path) -> None:
    shared = (ROOT / "specs" / "shared.yaml").read_text(encoding="utf-8")
    (tmp_path / "shared.yaml").write_text(shared.replace("inputs:\n", "inputs:\n  seen: {shape: row}\n"))
    path = write_spec(tmp_path, "name: plain\nblocks:\n  step: param = param - grad\n")
    with pytest.raises(SpecError, match="`seen` is an input of parameters, which a rule or a stage declares"):
        check_specs([path], Reporter())


def test_a_shared_input_that_no_stage_reads_is_refused(tmp_path: Path) -> None:
    """Otherwise the classes would take `grad_scale` from a scaler, and not unscale."""
    shared = (ROOT / "specs" / "shared.yaml").read_text(encoding="utf-8")
    unscaling = "    if grad_scale is not None:\n        grad = grad / grad_scale\n"
    assert unscaling in shared
    (tmp_path / "shared.yaml").write_text(shared.replace(unscaling, ""), encoding="utf-8")
    path = write_spec(tmp_path, "name: plain\nblocks:\n  step: param = param - grad\n")
    with pytest.raises(SpecError, match="no rule reads `grad_scale`"):
        check_specs([path], Reporter())

"""Small specs for tests of the compiler: written to a folder, compiled or refused."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from optgen.compiler import Package, PlannedRule, check_specs, compile_specs
from optgen.diagnostics import Reporter, SpecError, format_diagnostics
from optgen.explanation import ClassInfo
from optgen.schedule.plan import Plan

ROOT = Path(__file__).parents[2]
OTHERS = ("classes", "functions", "shared", "vocabulary")
STOCK = sorted(p for p in (ROOT / "specs").glob("*.yaml") if p.stem not in OTHERS)
RULES = sorted({p.stem for p in (*STOCK, *(ROOT / "tests" / "specs").glob("*.yaml"))})
TESTED = sorted((ROOT / "tests" / "specs").glob("*.yaml"))
PROBE = """\
name: probe
hyperparameters:
  lr: {default: 1e-3, range: "[0, inf)"}
  beta1: {default: null, range: "[0, 1)"}
options:
  amsgrad: {default: false}
  mode: {default: a, choices: [a, b, c]}
  pair: {default: left, choices: [left, right]}
states:
  exp_avg: {}
  kept: {when: amsgrad}
  size: {shape: tensor}
  past: {shape: tensor, window: 4}
  rows_of: {shape: row, when: ndim >= 2}
  total: {shape: group}
"""


def probe(body: str) -> str:
    """A spec whose step is `body`."""
    return f"{PROBE}blocks:\n  step: |\n{textwrap.indent(body, '    ')}\n"


def write_spec(folder: Path, text: str, file: str = "") -> Path:
    """A spec's text as a file, by default of the rule's own name."""
    name = text.split("name: ", 1)[1].split("\n", 1)[0]
    path = folder / (file or f"{name}.yaml")
    path.write_text(text, encoding="utf-8")
    return path


def compiled(folder: Path, text: str) -> PlannedRule:
    """A spec, planned."""
    return check_specs([write_spec(folder, text)], Reporter())[0]


def refusal(folder: Path, text: str, file: str = "") -> str:
    """Messages about a spec, with paths relative to its folder; "accepted" for one without mistakes."""
    reporter = Reporter()
    try:
        check_specs([write_spec(folder, text, file)], reporter)
        said = format_diagnostics(reporter.diagnostics)
    except SpecError as error:
        said = str(error)
    return said.replace(f"{folder}/", "") or "accepted"


@cache
def stock_rules() -> Mapping[str, PlannedRule]:
    """All rules: those of specs/ and those of tests/specs that it lacks."""
    return {info.rule: PlannedRule(info.whole_rule, info.plans, ()) for info in stock_classes().values()}


@cache
def stock_package() -> Package:
    """The package of specs/, once a process: it takes seconds."""
    return compile_specs([ROOT / "specs"], "optgen_optim")


@cache
def own_package() -> Package:
    """One of the rules of tests/specs, once a process."""
    return compile_specs(TESTED, "rules")


@cache
def stock_classes() -> Mapping[str, ClassInfo]:
    """All classes: those of specs/ and those of tests/specs that it lacks."""
    return {info.name: info for package in (own_package(), stock_package()) for info in package.classes}


def step_plan(planned: PlannedRule) -> Plan:
    """The plan of a rule's step."""
    return planned.plans["step"]

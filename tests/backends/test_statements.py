"""Statements mean what the bindings mean from which they are made, for all rules and for what is easily got wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from support.compiling import RULES, stock_rules
from support.interpreter import evaluate, run
from support.plan_settings import settings

from optgen.backends.assignments import Assignments, Part, StageCode
from optgen.backends.statements import Assign, Block, Declare, Fill, If, Invoke, Take
from optgen.compiler import PlannedRule, check_specs
from optgen.diagnostics import Reporter
from optgen.ir.kinds import boolean_names
from optgen.ir.liveness import needed, written
from optgen.ir.nodes import Kind, Program, refs
from optgen.ir.rule import WholeRule
from optgen.schedule.plan import Plan


def execute(
    block: Block,
    values: dict[str, Any],
    guards: Mapping[str, bool],
    declared: set[str],
    stages: Mapping[str, StageCode] = MappingProxyType({}),
) -> None:
    """Run statements as a target does: a variable is declared before it is assigned, and once in a scope."""
    scope = set(declared)
    for statement in block:
        match statement:
            case Assign(variable=variable, value=value, declares=declares):
                assert declares != (variable in scope), variable
                scope.add(variable)
                values[variable] = evaluate(value, values, guards)
            case Declare(variable=variable):
                assert variable not in scope
                scope.add(variable)
                values[variable] = 0.0
            case If(formula=formula, then=then, other=other):
                inner = dict(values)
                execute(then if formula.holds(guards) else other, inner, guards, scope, stages)
                values.update({name: value for name, value in inner.items() if name in scope or name in values})
            case Invoke(stage=stage, arguments=arguments, results=results):
                assert scope.issuperset(results.values())
                inside = {name: values[variable] for name, variable in arguments.items()}
                execute(stages[stage].code.body, inside, guards, {*arguments, *results})
                values.update({results[name]: inside[name] for name in results if name in inside})
            case Take() | Fill():
                raise AssertionError


def part_of(program: Program, calls_stages: bool) -> tuple[Part, list[tuple[str, Any]]]:
    """A whole program as one part, inputs in variables of their own names."""
    roots = list(written(program))
    live = needed(program.lets, roots)
    booleans = boolean_names(program)
    lets = [let for let in program.lets if let.name in live]
    given = {**{name: name for name in program.inputs}, **{f"old.{name}": name for name in program.inputs}}
    part = Part(
        lets,
        live,
        outside=lambda name: name,
        sort=lambda let: (let.kind, let.name in booleans),
        given=given,
        calls_stages=calls_stages,
    )
    return part, roots


@dataclass(frozen=True)
class Made:
    """The statements of a program, which are the same under all settings."""

    program: Program
    given: frozenset[str]
    code: Assignments


def made(program: Program, calls_stages: bool = False) -> Made:
    part, asked = part_of(program, calls_stages)
    return Made(program, frozenset(part.given), part.code(asked=asked))


def check(it: Made, guards: Mapping[str, bool], random: np.random.Generator) -> None:
    program, code = it.program, it.code
    shapes = {Kind.ELEMENT: (3, 4), Kind.ROW: (3, 1), Kind.COL: (1, 4), Kind.MATRIX: (1, 1)}
    values = {name: random.normal(size=shapes.get(item.kind, ())) for name, item in program.inputs.items()}
    found = {**values, **{f"old.{name}": value for name, value in values.items()}}
    with np.errstate(all="ignore"):
        expected = run(program, values, guards)
        execute(code.body, found, guards, set(it.given), code.stages)
        read = {name: evaluate(value, found, guards) for name, value in code.values.items() if _is_set(value, found)}
        for name, value in expected.items():
            np.testing.assert_array_equal(evaluate(program.outputs[name], read, guards), value, err_msg=name)


def _is_set(value: Any, found: Mapping[str, Any]) -> bool:
    return all(name in found for name in refs(value))


@pytest.mark.parametrize("calls_stages", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_statements_of_every_rule(name: str, calls_stages: bool) -> None:
    planned = stock_rules()[name]
    random = np.random.default_rng(7)
    blocks = {block: made(plan.program, calls_stages) for block, plan in planned.plans.items()}
    for guards in settings(planned.rule, most=4):
        for block, it in blocks.items():
            check(it, guards, random)
            has_update = calls_stages and block == "step" and planned.rule.has_update
            assert ("update" in it.code.stages) == has_update


HEAD = """
name: hard
title: Hard
hyperparameters: {lr: {default: 0.1}, k: {default: 0.5}}
options: {a: {default: false, doc: A.}, b: {default: false, doc: B.}}
states: {w: {shape: matrix, when: ndim >= 2}, x: {doc: X.}, y: {doc: Y.}}
variants: {Hard: {bits: 32}}
"""
BLOCKS = {
    "states that exchange": """
        if a:
            z = x
            x = y
            y = z
        update = grad
    """,
    "an old value after its variable was assigned": """
        z = x
        x = x + grad
        y = y + z
        update = x
    """,
    "an old value after one side has assigned it": """
        z = grad
        if a:
            z = z * 2
            if b:
                x = z
        y = z
        update = z
    """,
    "a value of one side that is read on the same side": """
        if a:
            z = grad * 2
        if b:
            x = x + 1
        if a:
            y = z
        update = grad
    """,
    "both sides": """
        if a:
            z = grad
        else:
            z = x
            x = grad
        if b:
            z = z * k
        update = z
    """,
    "choices of one `if` that are needed under other settings": """
        w = 2
        if ndim >= 2 and a:
            x = k
            w = 0.5
        update = grad
    """,
    "grad of the stage": """
        grad = grad + k * param
        if a:
            grad = grad * 2
        update = grad
    """,
    "a variable of two kinds": """
        z = norm(grad)
        x = x + z
        z = grad * z
        update = z
    """,
}


def compiled(name: str, folder: Path) -> tuple[WholeRule, Plan]:
    lines = indent(dedent(BLOCKS[name]).strip(), "    ")
    path = folder / "hard.yaml"
    path.write_text(f"{HEAD}blocks:\n  step: |\n{lines}\n  apply: |\n    param = param - lr * update\n")
    (planned,) = check_specs([path], Reporter())
    assert isinstance(planned, PlannedRule)
    return planned.rule, planned.plans["step"]


@pytest.mark.parametrize("name", BLOCKS)
def test_statements_of_hard_blocks(name: str, tmp_path: Path) -> None:
    rule, plan = compiled(name, tmp_path)
    random = np.random.default_rng(8)
    it = made(plan.program)
    for guards in settings(rule, most=200):
        check(it, guards, random)

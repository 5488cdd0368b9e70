"""Statements mean what the bindings mean from which they are made, for all rules and for what is easily got wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy as np
import pytest
from support.compiling import FAMILIES, stock_units
from support.interpreter import evaluate, run
from support.plan_settings import settings

from optgen.backends.assignments import Part
from optgen.backends.statements import Assign, Block, Declare, Fill, If, Take
from optgen.compiler import Unit, check_specs
from optgen.diagnostics import Reporter
from optgen.ir.family import Family
from optgen.ir.kinds import boolean_names
from optgen.ir.liveness import demands, needed
from optgen.ir.nodes import Kind, Program, refs
from optgen.schedule.plan import Plan


def execute(block: Block, values: dict[str, Any], guards: Mapping[str, bool], declared: set[str]) -> None:
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
                execute(then if formula.holds(guards) else other, inner, guards, scope)
                values.update({name: value for name, value in inner.items() if name in scope or name in values})
            case Take() | Fill():
                raise AssertionError


def part_of(program: Program) -> tuple[Part, list[tuple[str, Any]]]:
    """A whole program as one part, inputs in variables of their own names."""
    roots = [root for n, value in program.outputs.items() for root in demands(value, program.inputs[n].exists)]
    live = needed(program.lets, roots)
    booleans = boolean_names(program)
    lets = [let for let in program.lets if let.name in live]
    given = {**{name: name for name in program.inputs}, **{f"old.{name}": name for name in program.inputs}}
    part = Part(lets, live, outside=lambda name: name, sort=lambda let: (let.kind, let.name in booleans), given=given)
    return part, roots


def check(program: Program, guards: Mapping[str, bool], random: np.random.Generator) -> None:
    shapes = {Kind.ELEMENT: (3, 4), Kind.ROW: (3, 1), Kind.COL: (1, 4), Kind.MATRIX: (1, 1)}
    values = {name: random.normal(size=shapes.get(item.kind, ())) for name, item in program.inputs.items()}
    part, asked = part_of(program)
    code = part.code(asked=asked)
    found = {**values, **{f"old.{name}": value for name, value in values.items()}}
    with np.errstate(all="ignore"):
        expected = run(program, values, guards)
        execute(code.body, found, guards, set(part.given))
        read = {name: evaluate(value, found, guards) for name, value in code.values.items() if _is_set(value, found)}
        for name, value in expected.items():
            np.testing.assert_array_equal(evaluate(program.outputs[name], read, guards), value, err_msg=name)


def _is_set(value: Any, found: Mapping[str, Any]) -> bool:
    return all(name in found for name in refs(value))


@pytest.mark.parametrize("name", FAMILIES)
def test_statements_of_every_rule(name: str) -> None:
    unit = stock_units()[name]
    random = np.random.default_rng(7)
    for guards in settings(unit.family, most=4):
        for plan in unit.plans.values():
            check(plan.program, guards, random)


HEAD = """
name: hard
title: Hard
hyperparameters: {lr: {default: 0.1}, k: {default: 0.5}}
options: {a: {default: false, doc: A.}, b: {default: false, doc: B.}}
states: {x: {doc: X.}, y: {doc: Y.}}
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


def compiled(name: str, folder: Path) -> tuple[Family, Plan]:
    lines = indent(dedent(BLOCKS[name]).strip(), "    ")
    path = folder / "hard.yaml"
    path.write_text(f"{HEAD}blocks:\n  step: |\n{lines}\n  apply: |\n    param = param - lr * update\n")
    (unit,) = check_specs([path], Reporter())
    assert isinstance(unit, Unit)
    return unit.family, unit.plans["step"]


@pytest.mark.parametrize("name", BLOCKS)
def test_statements_of_hard_blocks(name: str, tmp_path: Path) -> None:
    family, plan = compiled(name, tmp_path)
    random = np.random.default_rng(8)
    for guards in settings(family, most=200):
        check(plan.program, guards, random)

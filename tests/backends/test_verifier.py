"""Verifier of statements: it accepts those of all rules, and finds each violation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from numerics.programs import rule_of
from support.compiling import ROOT
from support.statement_invariants import verify_statements
from support.verified import verified_statements

from optgen.backends.assignments import Assignments
from optgen.backends.statements import Assign, Block, Declare, If, Invoke, Statement
from optgen.compiler import compile_specs
from optgen.diagnostics import SpecError
from optgen.ir.formula import TRUE, atom
from optgen.ir.nodes import Call, Const, Ref
from optgen.ir.verifier import VerificationError


def test_holds_of_all_rules_and_of_classes_alone() -> None:
    with verified_statements() as made:
        package = compile_specs([ROOT / "specs"], "checked")
        count = len(made)
        for info in package.classes:
            if info.name in ("AdamW8bit", "LAMB", "Adafactor", "Prodigy", "ScheduleFreeAdamW"):
                for target in ("cpu", "cuda", "torch"):
                    info.code(target)
    assert count > 300
    assert len(made) > count + 30
    assert any(code.stages for code in made)
    assert any(stage.code.loose for code in made for stage in code.stages.values())


def test_holds_of_random_rules(tmp_path: Path) -> None:
    held = 0
    for seed in range(6):
        rule = rule_of(seed)
        path = tmp_path / f"{rule.name}.yaml"
        path.write_text(rule.text)
        try:
            with verified_statements() as made:
                compile_specs([path], "checked")
        except SpecError as error:
            assert "error[too-many-cases]" in str(error)
            continue
        held += len(made) > 4
    assert held > 2


X, Y, FLAG = Ref("x"), Ref("y"), atom("flag")
ONE = Const(1.0)


def let(variable: str, value: Const | Ref | Call, *, declares: bool = True, constant: bool = False) -> Assign:
    return Assign(variable, value, declares, constant)


def put(variable: str, value: Const | Ref | Call) -> Assign:
    return let(variable, value, declares=False)


def function(*body: Statement, **fields: frozenset[str]) -> Assignments:
    """A function that is given `x`, leaves it, and reads `s.lr`."""
    whole = Assignments(body, {}, {}, {}, frozenset(), {}, frozenset("x"), frozenset("x"), frozenset(("s.lr",)), {})
    return replace(whole, **fields)  # type: ignore[arg-type]


def returned(*body: Statement) -> Assignments:
    """A function whose `y` is read after its last statement."""
    return replace(function(*body), values={"y": Y}, asked={"y": TRUE})


WHOLE: dict[str, Assignments] = {
    "a variable": function(let("y", X, constant=True), put("x", Call("*", (Y, Ref("s.lr"))))),
    "both sides assign": returned(
        Declare("y", always_assigned=True), If(FLAG, (put("y", X),), (put("y", ONE),)), put("x", Y)
    ),
    "one side assigns": function(let("y", ONE), If(FLAG, (put("y", X),), ()), put("x", Y)),
    "read where it is assigned": function(
        Declare("y", always_assigned=False), If(FLAG, (put("y", X),), ()), If(FLAG, (put("x", Y),), ())
    ),
    "each side has its own": function(If(FLAG, (let("y", X), put("x", Y)), (let("y", ONE), put("x", Y)))),
    "nothing follows from it": function(
        Declare("y", always_assigned=False), If(FLAG, (put("y", X),), ()), put("x", Y), loose=frozenset("y")
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_accepts(name: str) -> None:
    verify_statements(WHOLE[name])


AND = Call("and", (X, Y))
BROKEN: dict[str, tuple[Assignments, str]] = {
    "declared twice": (function(let("y", X), let("y", Y), put("x", Y)), "y is declared twice"),
    "declared within": (
        function(let("y", X), If(FLAG, (let("y", Y), put("x", Y)), ()), put("x", Y)),
        "y is declared twice",
    ),
    "declared before it is declared": (
        function(Declare("y", always_assigned=False), let("y", X), put("x", Y)),
        "y is declared twice",
    ),
    "given and declared": (function(let("x", ONE)), "x is declared twice"),
    "not declared": (function(put("y", X), put("x", Y)), "y is assigned before it is declared"),
    "declared on the other side": (
        function(If(FLAG, (let("y", X), put("x", Y)), (put("y", X), put("x", Y)))),
        "y is assigned before it is declared",
    ),
    "a constant that changes": (
        function(let("y", X, constant=True), If(FLAG, (put("y", ONE),), ()), put("x", Y)),
        "y is a constant and assigned again",
    ),
    "a constant elsewhere": (
        function(Declare("y", always_assigned=True), replace(put("y", X), constant=True), put("x", Y)),
        "y is a constant that is not declared there",
    ),
    "read too early": (function(put("x", Y), let("y", X)), "y is read where it may not be assigned"),
    "read outside of its side": (
        returned(Declare("y", always_assigned=False), If(FLAG, (put("y", X),), ())),
        "y is read where it may not be assigned",
    ),
    "read on the other side": (
        function(
            Declare("y", always_assigned=False), If(FLAG, (put("y", X),), (put("x", Y),)), If(FLAG, (put("x", Y),), ())
        ),
        "y is read where it may not be assigned",
    ),
    "unknown": (function(put("x", Ref("s.eps"))), "s.eps is read where it may not be assigned"),
    "no value to begin with": (
        function(Declare("y", always_assigned=True), If(FLAG, (put("y", X),), ()), put("x", Y), loose=frozenset("y")),
        "y is read where it may not be assigned",
    ),
    "two sorts": (
        function(let("y", ONE), If(FLAG, (put("y", Const(True)),), ()), put("x", Y)),
        "y is a number and cannot take a condition",
    ),
    "a number as a condition": (
        function(let("y", ONE), put("x", Call("where", (Y, X, ONE)))),
        "`where` takes a condition, not a number",
    ),
    "a condition as a number": (
        function(let("y", Call(">", (X, ONE))), put("x", Call("+", (X, Y)))),
        "`\\+` takes a number, not a condition",
    ),
    "not read": (function(let("y", X), put("x", ONE)), "y is assigned, and not read after it"),
    "assigned twice": (function(let("y", X), put("y", ONE), put("x", Y)), "y is assigned, and not read after it"),
    "assigned on both sides again": (
        function(let("y", X), If(FLAG, (put("y", X),), (put("y", ONE),)), put("x", Y)),
        "y is assigned, and not read after it",
    ),
    "to itself": (function(put("x", X)), "x is assigned to itself"),
    "no statements": (function(If(FLAG, (), ())), "an `if` has no statements"),
    "left without a value": (
        replace(function(put("x", ONE)), left=frozenset(("x", "s.rate"))),
        "s.rate is never assigned",
    ),
    "declared alone": (function(Declare("y", always_assigned=False), put("x", ONE)), "y is declared, and not used"),
    "no stage": (function(Invoke("grad", {"x": "x"}, {"x": "x"})), "grad is no stage"),
    "a stage for nothing": (
        function(Declare("y", always_assigned=True), Invoke("grad", {}, {"y": "y"})),
        "nothing that the stage grad leaves is read",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_finds_what_is_broken(name: str) -> None:
    code, message = BROKEN[name]
    with pytest.raises(VerificationError, match=message):
        verify_statements(code)


def without(block: Block, at: int) -> Block:
    return (*block[:at], *block[at + 1 :])


def exchanged(block: Block, at: int) -> Block:
    return (*block[:at], *reversed(block[at : at + 2]), *block[at + 2 :])


@pytest.mark.parametrize(("change", "most_missed"), [(without, 20), (exchanged, 35)])
def test_a_statement_that_is_missing_or_comes_too_early(
    change: Callable[[Block, int], Block], most_missed: int
) -> None:
    """Most are found; the rest only compute something else, as a new value that is left as it was."""
    with verified_statements() as made:
        compile_specs([ROOT / "specs" / "lamb.yaml"], "checked")
        compile_specs([ROOT / "specs" / "adafactor.yaml"], "checked")
    places = [(code, at) for code in made for at, s in enumerate(code.body[:-1]) if isinstance(s, Assign | Declare)]
    missed = 0
    for code, at in places:
        try:
            verify_statements(replace(code, body=change(code.body, at)))
        except VerificationError:
            continue
        missed += 1
    assert len(places) > 60
    assert missed <= most_missed

"""Formulas against truth tables."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optgen.ir.formula import FALSE, TRUE, Formula, FormulaTooLargeError, atom
from optgen.ir.guards import Guard, GuardTable, feasible

NAMES = "abcd"
TABLE = [dict(zip(NAMES, row, strict=True)) for row in itertools.product((False, True), repeat=len(NAMES))]
formulas = st.recursive(
    st.sampled_from([TRUE, FALSE, *map(atom, NAMES)]),
    lambda inner: st.one_of(
        inner.map(lambda x: ~x),
        st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] | p[1]),
    ),
    max_leaves=8,
)


def truth(formula: Formula) -> list[bool]:
    return [formula.holds(row) for row in TABLE]


@given(formulas, formulas)
@settings(max_examples=300, deadline=None)
def test_operations_are_those_of_logic(a: Formula, b: Formula) -> None:
    assert truth(a & b) == [x and y for x, y in zip(truth(a), truth(b), strict=True)]
    assert truth(a | b) == [x or y for x, y in zip(truth(a), truth(b), strict=True)]
    assert truth(~a) == [not x for x in truth(a)]
    assert a.implies(b) == all(y or not x for x, y in zip(truth(a), truth(b), strict=True))


@given(formulas, formulas)
@settings(max_examples=300, deadline=None)
def test_given_agrees_where_it_is_asked_and_is_no_longer(a: Formula, known: Formula) -> None:
    short = a.given(known)
    assert [x for x, k in zip(truth(short), truth(known), strict=True) if k] == [
        x for x, k in zip(truth(a), truth(known), strict=True) if k
    ]
    assert sum(map(len, short.terms)) <= sum(map(len, a.terms))


@given(formulas)
@settings(max_examples=300, deadline=None)
def test_constants_are_recognised(a: Formula) -> None:
    assert a.is_false == (not any(truth(a)))
    assert a.given(TRUE).is_true == all(truth(a))


@given(formulas)
@settings(max_examples=300, deadline=None)
def test_text_means_the_formula(a: Formula) -> None:
    if a.is_true or a.is_false:
        return
    text = a.text(lambda name, value: name if value else f"not {name}", " and ", " or ")
    assert [eval(text, {}, dict(row)) for row in TABLE] == truth(a)


def test_text_takes_out_what_terms_share() -> None:
    a, b, c = map(atom, "abc")
    text = ((a & b) | (b & ~c)).text(lambda name, value: name if value else f"!{name}", " && ", " || ")
    assert text == "b && (a || !c)"


def test_a_formula_that_grows_without_bound_is_refused() -> None:
    def grown() -> Formula:
        result = TRUE
        for i in range(40):
            result = result & (atom(f"a{i}") | atom(f"b{i}"))
        return result

    with pytest.raises(FormulaTooLargeError):
        grown()


def test_a_guard_and_its_complement_are_one() -> None:
    table = GuardTable()
    above = table.formula("hyper", "x", ">", 0)
    assert table.formula("hyper", "x", "<=", 0) == ~above
    different = table.formula("hyper", "x", "!=", 0)
    assert table.formula("hyper", "x", "==", 0) == ~different
    assert list(table.guards) == ["x_above_0", "x_not_0"]


def test_names_of_guards_are_identifiers() -> None:
    table = GuardTable()
    for op, value in itertools.product(("<", "<=", ">", ">=", "!="), (-1.5, 0, 1e-8, 1e30)):
        table.formula("hyper", "x", op, value)
    assert all(name.isidentifier() for name in table.guards)


def guards(*made: Guard) -> dict[str, Guard]:
    return {guard.name: guard for guard in made}


def test_two_choices_of_one_enumeration_are_not_feasible() -> None:
    known = guards(Guard("is_a", "option", "mode", "==", "a"), Guard("is_b", "option", "mode", "==", "b"))
    both, neither = atom("is_a") & atom("is_b"), ~atom("is_a") & ~atom("is_b")
    assert not feasible(both, known, {"mode": ("a", "b", "c")})
    assert feasible(neither, known, {"mode": ("a", "b", "c")})
    assert not feasible(neither, known, {"mode": ("a", "b")})
    assert feasible(both | atom("is_a"), known, {"mode": ("a", "b")})


def test_what_is_not_given_is_not_above_anything() -> None:
    known = guards(
        Guard("x_given", "hyper", "x", "given"),
        Guard("x_above_0", "hyper", "x", ">", 0),
        Guard("x_not_0", "hyper", "x", "!=", 0),
    )
    assert not feasible(~atom("x_given") & atom("x_above_0"), known, {})
    assert not feasible(~atom("x_given") & ~atom("x_not_0"), known, {})
    assert feasible(~atom("x_given") & ~atom("x_above_0") & atom("x_not_0"), known, {})

"""Formulas against truth tables."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optgen.backends.code import flat, formula_code
from optgen.ir.formula import FALSE, TRUE, Formula, FormulaTooLargeError, atom
from optgen.ir.guards import Guard, GuardTable, feasible

NAMES = "abcd"
a, b, c, d = map(atom, NAMES)
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


def literals(formula: Formula) -> int:
    """Number of literals that a formula is written with."""
    return 0 if formula.is_true or formula.is_false else len(re.findall(rf"\b[{NAMES}]\b", text(formula)))


def text(formula: Formula) -> str:
    return flat(formula_code(formula, lambda name, value: name if value else f"(not {name})", "and", "or").code)


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
    assert literals(short) <= literals(a)


@given(formulas, formulas)
@settings(max_examples=300, deadline=None)
def test_formulas_that_mean_the_same_are_one(a: Formula, b: Formula) -> None:
    assert (a == b) == (a is b) == (truth(a) == truth(b))


@given(formulas)
@settings(max_examples=300, deadline=None)
def test_a_formula_depends_on_the_names_that_change_it(a: Formula) -> None:
    changing = {n for row in TABLE for n in NAMES if a.holds(row) != a.holds(row | {n: not row[n]})}
    assert a.names == changing


@given(formulas)
@settings(max_examples=300, deadline=None)
def test_of_the_terms_none_can_be_left_out_nor_be_shorter(a: Formula) -> None:
    terms = [frozenset(term) for term in a.ordered()]

    def holds(some: Iterable[frozenset[tuple[str, bool]]]) -> list[bool]:
        return [any(all(row[name] is value for name, value in term) for term in some) for row in TABLE]

    assert holds(terms) == truth(a)
    for term in terms:
        others = [other for other in terms if other != term]
        assert holds(others) != truth(a)
        assert all(holds([*others, term - {literal}]) != truth(a) for literal in term)


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
    assert [eval(text(a), {}, dict(row)) for row in TABLE] == truth(a)


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ((a & b) | (b & ~c), "b and (a or (not c))"),
        ((a & b) | (a & c) | d, "d or (a and (b or c))"),
        ((a | b) & (c | d), "(a or b) and (c or d)"),
        (~(a & b), "(not a) or (not b)"),
        ((a & b) | (~a & c) | (b & c), "((not a) and c) or (a and b)"),
        (((a & ~b) | (a & c)).given(a | b), "a and ((not b) or c)"),
    ],
)
def test_text_is_short(formula: Formula, expected: str) -> None:
    assert text(formula) == expected


def test_a_formula_is_the_same_when_it_is_copied() -> None:
    formula = (a & b) | (~c & d)
    assert copy.deepcopy((formula, TRUE)) == pickle.loads(pickle.dumps((formula, TRUE))) == (formula, TRUE)


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

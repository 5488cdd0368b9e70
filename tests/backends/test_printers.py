"""Expressions as C++ and Python: precedence, numbers, names."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optgen.backends.base import UnloweredNodeError
from optgen.backends.c_printer import CPrinter, c_condition, c_name
from optgen.backends.code import Brackets, Code, Guarded, Labelled, Lambda, Operand, both, call, choice, flat
from optgen.backends.layout import c_code, c_lines, c_pragma, python_code
from optgen.backends.py_printer import PyPrinter, py_condition, py_number
from optgen.backends.quoting import py_string
from optgen.ir.formula import FALSE, TRUE, atom
from optgen.ir.nodes import Call, Const, Expr, Kind, Reduce, Ref, Select
from optgen.runtime import torch_math

KINDS = dict.fromkeys("abd", Kind.ELEMENT)
A, B, D = map(Ref, "abd")
C_TEXT = CPrinter(single=True, names={})
PY_TEXT = PyPrinter(KINDS)


@pytest.mark.parametrize(
    ("expr", "c", "python"),
    [
        (Call("+", (Call("*", (A, B)), D)), "a * b + d", "a * b + d"),
        (Call("*", (Call("+", (A, B)), D)), "(a + b) * d", "(a + b) * d"),
        (Call("-", (A, Call("-", (B, D)))), "a - (b - d)", "a - (b - d)"),
        (Call("/", (A, Call("*", (B, D)))), "a / (b * d)", "a / (b * d)"),
        (Call("neg", (Call("neg", (A,)),)), "-(-a)", "--a"),
        (Call("neg", (Call("+", (A, B)),)), "-(a + b)", "-(a + b)"),
        (Call("-", (A, Const(-2.0))), "a - (-2.0f)", "a - (-2.0)"),
        (Call("**", (A, Const(2.0))), "optgen::square(a)", "m.power(a, 2.0)"),
        (Call("**", (A, B)), "optgen::power(a, b)", "m.power(a, b)"),
        (Call("min", (A, Const(1.0))), "optgen::minimum(a, 1.0f)", "m.minimum(a, 1.0)"),
        (
            Call("where", (Call(">", (A, B)), A, Call("where", (Call("<", (A, D)), B, D)))),
            "a > b ? a : a < d ? b : d",
            "m.where(a > b, a, m.where(a < d, b, d))",
        ),
        (Call("+", (Call("where", (Call(">", (A, B)), A, B)), D)), "(a > b ? a : b) + d", "m.where(a > b, a, b) + d"),
        (Call("and", (Call("or", (A, B)), D)), "(a || b) && d", "m.both(m.either(a, b), d)"),
        (Call("not", (Call("and", (A, B)),)), "!(a && b)", "m.negate(m.both(a, b))"),
        (Call("+", (Select(atom("flag"), A, B), D)), "(flag ? a : b) + d", "(a if f.flag else b) + d"),
        (Const(True), "true", "True"),
    ],
)
def test_precedence(expr: Expr, c: str, python: str) -> None:
    assert (C_TEXT.print(expr), PY_TEXT.print(expr)) == (c, python)


def test_a_reduction_that_was_not_placed_is_named() -> None:
    with pytest.raises(UnloweredNodeError, match="a reduction over ROW must be placed by the planner"):
        C_TEXT.print(Call("+", (A, Reduce("sum", Kind.ROW, B))))


@given(st.floats())
@example(1e-8)
@example(0.1 + 0.2)
@example(-0.0)
@example(math.inf)
@example(-math.inf)
@example(math.nan)
@example(5e-324)
@settings(max_examples=300, deadline=None)
def test_numbers_read_back_as_themselves(value: float) -> None:
    back = eval(py_number(value), {"m": torch_math})
    assert repr(back) == repr(value)
    text = CPrinter(single=False, names={}).print(Const(value))
    known: dict[str, Any] = {"OPTGEN_NAN": math.nan, "OPTGEN_INFINITY": math.inf}
    assert repr(eval(text, known)) == repr(value) or math.isnan(value)


def test_numbers_of_elements_are_single() -> None:
    assert C_TEXT.print(Const(1e-8)) == "1e-08f"
    assert C_TEXT.print(Const(math.nan)) == "OPTGEN_NAN"
    assert C_TEXT.print(Const(-math.inf)) == "-OPTGEN_INFINITY"


@pytest.mark.parametrize("name", ["float", "int", "double", "template", "value", "i", "t", "begin", "Tile", "x_at"])
def test_names_that_the_kernel_has_for_itself(name: str) -> None:
    assert c_name(name) == f"{name}_value"


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_strings_read_back_as_themselves(text: str) -> None:
    assert eval(py_string(text)) == text


def test_strings_are_quoted_as_formatters_do() -> None:
    assert [py_string(text) for text in ("a", "it's", 'say "a"', "\"'")] == ['"a"', '"it\'s"', "'say \"a\"'", '"\\"\'"']


def test_formulas() -> None:
    a, b, w = map(atom, "abw")
    assert (c_condition(TRUE), c_condition(FALSE)) == (Operand("true"), Operand("false"))
    assert (py_condition(TRUE), py_condition(FALSE)) == ("True", "False")
    assert flat(c_condition((a & ~b) | w).code) == "w || (a && !b)"
    assert flat(py_condition((a & ~b) | w)) == "f.w or (f.a and not f.b)"


EXPRESSIONS = st.recursive(
    st.sampled_from([Ref("a"), Ref("beta_with_a_long_name"), Ref("second_moment_estimate"), Const(1e-8), Const(-2.0)]),
    lambda inner: st.one_of(
        st.builds(lambda op, a, b: Call(op, (a, b)), st.sampled_from(["+", "-", "*", "/", "**", "min"]), inner, inner),
        st.builds(lambda op, a: Call(op, (a,)), st.sampled_from(["neg", "sqrt"]), inner),
        st.builds(lambda a, b, c: Call("where", (Call(">", (a, b)), b, c)), inner, inner, inner),
        st.builds(lambda a, b: Select((atom("flag_one") & ~atom("flag_two")) | atom("flag_three"), a, b), inner, inner),
    ),
    max_leaves=30,
)
NAMED = PyPrinter(dict.fromkeys(["a", "beta_with_a_long_name", "second_moment_estimate"], Kind.ELEMENT))


MEAN = Call("+", (Call("*", (A, Ref("second_moment"))), Call("*", (Call("max", (B, D)), Call("-", (Const(1.0), A))))))
CHOICE = Call("where", (Call("and", (Call(">", (Ref("second_moment"), A)), Call(">", (B, D)))), Call("neg", (A,)), B))


@pytest.mark.parametrize(
    ("expr", "indent", "lines"),
    [
        (MEAN, 70, ["d = a * second_moment", "    + optgen::maximum(b, d) * (1.0f - a);"]),
        (MEAN, 95, ["d = a * second_moment", "    + optgen::maximum(b,", "        d) * (1.0f - a);"]),
        (CHOICE, 84, ["d = second_moment > a && b > d", "    ? -a : b;"]),
        (CHOICE, 92, ["d = second_moment > a", "        && b > d", "    ? -a : b;"]),
    ],
)
def test_c_breaks_before_operators(expr: Expr, indent: int, lines: list[str]) -> None:
    assert C_TEXT.lines(expr, "d = ", ";", indent) == lines


def test_c_breaks_after_a_long_name() -> None:
    lines = C_TEXT.lines(Call("sqrt", (Call("+", (A, B)),)), "const float root_of_a_second_moment = ", ";", 70)
    assert lines == ["const float root_of_a_second_moment =", "    optgen::sqrt(a + b);"]


@pytest.mark.parametrize(
    ("expr", "indent", "lines"),
    [
        (MEAN, 75, ["d = a * second_moment + m.maximum(b, d) * (", "    1.0 - a", ")"]),
        (MEAN, 80, ["d = (", "    a * second_moment", "    + m.maximum(b, d) * (1.0 - a)", ")"]),
        (CHOICE, 80, ["d = m.where(", "    m.both(second_moment > a, b > d),", "    -a,", "    b,", ")"]),
    ],
)
def test_python_breaks_within_brackets(expr: Expr, indent: int, lines: list[str]) -> None:
    assert PyPrinter(dict.fromkeys(["a", "b", "d", "second_moment"], Kind.ELEMENT)).lines(expr, "d = ", indent) == lines


LONG = [f"argument_{n}" for n in range(12)]


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        (Guarded("amsgrad", Labelled("x = ", "y")), ["if constexpr (amsgrad) x = y;"]),
        (
            Guarded("amsgrad", call("compute_something_long", *LONG[:7])),
            ["if constexpr (amsgrad)", f"  compute_something_long({', '.join(LONG[:7])});"],
        ),
        (Lambda("each(n, [&](int k) {", Labelled("x[k] = ", "0.0f")), ["each(n, [&](int k) { x[k] = 0.0f; });"]),
        (
            Lambda("each(n, [&](int k) {", Labelled("x[k] = ", call("sum", *LONG[:8]))),
            ["each(n, [&](int k) {", f"  x[k] = sum({', '.join(LONG[:8])});", "});"],
        ),
        (
            Labelled(
                "auto* const x = ", choice(both(Operand("is_read"), Operand("is_first")), call("f", *LONG), "none")
            ),
            [
                "auto* const x = is_read && is_first",
                f"    ? f({', '.join(LONG[:9])},",
                f"        {', '.join(LONG[9:])}) : none;",
            ],
        ),
    ],
)
def test_statements_of_c(code: Code, lines: list[str]) -> None:
    assert c_code(code, 2) == c_lines([code], 2) == lines


def test_a_directive_has_its_clauses_on_lines_of_their_own() -> None:
    clauses = [Brackets("reduction(+ : ", ("a", "b")), Brackets("reduction(max : ", tuple(LONG))]
    assert c_pragma("#pragma omp simd", clauses[:1]) == ["#pragma omp simd reduction(+ : a, b)"]
    assert c_pragma("#pragma omp simd", clauses) == [
        "#pragma omp simd \\",
        "    reduction(+ : a, b) \\",
        f"    reduction(max : {', '.join(LONG[:8])}, \\",
        f"        {', '.join(LONG[8:])})",
    ]


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        (call("State", *LONG), ["State(", *(f"    {item}," for item in LONG), "),"]),
        (
            call("State", Labelled("exists=", call("f", *LONG[:8])), "long_basis"),
            ["State(", f"    exists=f({', '.join(LONG[:8])}),", "    long_basis,", "),"],
        ),
    ],
)
def test_entries_of_python(code: Code, lines: list[str]) -> None:
    assert python_code(code, 0, ",") == lines


@given(EXPRESSIONS, st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_python_says_the_same_on_several_lines(expr: Expr, indent: int) -> None:
    """That ruff would break them there is looked at in whole packages (test_sources.py)."""
    lines = NAMED.lines(expr, "d = ", indent)
    assert ast.dump(ast.parse("\n".join(lines))) == ast.dump(ast.parse(f"d = {NAMED.print(expr)}"))
    assert all(indent + len(line) <= 120 for line in lines)


@given(EXPRESSIONS, st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_c_says_the_same_on_several_lines(expr: Expr, indent: int) -> None:
    lines = C_TEXT.lines(expr, "const float d = ", ";", indent)
    assert "".join("".join(lines).split()) == "".join(f"const float d = {C_TEXT.print(expr)};".split())
    assert all(indent + len(line) <= 120 for line in lines)

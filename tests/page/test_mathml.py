"""Typeset equations mean what the spec says: each is read back from its MathML and evaluated beside its source."""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import pytest
from support.compiling import stock_package

from optgen.operations import MATRIX_FUNCTIONS, OF_STAGES
from optgen.page.equations import function_lines, lines
from optgen.page.mathml import Printer
from optgen.page.symbols import symbols

RULES = {info.rule: info.whole_rule for info in stock_package().classes}
OPERATORS = {"\N{MINUS SIGN}": "-", "·": "*", "≤": "<=", "≥": ">=", "≠": "!=", "=": "==", "[": "(", "]": ")"}
FENCES = {"|": "abs", "‖": "norm", "⌊": "floor"}


class Reader:
    """Reads MathML as Python."""

    def __init__(self, names: Mapping[tuple[str, str], str]) -> None:
        self.names = names

    def read(self, element: Element) -> str:
        parts = list(element)
        match element.tag:
            case "math" | "mrow" | "mtd":
                return self.row(parts)
            case "mi":
                return self.name(element.text or "", "")
            case "mn":
                return element.text or ""
            case "mtext":
                return f" {(element.text or '').strip(chr(160))} "
            case "mspace":
                return "*"
            case "mo":
                return OPERATORS.get(element.text or "", element.text or "")
            case "msub" if (parts[0].text, parts[1].text) in self.names or parts[1].tag == "mn":
                return self.name(parts[0].text or "", parts[1].text or "")
            case "msub":
                word, bracket, rest = self.read(parts[0]).partition("(")
                return f"{word}_{parts[1].text}{bracket}{rest}"
            case "msup" if parts[0].text == "e":
                return f"exp({self.read(parts[1])})"
            case "msup":
                return f"(({self.read(parts[0])})**({self.read(parts[1])}))"
            case "mfrac":
                return f"(({self.read(parts[0])})/({self.read(parts[1])}))"
            case "msqrt":
                return f"sqrt({self.row(parts)})"
            case "mtable":
                (then, when), (other, _) = [list(row) for row in parts]
                condition = self.read(when).strip().removeprefix("if ")
                return f"where(({condition}), ({self.read(then)}), ({self.read(other)}))"
        raise AssertionError(element.tag)

    def name(self, letter: str, index: str) -> str:
        return self.names.get((letter, index), letter + index)

    def row(self, parts: list[Element]) -> str:
        if len(parts) == 3 and parts[0].tag == "mo" and parts[0].text in FENCES:
            return f"{FENCES[parts[0].text or '']}({self.read(parts[1])})"
        if len(parts) == 2 and parts[0].text == "{":
            return self.read(parts[1])
        return "".join(self.read(part) for part in parts)


def function(salt: float) -> Any:
    """Some function of one number or more, for reductions, whose meaning does not matter here."""
    return lambda *args, over=None: (
        sum((salt + 0.1 * k) * float(a) for k, a in enumerate(args)) + (len(str(over)) * salt)
    )


CALLS: dict[str, Any] = {
    "sqrt": lambda x: math.sqrt(abs(x)),
    "rsqrt": lambda x: 1 / math.sqrt(abs(x)),
    "exp": lambda x: math.exp(min(x, 50)),
    "abs": abs,
    "min": min,
    "max": lambda *args: max(args),
    "absmax": abs,
    "where": lambda c, a, b: a if c else b,
    "tanh": math.tanh,
    "floor": math.floor,
}
UNARY = {"log": "ln", "sign": "sgn", "rounded": "round", "isfinite": "finite"}
OF_MATRICES = sorted({*OF_STAGES, *MATRIX_FUNCTIONS} - set(CALLS) - {*UNARY, "sum", "mean", "rms", "norm"})
REDUCED = ("sum", "mean", "rms", "norm")


def environment(names: set[str], functions: Sequence[str], seed: int) -> dict[str, Any]:
    drawn = random.Random(seed)
    found: dict[str, Any] = CALLS | {name: function(0.4 + 0.05 * k) for k, name in enumerate(functions)}
    for number, name in enumerate(OF_MATRICES):
        found[name] = function(0.2 + 0.03 * number)
    for name, iteration in MATRIX_FUNCTIONS.items():  # the page has one word for all iterations to the same matrix
        found[name] = found[iteration.page] = lambda x, *settings: function(0.15)(x)
    for source, shown in UNARY.items():
        found[source] = found[shown] = function(0.3 + 0.01 * len(source))
    for number, name in enumerate(REDUCED):
        plain = function(0.7 + 0.1 * number)

        def reduced(x: float, over: str | None = None, plain: Any = plain) -> float:
            return float(plain(x, over=over))

        found[name] = reduced
        for over in ("matrix", "all", "group", "row", "col"):
            found[f"{name}_{over}"] = lambda x, over=over, plain=plain: plain(x, over=over)
        for side, said in (("row", "row"), ("col", "column")):
            found[f"{side}_{name}"] = found[f"{name}_{said}"] = found[f"{name}_{side}"]
    for name in sorted(names):
        number = drawn.uniform(0.1, 0.9)
        found[name] = Both(number, found[name]) if name in found else number
    return found


class Both(float):
    """A number of the name of a function, as the language allows."""

    def __new__(cls, value: float, function: Any) -> Both:
        made = super().__new__(cls, value)
        made.function = function
        return made

    function: Any

    def __call__(self, *args: Any, **more: Any) -> Any:
        return self.function(*args, **more)


class Named(ast.NodeTransformer):
    """`mean(x, over=matrix)` with the name of what it is over as text."""

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        if isinstance(node.value, ast.Name):
            return ast.keyword(node.arg, ast.Constant(node.value.id))
        return node


def statements(rule: Any) -> Iterator[tuple[str, ast.expr, str]]:
    found = [(name, line) for name, block in rule.equations.items() for line in lines(block.raw, {})]
    found += [(one.name, line) for one in rule.functions for line in function_lines(one, {})]
    for name, line in found:
        if isinstance(line.node, ast.Assign):
            target = ",".join(n.id for n in ast.walk(line.node.targets[0]) if isinstance(n, ast.Name))
            yield f"{name}: {line.text}", line.node.value, target
        elif line.word == "return" and isinstance(line.node, ast.expr) and not isinstance(line.node, ast.Tuple):
            yield f"{name}: {line.text}", line.node, "update"


@pytest.mark.parametrize("name", sorted(RULES))
def test_equations_mean_what_they_say(name: str) -> None:
    rule = RULES[name]
    found = list(statements(rule))
    assert found
    names = {n.id for _, value, _ in found for n in ast.walk(value) if isinstance(n, ast.Name)}
    names |= {name for _, _, target in found for name in target.split(",")}
    letters = symbols(["param", "grad", "step", "update", *sorted(names)])
    printer, reader = Printer(letters), Reader({short: name for name, short in letters.items()})
    compared = 0
    for text, value, target in found:
        shown = printer.statement(ast.parse(f"{target} = {ast.unparse(value)}").body[0])
        left, arrow, right = list(shown)
        assert (reader.read(left), arrow.text) == (target, "←")
        read = reader.read(right)
        source = ast.unparse(Named().visit(ast.parse(ast.unparse(value), mode="eval")))
        for seed in range(3):
            values = environment(names, [one.name for one in rule.functions], seed)
            wanted, got = (eval(code, {"__builtins__": {}}, values) for code in (source, read))
            if isinstance(wanted, complex) or isinstance(got, complex):
                assert isinstance(wanted, complex) == isinstance(got, complex), f"{text}\n{read}"
                wanted, got = abs(wanted), abs(got)
            assert got == pytest.approx(wanted, rel=1e-9, abs=1e-12), f"{text}\n{read}"
            compared += 1
    assert compared == 3 * len(found)


def shown(text: str) -> Element:
    return Printer({"x": ("x", ""), "y": ("y", "")}).expression(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("x - (y - 1)", "x-(y-1)"),
        ("x * (y + 1)", "x*(y+1)"),
        ("-(x + y)", "-(x+y)"),
        ("(x + y) ** 2", "(((x+y))**(2))"),
        ("(x / y) ** 2", "(((((x)/(y))))**(2))"),
        ("x / y / 2", "((x)/(y*2))"),
        ("x / (y / 2)", "((x)/(((y)/(2))))"),
        ("x * x * y", "((x)**(2))*y"),
        ("1e-6 * x", "((10)**(-6))*x"),
        ("2.5e-7", "2.5*((10)**(-7))"),
        ("(x or y) and not x", "(x or y) and not x"),
        ("(x > 0) == (y > 0)", "(x>0)==(y>0)"),
    ],
)
def test_brackets(text: str, read: str) -> None:
    assert " ".join(Reader({}).read(shown(text)).replace("not  ", "not ").split()) == " ".join(read.split())


def test_letters_are_given_once() -> None:
    found = symbols(["param", "beta1", "beta_1", "exp_avg", "m", "decay2", "theta"])
    assert len(set(found.values())) == len(found)
    assert (found["beta1"], found["beta_1"]) == (("β", "1"), ("beta_1", ""))
    assert (found["exp_avg"], found["m"]) == (("exp_avg", ""), ("m", ""))
    assert found["decay2"] == ("decay", "2")
    found = symbols(["exp_avg", "exp_avg_slow", "max_exp_avg_sq", "exp_avg_sq_row", "v_max", "exp_avg_sq"])
    assert list(found.values())[:4] == [("m", ""), ("m", "slow"), ("v", "max"), ("v", "row")]

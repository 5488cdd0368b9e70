"""Functions: what calls become, what of a definition or a call is wrong, and that a rule is the same without them.

`OPTGEN_UPDATE=1 pytest tests/ir/test_functions.py` writes functions.txt again; read the diff.
"""

from __future__ import annotations

import ast
import os
import re
import textwrap
from pathlib import Path

import pytest
from support.compiling import ROOT, compiled, refusal

from optgen.diagnostics import Reporter
from optgen.ir.dump import text as shown
from optgen.ir.expansion import Library
from optgen.ir.functions import parse_functions
from optgen.ir.parser import Stage
from optgen.spec.source import SourceFile, SourceText

EXPECTED = Path(__file__).parent / "functions.txt"
SPEC = """\
name: probe
hyperparameters: {{lr: 1e-3, betas: [0.9, 0.999], eps: 1e-8}}
options: {{amsgrad: false}}
states:
  exp_avg:
  exp_avg_sq:
  max_exp_avg_sq:
  size: {{shape: tensor}}
  past: {{shape: tensor, window: 4}}
functions: |
{functions}
blocks:
  step: |
{block}
"""
USED = frozenset(("grad", "param", "exp_avg", "a", "b", "x", "lr", "size", "update"))


def spec(functions: str, block: str) -> str:
    return SPEC.format(functions=textwrap.indent(functions, "  "), block=textwrap.indent(block, "    "))


def _text(text: str) -> SourceText:
    indented = textwrap.indent(text, "  ")
    return SourceText(text, SourceFile("probe.yaml", f"x: |\n{indented}"), 3, len(indented) + 5, "|")


def written_out(functions: str, block: str) -> str:
    reporter = Reporter()
    known = parse_functions(_text(functions), {}, reporter)
    library = Library(known, known, "probe", frozenset(("lr", "amsgrad")), frozenset(("exp_avg", "size")), USED)
    body = library.statements(Stage(_text(block)), reporter)
    assert not reporter.diagnostics
    return "\n".join(map(ast.unparse, body))


ONE = "def f(x):\n    return x * x + 1"
TWO = "def f(x):\n    y = x + 1\n    return y * y"
CHANGED = "def f(x):\n    if amsgrad:\n        x = x + lr\n    return x"
SEVERAL = "def f(x, y):\n    if amsgrad:\n        y = y + x\n    z = x * y\n    return z, y"
WRITTEN = {
    "names stand for parameters": (ONE, "a = f(grad)", "a = grad * grad + 1"),
    "numbers too": (ONE, "a = 2 * f(3)", "a = 2 * (3 * 3 + 1)"),
    "what is read once is written in its place": ("def f(x):\n  return x + 1", "a = f(b * b)", "a = b * b + 1"),
    "what is read twice is computed once": (ONE, "b = f(grad + 1)", "f_x = grad + 1\nb = f_x * f_x + 1"),
    "own names": (TWO, "a = b - f(grad)", "y = grad + 1\na = b - y * y"),
    "two calls in one statement": (
        TWO,
        "a = f(grad) + f(b) + f(a)",
        "y = grad + 1\nf_y = b + 1\nf_y_2 = a + 1\na = y * y + f_y * f_y + f_y_2 * f_y_2",
    ),
    "a call in a call": (ONE, "a = f(f(grad))", "f_x = grad * grad + 1\na = f_x * f_x + 1"),
    "the result is the name assigned": (CHANGED, "a = f(a)", "if amsgrad:\n    a = a + lr"),
    "or begins as what is given": (CHANGED, "a = f(b)", "a = b\nif amsgrad:\n    a = a + lr"),
    "param": (CHANGED, "param = f(param)", "if amsgrad:\n    param = param + lr"),
    "a state is assigned once": (CHANGED, "size = f(b)", "f_x = b\nif amsgrad:\n    f_x = f_x + lr\nsize = f_x"),
    "a name that is read otherwise": (
        "def f(x):\n    y = 2 * x\n    z = y + x\n    return y + z",
        "x = f(x)",
        "y = 2 * x\nz = y + x\nx = y + z",
    ),
    "not what another argument reads": (
        "def f(x, y):\n    x = x + y\n    x = x * y\n    return x",
        "a = f(b, a)",
        "f_x = b\nf_x = f_x + a\nf_x = f_x * a\na = f_x",
    ),
    "several results": (SEVERAL, "a, b = f(grad, b)", "if amsgrad:\n    b = b + grad\na = grad * b"),
    "results change places": ("def f(x, y):\n    return y, x", "a, b = f(a, b)", "f_a = b\nf_b = a\na = f_a\nb = f_b"),
    "below if": (
        TWO,
        "if amsgrad:\n    a = f(b)\nelse:\n    a = b",
        "if amsgrad:\n    y = b + 1\n    a = y * y\nelse:\n    a = b",
    ),
    "options are handed on": (
        "def f(x, flag):\n    if flag:\n        x = -x\n    return x",
        "a = f(b, amsgrad)",
        "a = b\nif amsgrad:\n    a = -a",
    ),
    "functions that call functions": (
        ONE + "\ndef g(x):\n    y = f(x) / lr\n    return f(y + x)",
        "a = g(b)",
        "y = (b * b + 1) / lr\nf_x = y + b\na = f_x * f_x + 1",
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_out(name: str) -> None:
    functions, block, expected = WRITTEN[name]
    assert written_out(functions, block) == expected


def test_a_rule_is_the_same_without_functions(tmp_path: Path) -> None:
    """Every value of the step, its kind and its expression."""
    functions = (
        "def second(average, largest):\n    if amsgrad:\n        largest = max(largest, average)\n"
        "        average = largest\n    return average, largest\n"
        "def scaled(x, beta):\n    root = sqrt(x) / (1 - beta**step)\n    return grad / (root + eps)"
    )
    calls = (
        "exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad\n"
        "root, max_exp_avg_sq = second(exp_avg_sq, max_exp_avg_sq)\n"
        "param = param - lr * scaled(root, beta1)"
    )
    lines = (
        "exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad * grad\n"
        "root = exp_avg_sq\n"
        "if amsgrad:\n    max_exp_avg_sq = max(max_exp_avg_sq, root)\n    root = max_exp_avg_sq\n"
        "scaled_root = sqrt(root) / (1 - beta1**step)\n"
        "param = param - lr * (grad / (scaled_root + eps))"
    )
    found = []
    for block, own in ((calls, functions), (lines, "def unused(x):\n    return x")):
        program = compiled(tmp_path, spec(own, block)).rule.blocks["step"].program
        found.append([(let.name, let.kind, shown(let.expr)) for let in program.lets])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("text", "brief"),
    [
        ('def f(x):\n    """Text,\n    more."""\n    return x', "def f(x): return x"),
        ("def f(x): return x", "def f(x): return x"),
        ("def f(x,\n      y):\n    return x + y", "def f(x,\n      y):\n    return x + y"),
        (
            'def f(x):\n    """Text."""\n    # why\n    y = x\n    return y + y',
            "def f(x):\n    y = x\n    return y + y",
        ),
        (f"def f(x):\n    return {'x + ' * 30}x", f"def f(x):\n    return {'x + ' * 30}x"),
    ],
)
def test_brief(text: str, brief: str) -> None:
    function = parse_functions(_text(f"def before(x):\n    return x\n{text}"), {}, Reporter())["f"]
    assert "\n".join(function.brief) == brief


def test_initial_values(tmp_path: Path) -> None:
    text = spec("def start(x):\n    return x * x", "param = param - lr * grad * size").replace(
        "size: {shape: tensor}", "size: {shape: tensor, init: start(lr)}"
    )
    assert shown(compiled(tmp_path, text).rule.inits["size"]) == "lr * lr"


def test_a_file_of_functions_beside_the_rules(tmp_path: Path) -> None:
    """They come before the stock ones, which go on calling their own."""
    (tmp_path / "functions.yaml").write_text(
        "functions: |\n  def bias_correction(beta):\n      return mine(beta)\n  def mine(x):\n      return 7 * x\n"
    )
    block = "size = bias_correction(beta1)\nparam = param - lr * grad * adam_direction(param, param, beta1, beta2)"
    program = compiled(tmp_path, spec("def f(x):\n    return x", block)).rule.blocks["step"].program
    texts = [shown(let.expr) for let in program.lets]
    assert "7 * beta1" in texts
    assert any("1 - beta2**step" in text for text in texts)


DEFINED = {
    "recursion": "def f(x):\n    return f(x) + 1",
    "recursion through others": "def f(x):\n    return g(x)\ndef g(x):\n    return h(x)\ndef h(x):\n    return f(x)",
    "no such function": "def f(x):\n    return squrt(x)",
    "arguments of an inner call": ONE + "\ndef g(x):\n    return f(x, x)",
    "nothing returned": "def f(x):\n    y = x",
    "return of nothing": "def f(x):\n    return",
    "return above the end": "def f(x):\n    if amsgrad:\n        return x\n    return x",
    "documentation alone": 'def f():\n    """Nothing."""',
    "unused": "def f(x, y):\n    z = x\n    return x",
    "parameters": "def f(*x):\n    return 1\ndef g(x=1):\n    return x\n"
    "def h(x: int):\n    return x\ndef i(x) -> int:\n    return x",
    "parameters twice": "def f(x, x):\n    return x",
    "reserved names": "def sqrt(x):\n    return x\ndef _f(x):\n    return x\n"
    "def f(where):\n    _x = where\n    return _x\ndef g(x):\n    _a, exp = f(x)\n    return _a * exp",
    "twice": ONE + "\n" + ONE,
    "decorated": "@g\n" + ONE,
    "no functions": "x = 3\nfor i in x: pass\nclass A: pass",
    "no statements": "def f(x):\n    for i in x: pass\n    x += 1\n    return x",
    "too deep": f"def f(x):\n    y = {'-' * 200}x\n    return y\ndef g(x):\n    return {'x + ' * 200}x\n"
    f"def h(x):\n    if {'not ' * 150}amsgrad:\n        x = 1\n    return x",
    "too many branches": "def f(x):\n    if amsgrad:\n        x = 1\n"
    + "    elif amsgrad:\n        x = 2\n" * 60
    + "    return x",
    "syntax": "def f(x)\n    return x",
    "not Python": "f(x) = x + 1",
}
CALLED = {
    "arguments": (ONE, "param = f() + f(1, 2) + f(x=1)"),
    "number of results": (
        ONE + "\n" + SEVERAL.replace("def f", "def g"),
        "a, b = f(grad)\na = g(grad, 1)\na, b, c = g(grad, 1)\nparam = a",
    ),
    "one name for two results": (SEVERAL, "a, a = f(grad, 1)\nparam = a"),
    "no such function": (ONE, "param = param - ff(grad)"),
    "a broken function": ("def f(x):\n    return x + squrt(x)", "a = f(grad)\nparam = param - lr * a"),
    "a name that the rule lacks": ("def f(x):\n    return x + weight_decay", "param = f(grad) + f(param)"),
    "a name that is mistyped": ("def f(average):\n    return averag + average", "param = f(grad)"),
    "a state that is not handed over": ("def f(x):\n    return x + exp_avg", "param = f(grad)"),
    "a condition for a number": ("def f(x):\n    return x > 0", "param = f(grad) + 1"),
    "a condition for a number within": ("def f(x):\n    y = x + 1\n    return y", "param = f(grad > 0)"),
    "kinds": ("def f(x):\n    y = row_sum(x)\n    return y", "param = f(grad)"),
    "kinds of an inner call": (
        "def f(x):\n    return row_sum(x)\ndef g(x):\n    y = f(x * x)\n    return y",
        "param = grad + g(grad)",
    ),
    "a window": ("def f(x):\n    return percentile(x, 50)", "param = f(grad)"),
    "a state of another shape": (ONE, "size = f(grad)\nparam = param - lr * grad"),
    "a choice at run time": ("def f(x):\n    if x > 0:\n        x = 1\n    return x", "param = f(grad)"),
    "a state that may not exist": (ONE, "param = f(max_exp_avg_sq)"),
    "handed on where it may not exist": (
        "def f(x):\n    if amsgrad:\n        x = x + 1\n    return x",
        "a = f(max_exp_avg_sq)\nparam = param - a",
    ),
    "in a condition": (ONE, "if f(1) > 0:\n    param = param - grad\nparam = grad"),
    "an unknown name as an argument": (ONE, "param = f(gradd)"),
    "several names of what is no function": (ONE, "a, b = sqrt(grad)\nparam = a"),
    "a definition in a block": (ONE, "def g(x):\n    return x\nparam = g(grad)"),
    "calls that nest too deep": (
        "def f0(x):\n    return x\n" + "\n".join(f"def f{i}(x):\n    return f{i - 1}(x)" for i in range(1, 60)),
        "param = f59(grad)",
    ),
    "expressions that nest too deep": (
        f"def f(x):\n    return {'(1 + ' * 70}x{')' * 70}\ndef g(x):\n    y = f(f(x))\n    return y",
        "a = f(f(grad))\nb = g(grad)\nparam = a + b",
    ),
    "too many lines": (
        "def f0(x):\n    return x + x\n"
        + "\n".join(f"def f{i}(x):\n    return f{i - 1}(x) * f{i - 1}(x + 1)" for i in range(1, 20)),
        "param = f19(grad)",
    ),
}
CASES = {
    **{f"defined: {name}": (text, "param = param - lr * grad") for name, text in DEFINED.items()},
    **{f"called: {name}": case for name, case in CALLED.items()},
}


def said(folder: Path, name: str) -> str:
    text = refusal(folder, spec(*CASES[name])).replace(f"{ROOT.as_posix()}/", "")
    return "\n".join(line.rstrip() for line in text.split("\n"))


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.*)\n\n", EXPECTED.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {name: text.strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def test_update(tmp_path: Path) -> None:
    if not os.environ.get("OPTGEN_UPDATE"):
        pytest.skip("OPTGEN_UPDATE is not set")
    EXPECTED.write_text("\n".join(f"## {name}\n\n{said(tmp_path, name)}\n" for name in CASES), encoding="utf-8")


LONG = {"called: too many lines"}  # as long as blocks may become


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in CASES]
)
def test_says_exactly(name: str, tmp_path: Path) -> None:
    assert said(tmp_path, name) == sections()[name]


def test_every_text_has_its_case() -> None:
    assert list(sections()) == list(CASES)
    assert all(text.startswith("error[") for text in sections().values())

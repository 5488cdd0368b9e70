"""Replacements that the help suggests for other libraries' functions and operators are right themselves."""

from __future__ import annotations

import ast
import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compiling import compiled, probe, refusal

from optgen.diagnostics import SpecError
from optgen.ir.habits import CALLS, LIBRARIES, NAMES
from optgen.operations import CALLED
from optgen.spec.names import RESERVED

ARGUMENTS = ("grad", "lr", "param")
WRONG = {"not-in-language", "undefined-function", "undefined-name", "syntax", "arguments"}
CONDITIONS = {"eq", "ge", "gt", "isinf", "isnan", "le", "logical_and", "logical_not", "logical_or", "lt", "ne"}
OPERATORS = ("//", "^", "<<", ">>")
NUMBERS = (-2.5, -1.25, -0.75, 0.0, 0.25, 1.75, 3.0)
BESIDES = {"isinf": (math.inf, -math.inf, math.nan), "isnan": (math.inf, math.nan)}
LANGUAGE: dict[str, Any] = {
    "__builtins__": {"abs": abs, "min": min, "max": max},
    "exp": math.exp,
    "floor": math.floor,
    "isfinite": math.isfinite,
    "log": math.log,
    "sign": lambda x: (x > 0) - (x < 0),
    "sqrt": math.sqrt,
    "where": lambda condition, a, b: a if condition else b,
}
ELEMENTWISE = (
    "absolute", "add", "addcdiv", "addcmul", "ceil", "clamp_max", "clamp_min", "copysign", "div", "eq",
    "exp2", "expm1", "floor_divide", "fmax", "fmin", "fmod", "ge", "gt", "hypot", "isinf", "isnan", "le", "lerp",
    "log10", "log1p", "log2", "lt", "maximum", "minimum", "mul", "ne", "neg", "pow", "reciprocal", "remainder",
    "sgn", "square", "sub", "trunc",
)  # fmt: skip


def arguments(name: str) -> list[str]:
    """As many as the template takes; conditions where it takes them."""
    letters = {node.id for node in ast.walk(ast.parse(CALLS[name])) if isinstance(node, ast.Name)} & {"x", "y", "z"}
    given = ["grad > 0", "lr > 0"] if name.startswith("logical") else [*ARGUMENTS]
    given[1:2] = ["grad > 0"] if name == "masked_fill" else given[1:2]
    return given[: max(("xyz".index(letter) + 1 for letter in letters), default=1)]


def written(folder: Path, body: str) -> str:
    """Replacement that the help suggests, exactly once."""
    said = refusal(folder, probe(body))
    found = re.findall(r"\^ write `(.*)`$", said, re.MULTILINE)
    assert len(found) == 1, said
    return found[0]


def accept(folder: Path, body: str) -> None:
    try:
        compiled(folder, probe(body))
    except SpecError as error:
        assert not {d.rule for d in error.diagnostics} & WRONG, str(error)


@pytest.mark.parametrize("name", CALLS)
def test_functions_and_methods(name: str, tmp_path: Path) -> None:
    first, *rest = arguments(name)
    function = written(tmp_path, f"x = {name}({', '.join([first, *rest])})\nparam = param - grad")
    method = written(tmp_path, f"x = ({first}).{name}({', '.join(rest)})\nparam = param - grad")
    assert function == method
    value = f"where({function}, 1, 0)" if name in CONDITIONS else function
    accept(tmp_path, f"x = {value}\nparam = param - x * grad")


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_functions_give_what_those_of_torch_give(name: str) -> None:
    """Wherever both are finite numbers."""
    compared = 0
    for values in itertools.product((*NUMBERS, *BESIDES.get(name, ())), repeat=len(arguments(name))):
        theirs = getattr(torch, name)(*(torch.tensor(value, dtype=torch.float64) for value in values)).item()
        try:
            ours = eval(CALLS[name], LANGUAGE, dict(zip("xyz", values, strict=False)))
        except (ArithmeticError, ValueError):
            continue
        if math.isfinite(theirs) and not isinstance(ours, complex):
            assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-12), values
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators(operator: str, tmp_path: Path) -> None:
    value = written(tmp_path, f"x = grad {operator} lr\nparam = param - grad")
    accept(tmp_path, f"x = {value}\nparam = param - x")


@pytest.mark.parametrize(
    "statement",
    ["exp_avg.mul_(lr).add_(grad, alpha=1 - lr)", "exp_avg += lr * grad.square()", "exp_avg: float = grad",
     "exp_avg == grad", "exp_avg.sqrt_().clamp_(min=lr)", "exp_avg.lerp_(grad, 1 - lr)", "exp_avg.copy_(grad)"],
)  # fmt: skip
def test_statements(statement: str, tmp_path: Path) -> None:
    right = written(tmp_path, f"{statement}\nparam = param - exp_avg")
    assert right.startswith("exp_avg = ")
    accept(tmp_path, f"{right}\nparam = param - exp_avg")


@pytest.mark.parametrize("call", ["float('inf')", "detach()", "copy(grad)", "clone(*past)"])
def test_arguments_that_there_are_not_are_not_told_to_be_written(call: str, tmp_path: Path) -> None:
    said = refusal(tmp_path, probe(f"x = {call}\nparam = param - x"))
    assert said.startswith("error[undefined-function]")
    assert "write `" not in said


def test_tables_say_nothing_that_the_language_has() -> None:
    assert not CALLS.keys() & CALLED.keys()
    assert not (LIBRARIES | {other for others in NAMES.values() for other in others}) & RESERVED

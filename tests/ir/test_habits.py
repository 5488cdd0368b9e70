"""What the help tells to write instead of other libraries' functions and operators is right itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support.compiling import compiled, probe, refusal

from optgen.diagnostics import SpecError
from optgen.ir.habits import CALLS, LIBRARIES, NAMES, SIGNATURES
from optgen.spec.names import RESERVED

ARGUMENTS = ("grad", "lr", "param")
WRONG = {"not-in-language", "undefined-function", "undefined-name", "syntax", "arguments"}
CONDITIONS = {"eq", "ge", "gt", "isinf", "isnan", "le", "logical_and", "logical_not", "logical_or", "lt", "ne"}
OPERATORS = ("//", "%", "^", "<<", ">>")


def arguments(name: str) -> list[str]:
    """As many as the template takes; conditions where it takes them."""
    letters = {node.id for node in ast.walk(ast.parse(CALLS[name])) if isinstance(node, ast.Name)} & {"x", "y", "z"}
    given = ["grad > 0", "lr > 0"] if name.startswith("logical") else [*ARGUMENTS]
    given[1:2] = ["grad > 0"] if name == "masked_fill" else given[1:2]
    return given[: max(("xyz".index(letter) + 1 for letter in letters), default=1)]


def written(folder: Path, body: str) -> str:
    """What the help tells to write; it is said once."""
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


def test_tables_say_nothing_that_the_language_has() -> None:
    assert not CALLS.keys() & SIGNATURES.keys()
    assert not (LIBRARIES | {other for others in NAMES.values() for other in others}) & RESERVED

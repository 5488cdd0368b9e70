"""The table of operations: that every target has what it names, that all compute the same, what a new row brings."""

from __future__ import annotations

import ast
import math
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import expressions as oracle
from support.compiling import ROOT

from optgen.backends.py_printer import PyPrinter
from optgen.codecs import SMALLEST_ABSMAX
from optgen.ir.guards import Guard
from optgen.ir.nodes import Call, Kind, Ref
from optgen.operations import (
    CALLED,
    COMPARISONS,
    DRAWS,
    FUNCTIONS,
    OF_PASSES,
    OF_STAGES,
    OPERATIONS,
    WINDOWS,
    Infix,
    Named,
    Operation,
    Prefix,
)
from optgen.runtime import torch_math

NUMBERS = (2.5, 0.5, 3.0)
HEADERS = "".join(path.read_text() for path in (ROOT / "templates" / "include" / "optgen").glob("*.h"))
OTHERS = {*WINDOWS, *OF_PASSES, *DRAWS, *OF_STAGES, "rounded"}
ELEMENTWISE = [row for row in OPERATIONS.values() if row.name not in OTHERS]


def arguments(row: Operation) -> list[float | bool]:
    """One argument of each sort."""
    return [sort == "condition" or number for (_, sort), number in zip(row.takes, NUMBERS, strict=False)]


def in_python(row: Operation, kind: Kind, *values: Any) -> Any:
    """Value that the printed text computes for numbers of a kind."""
    text = PyPrinter(dict.fromkeys("abc", kind)).print(Call(row.name, tuple(map(Ref, "abc"[: row.arity]))))
    return eval(text, {"m": torch_math, **dict(zip("abc", values, strict=False))})


def in_language(row: Operation) -> str:
    shown = [str(value) for value in arguments(row)]
    match row.written:
        case Infix(symbol):
            return f"{shown[0]} {symbol} {shown[1]}"
        case Prefix(symbol):
            return f"{symbol}{shown[0]}"
    return f"{row.name}({', '.join(shown)})"


@pytest.mark.parametrize("row", ELEMENTWISE, ids=lambda row: row.name)
def test_host_torch_and_the_oracle_compute_the_same(row: Operation) -> None:
    node = ast.parse(in_language(row), mode="eval").body
    value = oracle.Evaluator({}, 1, lambda *given: pytest.fail("no reduction")).value(node)
    expected = bool(value.holds) if isinstance(value, oracle.Truth) else float(value.ball.mid)  # type: ignore[union-attr]
    assert isinstance(expected, bool) == (row.gives == "condition")
    assert in_python(row, Kind.GROUP, *arguments(row)) == pytest.approx(expected, rel=1e-15)
    tensors = (torch.tensor(x, dtype=torch.bool if isinstance(x, bool) else torch.float64) for x in arguments(row))
    assert in_python(row, Kind.TENSOR, *tensors).item() == pytest.approx(expected, rel=1e-15)
    if row.value is not None:
        assert row.value(*arguments(row)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("row", COMPARISONS.values(), ids=lambda row: row.name)
def test_a_comparison_knows_its_mirror_and_its_contrary(row: Operation) -> None:
    def holds(name: str, a: float, b: float) -> bool:
        return Guard("", "hyper", "a", name, b).holds(a)

    for a, b in ((1.0, 2.0), (2.0, 1.0), (1.0, 1.0)):
        assert holds(row.name, a, b) == holds(row.mirrored, b, a) == (not holds(row.contrary, a, b))


@pytest.mark.parametrize("row", [*FUNCTIONS.values(), *WINDOWS.values(), *OF_PASSES.values()], ids=lambda row: row.name)
def test_the_headers_have_every_function(row: Operation) -> None:
    if isinstance(row.c, Named):
        name = row.c.name.removeprefix("optgen::").partition("<")[0]
        assert re.search(rf"\b(OPTGEN_FUNCTION|inline) [\w<>]+ {name}\(", HEADERS)


def test_the_scale_of_a_tensor_is_a_normal_number_or_zero() -> None:
    below, at = math.nextafter(SMALLEST_ABSMAX, 0.0), SMALLEST_ABSMAX
    values = torch.tensor([0.0, below, at, 1.0], dtype=torch.float64)
    (row,) = OF_PASSES.values()
    assert in_python(row, Kind.TENSOR, values).tolist() == [0.0, 0.0, at, 1.0]


@pytest.mark.parametrize("name", CALLED)
def test_what_is_called_is_documented(name: str) -> None:
    assert CALLED[name].doc
    assert CALLED[name].signature.startswith(f"{name}(")


NEW_ROW = '    _function("cbrt", "the cube root"),\n'
IN_C = """\
OPTGEN_FUNCTION float cbrt(float x) { return OPTGEN_LIBM(cbrtf)(x); }
OPTGEN_FUNCTION double cbrt(double x) { return OPTGEN_LIBM(cbrt)(x); }
"""
IN_PYTHON = '''

def cbrt(x: Value) -> Value:
    """The cube root."""
    return torch.sign(x) * torch.abs(x) ** (1 / 3) if isinstance(x, Tensor) else math.cbrt(x)
'''
SPEC = """\
name: cubic
hyperparameters:
  lr: {default: 27.0}
blocks:
  step: |
    param = param - cbrt(lr) * cbrt(grad)
"""
TRIED = """
    import ast, sys
    import optgen, torch
    from optgen.new import new_spec
    from optgen.page.mathml import Printer
    sys.path.append({tools!r})
    import make_language_docs

    assert optgen.__file__.startswith({tree!r}), optgen.__file__
    for target in ("torch", "cpu"):
        param = torch.zeros(3, requires_grad=True)
        param.grad = torch.tensor([8.0, -1.0, 0.125])
        optgen.load({spec!r}).Cubic([param], target=target).step()
        torch.testing.assert_close(param.detach(), torch.tensor([-6.0, 3.0, -1.5]))
    assert "cbrt" in new_spec("other", "other.yaml")
    assert "| `cbrt(x)` | the cube root |" in make_language_docs.operations("functions")
    assert "".join(Printer({{}}).condition(ast.parse("cbrt(x)", mode="eval").body).itertext()) == "cbrt(x)"
"""


@pytest.mark.slow
def test_a_new_function_is_a_row_and_what_it_computes(tmp_path: Path, torch_python: str) -> None:
    """Checker, printers, pages and documentation follow; it is written in the header and in its Python counterpart."""
    for folder in ("optgen", "templates", "specs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, new in (
        ("optgen/operations.py", '    _function("tanh"', NEW_ROW),
        ("templates/include/optgen/math.h", "OPTGEN_FUNCTION float floor(", IN_C),
        ("optgen/runtime/torch_math.py", "\n\ndef tanh(", IN_PYTHON),
    ):
        path = tmp_path / file
        text = path.read_text()
        assert text.count(before) == 1
        path.write_text(text.replace(before, new + before))
    (tmp_path / "cubic.yaml").write_text(SPEC)
    code = TRIED.format(tools=str(ROOT / "tools"), tree=str(tmp_path), spec=str(tmp_path / "cubic.yaml"))
    done = subprocess.run(
        [torch_python, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

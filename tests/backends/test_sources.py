"""Generated sources: C++ compiles without a warning, Python is formatted; make lint checks types."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.asked import ask
from support.compiling import ROOT, RULES, own_package, stock_package, stock_rules, write_spec

import optgen
from optgen.codecs import CODECS, WHOLE_TENSOR, Codec
from optgen.compiler import PlannedRule
from optgen.emit.writer import write
from optgen.ir.formula import TRUE, atom
from optgen.ir.guards import feasible
from optgen.ir.nodes import Kind

COMPILERS = [path for name in ("g++", "clang++") if (path := shutil.which(name))]
FLAGS = ["-std=c++17", "-fopenmp", "-fsyntax-only", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-trapping-math"]
NAMES = [
    "float",
    "int",
    "double",
    "template",
    "value",
    "k",
    "t",
    "begin",
    "m",
    "f",
    "results",
    "Tile",
    "s",
    "x_at",
]


def settings(planned: PlannedRule) -> Iterator[dict[str, bool]]:
    """Everything off, everything on as far as it can be, and some at random."""
    guards = planned.rule.guards.guards
    choices = {name: option.choices for name, option in planned.rule.options.items() if option.choices is not None}
    source = random.Random(1)
    rows = [[False] * len(guards), [True] * len(guards), *([source.random() < 0.5 for _ in guards] for _ in range(40))]
    found = 0
    for row in rows:
        truth = dict(zip(guards, row, strict=True))
        term = TRUE
        for name, value in truth.items():
            term = term & (atom(name) if value else ~atom(name))
        if feasible(term, guards, choices):
            yield truth
            found += 1
        if found == 3:
            return


def defines(planned: PlannedRule, truth: dict[str, bool], codec: Codec) -> list[str]:
    rule = planned.rule
    result = ["-DOPTGEN_PARAM_CODEC=Plain<float>", "-DOPTGEN_GRAD_CODEC=Plain<bf16>"]
    for name, guard in rule.guards.guards.items():
        if guard.about != "codec":
            result.append(f"-DOPTGEN_{name.upper()}={str(truth[name]).lower()}")
    for name, item in rule.inputs.items():
        if item.role == "state" and item.kind is Kind.ELEMENT:
            kept = codec if codec.name in item.codecs else CODECS["fp32"]
            result.append(f"-DOPTGEN_{name.upper()}_CODEC={kept.cpp_type(item.signed)}")
    return result


@pytest.mark.skipif(not COMPILERS, reason="no C++ compiler on this machine")
@pytest.mark.parametrize("name", RULES)
def test_cpp_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    planned = stock_rules()[name]
    files = next(p.files for p in (stock_package(), own_package()) if f"{name}.cpp" in p.files)
    source = tmp_path / f"{name}.cpp"
    source.write_text(files[f"{name}.cpp"], encoding="utf-8")
    for header in (path for path in files if path.endswith(".h")):
        (tmp_path / header).write_text(files[header], encoding="utf-8")
    include = f"-I{ROOT / 'templates' / 'include'}"
    int8 = CODECS["int8"]
    cases = list(zip(settings(planned), (CODECS["fp32"], int8, int8.with_block(WHOLE_TENSOR)), strict=False))
    for compiler, (truth, codec) in itertools.product(COMPILERS, cases):
        ask([compiler, *FLAGS, include, *defines(planned, truth, codec), str(source)], source)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("packages")
    write(stock_package(), folder / "stock")
    write(own_package(), folder / "rules")
    return [folder / "stock", folder / "rules"]


def tool(*arguments: str | Path) -> None:
    done = subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_python_is_formatted(packages: list[Path]) -> None:
    tool("ruff", "format", "--isolated", "--check", "--line-length", "120", *packages)


def test_python_has_nothing_unused(packages: list[Path]) -> None:
    rules = "E,F,W,I,UP,B,C4,PIE,RET,RUF,SIM"
    tool(
        "ruff", "check", "--isolated", "--line-length", "120", "--target-version", "py311", "--select", rules, *packages
    )


def test_no_line_is_too_long(packages: list[Path]) -> None:
    for path in (path for package in packages for path in package.glob("*.*")):
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            assert len(line) <= 120, f"{path.name}:{number}"


HYPERS = "".join(f"  {name}: {{default: 0.5}}\n" for name in NAMES if name not in ("value", "x_at"))
SUM = " + ".join(name for name in NAMES)
ODD = f"""\
name: odd
hyperparameters:
{HYPERS}states:
  value: {{}}
  line: {{}}
  segment: {{}}
  s_value: {{}}
  x_at: {{shape: tensor}}
blocks:
  step: |
    value = value + grad
    line = line + grad
    segment = segment + grad
    s_value = s_value + grad
    x_at = norm(value)
    double_ = -(-grad) + (line - segment) + (s_value - value)
    switch = {SUM}
    square = switch * switch
    param = param - 0.001 * (square + double_) ** 2
"""


@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_names_of_the_targets_own(target: str, tmp_path: Path) -> None:
    if target == "cpu" and not COMPILERS:
        pytest.skip("no C++ compiler on this machine")
    cls = optgen.load(write_spec(tmp_path, ODD)).Odd
    param = torch.nn.Parameter(torch.linspace(-1, 1, 300))
    before = param.detach().double()
    opt = cls([param], target=target)
    param.grad = torch.ones(300)
    opt.step()
    assert opt.engines() == {target: 1}
    total = (len(NAMES) - 2) * 0.5 + 1 + 300**0.5
    expected = before - 0.001 * (total**2 + 1) ** 2
    assert torch.allclose(param.detach().double(), expected, rtol=1e-5)
    assert torch.allclose(opt.state[param]["x_at"].double(), torch.tensor(300**0.5).double())


QUOTED = """\
name: quoted
title: 'A \"\"\"title\"\"\" with \\n'
doc: 'Ends with a backslash \\'
reference: 'a\\'
hyperparameters:
  lr: {default: 0.1, range: "[0, inf)", doc: '\"\"\" and \\'}
blocks:
  step: |
    \"\"\"A note.\"\"\"
    x = grad + \\
        grad
    param = param - lr * x
"""


def test_texts_of_a_spec_cannot_end_a_docstring_or_a_comment(target: str, tmp_path: Path) -> None:
    cls = optgen.load(write_spec(tmp_path, QUOTED)).Quoted
    param = torch.nn.Parameter(torch.zeros(3))
    param.grad = torch.ones(3)
    cls([param], target=target).step()
    assert torch.allclose(param.detach(), torch.full((3,), -0.2))
    assert '"""title"""' in cls.__doc__

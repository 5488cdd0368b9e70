"""docs/language.md: tables as the models say, examples that compile, errors and functions that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.declared import read_yaml
from support.compiling import ROOT, compiled

from optgen.compiler import compile_specs
from optgen.operations import CALLED
from optgen.spec.names import FACTS, SIZES

TEXT = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```yaml\n(name: .*?)```", TEXT, flags=re.DOTALL)
SOURCES = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "optgen").rglob("*.py"))


def test_tables_are_what_the_models_say() -> None:
    tool = ROOT / "tools" / "make_language_docs.py"
    done = subprocess.run([sys.executable, tool, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_compile(text: str, tmp_path: Path) -> None:
    assert compiled(tmp_path, text).classes


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(stage: .*?)```", TEXT, flags=re.DOTALL))
def test_stages_compile_on_a_rule(text: str, tmp_path: Path) -> None:
    path = tmp_path / f"{text.split()[1]}.yaml"
    path.write_text(text, encoding="utf-8")
    assert compile_specs([path], None, "adamw").classes
    assert read_yaml(path)["blocks"] == read_yaml(ROOT / "examples" / "stages" / path.name)["blocks"]


@pytest.mark.parametrize("name", [*CALLED, *(fact for fact in FACTS if not fact.startswith("size"))])
def test_every_function_and_fact_is_described(name: str) -> None:
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`", TEXT)


def test_sizes_of_dimensions_are_described() -> None:
    """Equations say `shape[0]`; from the first that is told to the last."""
    assert "`shape[0]`, `shape[-1]`" in TEXT
    assert f"from `{min(SIZES)}` to `{max(SIZES)}`" in TEXT


def test_every_error_exists() -> None:
    table = TEXT.split("| id | reported for |", 1)[1]
    for name in re.findall(r"`([a-z-]+)`", "".join(line.split("|")[1] for line in table.split("\n") if "|" in line)):
        assert f'"{name}"' in SOURCES, name

"""Answers of compilers for tests (support/asked.py): kept, and asked for again when what decides them changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.asked import ask

from optgen.runtime.building.entries import CompileError

COMPILER = """#!/bin/sh
case $1 in --version) echo 1; exit;; esac
echo run >> {runs}
cp "$1" "$2"
echo "$1: a remark"
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A compiler that copies its source, and a file of a line for each of its runs."""
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    compiler, runs = tmp_path / "compiler", tmp_path / "runs"
    compiler.write_text(COMPILER.format(runs=runs))
    compiler.chmod(0o755)
    runs.write_text("")
    return compiler, runs


def answer(compiler: Path, source: Path) -> tuple[str, str]:
    output = source.with_suffix(".out")
    said = ask([str(compiler), str(source), str(output)], source, output)
    return said, output.read_text()


def test_it_is_asked_anew_when_something_has_changed(
    asked: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, runs = asked
    first, moved = tmp_path / "first.cpp", tmp_path / "moved.cpp"
    first.write_text("one")
    moved.write_text("one")
    assert answer(compiler, first) == (f"{first}: a remark\n", "one")
    assert answer(compiler, moved) == (f"{moved}: a remark\n", "one")
    assert runs.read_text().count("run") == 1
    moved.write_text("two")
    assert answer(compiler, moved)[1] == "two"
    assert runs.read_text().count("run") == 2
    monkeypatch.setenv("CPATH", str(tmp_path))
    answer(compiler, moved)
    assert runs.read_text().count("run") == 3
    compiler.write_text(compiler.read_text().replace("a remark", "another"))
    assert answer(compiler, moved)[0] == f"{moved}: another\n"


def test_failures_are_told_and_not_kept(asked: tuple[Path, Path], tmp_path: Path) -> None:
    compiler, runs = asked
    source = tmp_path / "source.cpp"
    source.write_text("one")
    right = compiler.read_text()
    compiler.write_text(f"{right}exit 3\n")
    for _ in range(2):
        with pytest.raises(CompileError, match=r"exit status 3(.|\n)*source.cpp: a remark"):
            answer(compiler, source)
    assert runs.read_text().count("run") == 2
    compiler.write_text(right.replace('cp "$1" "$2"', ""))
    with pytest.raises(CompileError, match="cannot run the compiler"):
        answer(compiler, source)


def test_headers_beside_a_source_are_part_of_it(asked: tuple[Path, Path], tmp_path: Path) -> None:
    compiler, runs = asked
    source, header = tmp_path / "source.cpp", tmp_path / "beside.h"
    source.write_text('#include "beside.h"\n')
    with pytest.raises(CompileError, match=r"beside\.h"):
        answer(compiler, source)
    for number, text in enumerate(("one", "two", "two"), 1):
        header.write_text(text)
        answer(compiler, source)
        assert runs.read_text().count("run") == min(number, 2)

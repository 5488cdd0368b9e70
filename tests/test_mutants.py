"""Mutants are edits of code that runs, one place each, and the same for the same seed."""

from __future__ import annotations

import ast

import mutants
import pytest
from mutant_edits import edits_of

SILENT = b'''
"""A docstring: 1 + 1 < 3 and not True."""
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    LIMIT = 3 < 4
__all__ = ["a" + "b"][:1]


@cache(maxsize=3)
def work(x: Literal[1] = None) -> Literal[2]:
    """Of 1 + 2."""
    y: Literal[True] = x  # 1 < 2
    raise ValueError("1 < 2" if x > 3 else "not 1")
'''
SPEAKING = '''
def f(a, b) -> int | None:
    """é"""
    if "é" == a and not b:
        return a[b:] + max(1, b)  # +
    return None
'''
HEADER = b"""
#define TWO (1 + 1)
// 1 < 2
static_assert(sizeof(int) == 4, "four");
template <int n = 3> inline T* f(const T& x) { return x < 0x1fu && !y ? "1 < 2" : x * 2.5f; }
"""


def mutated(text: bytes, name: str) -> list[str]:
    return [(text[: e.start] + b"[" + e.new + b"]" + text[e.end :]).decode() for e in edits_of(name, text)]


def test_what_does_not_run_is_left_alone() -> None:
    assert edits_of("silent.py", SILENT) == []


def test_edits_of_python() -> None:
    edits = [line for text in mutated(SPEAKING.encode(), "a.py") for line in text.splitlines() if "[" in line and line]
    changed = {line.strip() for line in edits} - {"return a[b:] + max(1, b)  # +"}
    assert changed == {
        'if "é" [!=] a and not b:',
        'if "é" == a [or] not b:',
        'if "é" == a and []b:',
        'if [not ("é" == a and not b)]:',
        "return a[[(b) + 1]:] + max(1, b)  # +",
        "return a[b:] [-] max(1, b)  # +",
        "return a[b:] + [min](1, b)  # +",
        "return a[b:] + max([2], b)  # +",
        "return [None]  # +",
    }


def test_edits_of_headers() -> None:
    news = [(HEADER[e.start : e.end], e.new) for e in edits_of("a.h", HEADER)]
    assert news == [
        (b"3", b"4"),
        (b"<", b"<="),
        (b"0x1f", b"0x20"),
        (b"&&", b"||"),
        (b"!", b""),
        (b"*", b"/"),
        (b"2.5", b"3.5"),
    ]


def test_the_same_seed_draws_the_same_mutants_and_all_parse(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = mutants.draw(mutants.ROOT, 40, 14)
    assert len(drawn) == 40
    assert {mutant.area for mutant in drawn} == set(mutants.AREAS)
    assert mutants.draw(mutants.ROOT, 40, 14) == drawn
    for mutant in drawn:
        text = (mutants.ROOT / mutant.file).read_bytes()
        changed = text[: mutant.edit.start] + mutant.edit.new + text[mutant.edit.end :]
        assert changed != text
        if mutant.file.endswith(".py"):
            assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)), mutant
    for _, _, tests in mutants.AREAS.values():
        mutants.files(mutants.ROOT / "tests", tests)
    assert capsys.readouterr().err == ""  # of patterns without files

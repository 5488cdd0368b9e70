"""Docstrings begin with a noun or a verb, not with the question that the function answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TREES = ("optgen", "templates", "generated", "specs", "tools", "tests", "examples")
TYPES = ("*.py", "*.j2", "*.yaml")
QUESTION = re.compile(r'(?m)^[ \t]*r?"""(?:What|Whatever|Whether|Which|Where|When|Who|Whose|Why|How)\b.*')


def questions(text: str) -> list[str]:
    """Lines of docstrings that begin with a question word."""
    return [found[0].strip() for found in QUESTION.finditer(text)]


@pytest.mark.parametrize("tree", TREES)
def test_docstrings_begin_with_a_noun_or_a_verb(tree: str) -> None:
    files = [path for kind in TYPES for path in (ROOT / tree).rglob(kind)]
    assert files
    found = {
        str(path.relative_to(ROOT)): questions(path.read_text(encoding="utf-8", errors="replace")) for path in files
    }
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_questions_are_found() -> None:
    right = 'def g():\n    """True if it holds: what else?"""\n'
    text = 'def f():\n    """Whether it holds."""\n' + right + 'X = 1\n"""What it is."""\n'
    assert questions(right) == []
    assert questions(text) == ['"""Whether it holds."""', '"""What it is."""']

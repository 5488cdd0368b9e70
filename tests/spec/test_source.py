"""Positions in a scalar's text are positions in the YAML file, however the scalar is written."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optgen.diagnostics import Reporter
from optgen.spec.nodes import Document, compose
from optgen.spec.source import SourceFile


def _document(text: str) -> Document:
    reporter = Reporter()
    document = compose(SourceFile("f.yaml", text), reporter)
    assert document is not None, reporter.diagnostics
    return document


def _pointed_at(document: Document, word: str, *keys: str) -> str:
    """Text in the file at the location of `word` in a text; found as `ast` counts, in bytes."""
    text = document.text(*keys)
    for number, line in enumerate(text.text.split("\n"), start=1):
        column = line.find(word)
        if column >= 0:
            where = text.locate(number, len(line[:column].encode()), len(word.encode()))
            return document.source.lines[where.line - 1][where.column - 1 : where.column - 1 + where.length]
    raise AssertionError(f"{word} is not in {text.text!r}")


@pytest.mark.parametrize(
    "yaml",
    [
        "a:\n  b: |\n    one = 1\n    two = beta3 + 1\n",
        "a:\n  b: |-\n    one = 1\n    two = beta3 + 1",
        "a:\n  b: |+ # comment\n\n    one = 1\n\n    two = beta3 + 1\n\n\n",
        "a:\n  b: |2\n      one = 1\n    two = beta3 + 1\n",
        "a:\n  b: |2-\n      two = 1\n    two = beta3 + 1\n",
        "a:\n  b: |\n     if x:\n         two = beta3\n",
        "a: {b: two beta3}\n",
        "a: {b: 'it''s two beta3'}\n",
        'a: {b: "\\u65e5\\x41\\n\\ttwo \\"beta3\\""}\n',
        'a:\n  b: "one\n    two   \n\n    beta3"\n',
        'a:\n  b: "one \\\n    two\\\n    beta3"\n',
        "a:\n  b: one\n    two\n    beta3\n",
        "a:\n  b: >-\n    one\n    two beta3\n\n    three\n",
        "a:\n  b: >\n\n    one two\n      beta3\n    three\n",
        "a: {日本: 1, b: 日本 two beta3}\n",
        "a:\n  b: |\n    日本 = 'é𝛽' + two + beta3\n",
        "# 𝛽\na: {x: 𝛽, b: two 𝛽 beta3} # é\n",
    ],
)
@pytest.mark.parametrize("word", ["two", "beta3"])
def test_words_are_found_where_they_stand(yaml: str, word: str) -> None:
    assert _pointed_at(_document(yaml), word, "a", "b") == word


def test_positions_of_ast_nodes() -> None:
    document = _document("b:\n    s: |\n      ä = 'é' + b\n      if c:\n          d = e\n")
    text = document.text("b", "s")
    for node in ast.walk(ast.parse(text.text)):
        if isinstance(node, ast.Name):
            where = text.locate(node.lineno, node.col_offset, (node.end_col_offset or 0) - node.col_offset)
            line = document.source.lines[where.line - 1]
            assert line[where.column - 1 : where.column - 1 + where.length] == node.id


def test_beyond_the_text_is_its_end() -> None:
    text = _document("a: |\n  one\n  two\n").text("a")
    assert str(text.locate(99, 0)) == "f.yaml:4:1"
    assert str(text.locate(1, 99)) == "f.yaml:2:6"
    assert text.locate(1, 0, 99).length == 3
    assert str(text.locate(-5, -5)) == "f.yaml:2:3"


def test_missing_texts_are_empty_and_stand_at_their_parent() -> None:
    document = _document("blocks:\n  step: x\n")
    assert document.text("blocks", "apply").text == ""
    assert str(document.text("blocks", "apply").locate(1, 0)) == "f.yaml:1:1"
    assert str(document.locate("blocks", "apply")) == "f.yaml:1:1"
    assert str(document.locate("blocks", "step")) == "f.yaml:2:9"
    assert str(document.locate("no", "such", 3)) == "f.yaml:1:1"


def test_empty_texts() -> None:
    for written in ("''", '""', "|\n", ">\n", "", "~"):
        text = _document(f"a: {written}\n").text("a")
        assert text.locate(1, 0).line == 1
        assert text.whole().file == "f.yaml"


@given(st.text(st.sampled_from("ab \n'\"\\é𝛽:#-{}|>"), max_size=40), st.sampled_from(["'", '"', "|", ">", ""]))
@settings(max_examples=200, deadline=None)
def test_any_text_is_located(content: str, style: str) -> None:
    """Every visible character of a scalar's text is found in the file, in all styles in which it can be written."""
    import yaml

    dumped = yaml.safe_dump({"k": {"b": content}}, default_style=style or None, allow_unicode=True)
    reporter = Reporter()
    document = compose(SourceFile("f.yaml", dumped), reporter)
    if document is None:
        return
    text = document.text("k", "b")
    for number, line in enumerate(text.text.split("\n"), start=1):
        for index, char in enumerate(line):
            where = text.locate(number, len(line[:index].encode()))
            found = document.source.lines[where.line - 1][where.column - 1 : where.column]
            assert char.isspace() or found in (char, "\\"), (dumped, char, where)

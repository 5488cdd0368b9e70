"""Text that people write stays text in everything that is generated."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.compiling import ROOT, compiled
from support.hostile import PARTS, TEXTS, c_code, python_code, with_texts

import optgen
from optgen.backends import quoting
from optgen.backends.quoting import c_comment, docstring, identifier, py_string, python_comment
from optgen.compiler import PlannedRule, _emit, common_parts, compile_specs
from optgen.diagnostics import SpecError
from optgen.emit.environment import render
from optgen.explanation import ClassInfo
from optgen.page import page
from optgen.prose import Prose

SPEC = """\
name: quoted
title: A title
reference: A reference
doc: A doc
hyperparameters:
  lr: {default: 1e-3, label: rate, doc: A doc}
  betas: {default: [0.9, 0.99], names: [beta1, beta2], doc: A doc}
options:
  mode: {default: a, choices: [a, b], doc: A doc}
inputs:
  loss: {doc: A doc}
states:
  exp_avg: {doc: A doc}
  size: {shape: tensor, init: norm(param)}
refusals:
  - {when: lr == 3, message: "{name} refuses"}
blocks:
  step: |
    exp_avg = beta1 * exp_avg + (1 - beta2) * grad
    size = norm(exp_avg)
    if mode == "a":
        exp_avg = exp_avg / size
    if loss is not None:
        exp_avg = exp_avg * loss
    update = exp_avg
  apply: param = param - lr * update
methods:
  reset: {block: exp_avg = 0 * exp_avg, doc: A doc}
classes:
  Quoted: {doc: A doc, refusals: [{when: mode == "b", message: no}]}
"""
COMPILERS = [path for name in ("g++", "clang++") if (path := shutil.which(name))]
ENDINGS = ("\\", "\\ ", "\\\t", "??/", "??/ ", "\\\\", "x", "*/", "\\\v", "\\\f", "\r", "\\\r", "\u2028", "\x85")


@cache
def planned() -> PlannedRule:
    with tempfile.TemporaryDirectory() as folder:
        return compiled(Path(folder), SPEC)


def files(text: str) -> dict[str, str]:
    changed = with_texts(planned(), text)
    common = common_parts([changed])
    renderings = (*changed.renderings(common), *common.renderings(changed.rule))
    return {r.path: _emit(changed.rule.path, r) for r in renderings}


@cache
def code() -> dict[str, str]:
    return {path: (python_code if path.endswith(".py") else c_code)(text) for path, text in files("word").items()}


@given(TEXTS.filter(lambda text: bool(Prose(text))))
@example('"' * 4)
@example("\\")
@example("coding: utf-7")
@example("a\nimport os; os.abort()\n#")
@example("a\rhit();")
@example("a??/")
@settings(max_examples=40, deadline=None)
def test_code_does_not_depend_on_texts(text: str) -> None:
    for path, made in files(text).items():
        assert (python_code if path.endswith(".py") else c_code)(made) == code()[path]
        assert not any(char in made for char in "\r\v\f\0\x1b\x85\u2028\u2029\u202e\u2066\ud800")


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[object] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.found.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(tag)


@given(st.lists(st.sampled_from([part for part in PARTS if part.isprintable()]), max_size=6).map("".join))
@settings(max_examples=20, deadline=None)
def test_pages_do_not_depend_on_texts(text: str) -> None:
    def tags(text: str) -> list[object]:
        changed = with_texts(planned(), text)
        rule = replace(changed.rule, equations=planned().rule.equations)  # which a page has parsed
        return Tags(page(ClassInfo(rule, changed.plans, changed.classes[0], None, ()))).found

    assert tags("x" + text) == tags("word")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_comments_end_with_their_line_for_compilers(compiler: str, tmp_path: Path) -> None:
    texts = [f"{before}{after}" for before in ("a ", "", *PARTS) for after in ENDINGS]
    lines = [f"{c_comment(text)}\nint x{number};" for number, text in enumerate(texts)]
    source = tmp_path / "comments.cpp"
    source.write_text("\n".join(lines), encoding="utf-8")
    command = [compiler, "-std=c++17", "-trigraphs", "-Wall", "-Werror", "-E", "-P", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    assert done.stdout.split() == " ".join(f"int x{number};" for number in range(len(texts))).split()


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_texts_of_python_read_back(text: str) -> None:
    source = f'{python_comment(text)}\ndef f():\n    """{docstring(text)}"""\n    return {py_string(text)}\n'
    tree = ast.parse(source.encode())
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    (_, returned) = function.body
    assert isinstance(returned, ast.Return)
    assert isinstance(returned.value, ast.Constant)
    assert returned.value.value == text
    assert ast.get_docstring(function, clean=False) == quoting._line(text)


def test_prose_is_taken_by_nothing_but_quoting() -> None:
    text = Prose("x")
    for use in (str, "{}".format, lambda x: f"{x}", lambda x: "%s" % x, lambda x: "".join([x])):  # noqa: UP031
        with pytest.raises(TypeError):
            use(text)
    with pytest.raises(TypeError, match="is not code"):
        render("python/package.py.j2", {"title": text, "imports": [], "classes": [], "exports": []})


@pytest.mark.parametrize("name", ["", "1a", "a b", "a\n", "é", "a-b", "a;", "a."])
def test_names_are_identifiers(name: str) -> None:
    with pytest.raises(ValueError, match="is not an identifier"):
        identifier(name)


def test_comments_are_made_in_one_place() -> None:
    """Elsewhere no f-string begins a comment with a value in it."""
    for path in (*(ROOT / "optgen" / "backends").glob("*.py"), ROOT / "optgen" / "compiler.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant) and path.stem != "quoting":
                assert not str(node.values[0].value).startswith(("# ", "// ")), f"{path}:{node.lineno}"


@pytest.mark.parametrize("char", "\u202a\u202e\u2066\u2069")
def test_specs_hold_nothing_that_turns_text(tmp_path: Path, char: str) -> None:
    for text in (SPEC.replace("A title", f"A {char} title"), SPEC.replace("A title", f'"\\u{ord(char):04x}"')):
        with pytest.raises(SpecError, match=f"U\\+{ord(char):04X}"):
            compiled(tmp_path, text)


@pytest.mark.parametrize(
    "name",
    [
        b"x\nimport os; os.environ['HIT'] = '1'\n#",
        b"x\ros.abort()",
        b"coding: utf-7",
        b"coding=unicode_escape",
        b"\xff\xfe",
        "x\u2028y\x85z\u202e".encode(),
        b"??/",
        b"a\\",
    ],
)
def test_a_folder_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    folders = (tmp_path / "plain", tmp_path / os.fsdecode(name))
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "quoted.yaml").write_text(SPEC)
    plain, hostile = (compile_specs([folder / "quoted.yaml"], "quoted").files for folder in folders)
    assert plain.keys() == hostile.keys()
    for path, text in hostile.items():
        head, _, rest = text.partition("\n")
        assert rest == plain[path].partition("\n")[2]
        assert not any(char in head for char in "\r\u2028\x85\u202e")
        assert (python_code if path.endswith(".py") else c_code)(text) is not None
    assert optgen.load(folders[1] / "quoted.yaml").Quoted.__name__ == "Quoted"
    assert "HIT" not in os.environ

"""Texts that try to leave their place in a generated file, and what is left of a file without its texts."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from optgen.compiler import PlannedRule
from optgen.ir.refusals import Refusal
from optgen.prose import Prose

PARTS = (
    "\n", "\r", "\r\n", "\t", "\v", "\f", "\x1c", "\x85", "\u2028", "\u2029", "\0", "\x1b[31m", "\x7f", "\u202e",
    "\u2066", "\u200d", "\ufeff", "\ud800", "\udcff", "\U0010ffff", "\\", "\\\n", "\\ \n", "??/", "??/\n", "??",
    "/", "*/", "/*", "//", "#", "\n#", '"', "'", '"""', "'''", '\\"', 'R"(', ')"', "`", "{{ x }}", "{% if x %}",
    "{# x #}", "{", "}", "{name}", "%s", "\\N{BULLET}", "\\u0041", "\\x41", "coding: utf-7", "coding=rot13",
    "-*- coding: utf_16 -*-", "+AAo-hit()+AAo-", "\nhit()", "\nhit();", "\n#include </etc/passwd>", "#pragma x",
    "<script>", "&lt;", "]]>", "<!--", "-->", "é", "日本", "🙂", "x", "word", " ", "  ", "y" * 300, "z " * 200,
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=3)), min_size=1, max_size=8).map("".join)


def with_texts(planned: PlannedRule, text: str) -> PlannedRule:
    """The rule with this text wherever its author, or the names of its files, may say anything."""
    rule, prose = planned.rule, Prose(text)

    def documented(items: Any) -> Any:
        return {name: item.model_copy(update={"doc": prose}) for name, item in items.items()}

    def refused(refusals: tuple[Refusal, ...]) -> tuple[Refusal, ...]:
        return tuple(replace(refusal, message=prose) for refusal in refusals)

    def labelled(items: Any) -> Any:
        return {name: item.model_copy(update={"label": prose}) for name, item in documented(items).items()}

    def told(declared: Any) -> dict[str, Any]:
        """The settings and inputs of a spec, or of what all rules are offered."""
        settings = {key: documented(getattr(declared, key)) for key in ("options", "inputs")}
        return {**settings, "hyperparameters": labelled(declared.hyperparameters)}

    texts = {"title": prose, "doc": prose, "reference": prose, "methods": documented(rule.spec.methods)}
    spec = rule.spec.model_copy(update={**texts, **told(rule.spec)})
    storage = documented(rule.shared.storage)
    shared = rule.shared.model_copy(update={**told(rule.shared), "storage": storage})
    changed = replace(
        rule,
        spec=spec,
        path=prose,
        shared=shared,
        hypers=labelled(rule.hypers),
        options=documented(rule.options),
        given=documented(rule.given),
        equations=dict.fromkeys(rule.equations, prose),
        refusals=refused(rule.refusals),
    )
    classes = tuple(
        replace(c, entry=c.entry.model_copy(update={"doc": prose}), refusals=refused(c.refusals))
        for c in planned.classes
    )
    return replace(planned, rule=changed, classes=classes)


def python_code(text: str) -> str:
    """A module's syntax tree with all strings emptied, read from bytes as Python reads a file."""
    tree = ast.parse(text.encode())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def c_code(text: str) -> str:
    """Code that a compiler of C++ sees in a file, comments taken out, by the strictest of them.

    Lone carriage returns end lines, as clang has it; `??/` is a backslash, as before C++17; a backslash draws the next
    line up though spaces follow it, as g++ has it.
    """
    text = re.sub(r"\r\n?", "\n", text).replace("??/", "\\")
    text = re.sub(r"\\[ \t\v\f]*\n", "", text)
    token = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL)
    code = token.sub(lambda m: " " if m[0].startswith("/") else m[0], text)
    return "\n".join(line.rstrip() for line in code.split("\n") if line.strip())

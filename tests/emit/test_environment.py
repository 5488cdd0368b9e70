"""Templates and what they are given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from jinja2 import UndefinedError, meta
from support.compiling import ROOT

from optgen import compiler, explanation, page
from optgen.emit.environment import environment, render


def names(template: str) -> set[str]:
    """The names that a template uses."""
    loader = environment().loader
    assert loader is not None
    source, _, _ = loader.get_source(environment(), template)
    return meta.find_undeclared_variables(environment().parse(source))


def test_contexts_have_the_names_that_their_templates_use(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, set[str]] = {}

    def noted(template: str, context: Mapping[str, Any]) -> str:
        given[template] = set(context)
        return render(template, context)

    monkeypatch.setattr(compiler, "render", noted)
    monkeypatch.setattr(explanation, "render", noted)
    monkeypatch.setattr(page, "render", noted)
    package = compiler.compile_specs([ROOT / "specs" / "lion.yaml"], "probe")
    page.page(package.classes[0])
    for target in explanation.TARGETS:
        package.classes[0].code(target)
    templates = {path.relative_to(ROOT / "templates").as_posix(): path for path in (ROOT / "templates").rglob("*.j2")}
    parts = {template for template in templates if template.count(".") == 1}  # of files: tile.j2, of kernel.cpp.j2
    assert given == {template: names(template) for template in templates.keys() - parts}
    sources = [*templates.values(), *(ROOT / "optgen" / "backends").glob("*.py")]
    said = {text for path in sources for text in re.findall(r'"([\w/]+\.j2)"', path.read_text(encoding="utf-8"))}
    assert parts <= said


def test_a_name_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="functions"):
        render("torch/functions.py.j2", {"head": [], "imports": []})

"""The Jinja environment: strict."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, meta

from optgen.paths import templates_dir


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(templates_dir()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def names(template: str) -> frozenset[str]:
    """The names that a template uses: its context has exactly these, which tests look at."""
    environment = _environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, template)
    return frozenset(meta.find_undeclared_variables(environment.parse(source)))


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template's text."""
    return _environment().get_template(template).render(context)

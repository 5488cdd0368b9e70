"""The Jinja environment: strict, with exactly the names that a template uses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, meta

from optgen.paths import templates_dir


class TemplateContextError(AssertionError):
    """A template and the context it is given disagree."""


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


@cache
def _names(template: str) -> frozenset[str]:
    environment = _environment()
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, template)
    return frozenset(meta.find_undeclared_variables(environment.parse(source)))


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template's text.

    Raises:
        TemplateContextError: if the context lacks a name that the template uses, or has one that it does not.
    """
    wanted = _names(template)
    if wanted != set(context):
        difference = sorted(wanted ^ set(context))
        raise TemplateContextError(f"{template} and its context differ in {', '.join(difference)}")
    return _environment().get_template(template).render(context)

"""Every name that the documentation and the docstrings of what is public give to users can be imported."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
from support.compiling import ROOT

import optgen
from optgen.runtime.optimizer import Optimizer

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.py"))]
NAME = re.compile(r"(?<![\w./-])optgen(?:_optim)?(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(r"(?m)^\s*from (optgen\S*) import ([\w, ]+)")
FILE = re.compile(r"\.(py|yaml|json|md|cpp|cu|h|op)$")


def found(name: str) -> Any:
    """Find the object that a dotted name stands for.

    Raises:
        ImportError: if there is no such module.
        AttributeError: if a module or class has no such name.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise ImportError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_on_pages_can_be_imported(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in NAME.findall(text):
        if not FILE.search(name):
            found(name)
    for module, names in IMPORT.findall(text):
        for name in names.split(","):
            getattr(importlib.import_module(module), name.strip())


def public() -> Iterator[tuple[str, object]]:
    """Functions, classes and methods that users call, with their names."""
    classes: set[type] = {Optimizer}
    for module in (optgen, optgen_optim):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type):
                classes.add(value)
            elif callable(value):
                yield f"{module.__name__}.{name}", value
    for one in sorted(classes, key=lambda one: one.__name__):
        yield one.__name__, one
        for name, value in vars(one).items():
            if not name.startswith("_") and callable(value):
                yield f"{one.__name__}.{name}", value


def raised(value: object) -> list[str]:
    """The names of what a docstring says is raised."""
    section = re.search(r"(?m)^Raises:\n((?:    .*\n?|\n)+)", inspect.getdoc(value) or "")
    return re.findall(r"(?m)^    ([\w.]+):", section[1]) if section else []


def is_exported(exception: str) -> bool:
    """Check whether readers can write `except` with the name of an exception."""
    if "." in exception:
        return isinstance(found(exception), type)
    return any(hasattr(place, exception) for place in (builtins, optgen, optgen_optim))


def test_what_docstrings_say_is_raised_can_be_caught() -> None:
    missing = [(name, one) for name, value in public() for one in raised(value) if not is_exported(one)]
    assert missing == []


def test_docstrings_are_read() -> None:
    assert raised(optgen.load) == ["SpecError", "UserError"]
    assert raised(Optimizer.step)


def test_what_is_exported_is_listed() -> None:
    for name in optgen.__all__:
        assert getattr(optgen, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        optgen.nothing  # noqa: B018

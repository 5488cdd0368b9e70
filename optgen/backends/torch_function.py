"""A generated function of torch, as its template takes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FunctionText:
    """A block as a Python function, ready for the template.

    Attributes:
        types: The types that it names, beside `View`.
    """

    name: str
    head: tuple[str, ...]
    doc: str
    lines: tuple[str, ...]
    types: frozenset[str]
    stages: tuple[FunctionText, ...] = ()

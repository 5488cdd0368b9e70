"""Statements are verified wherever a compiler makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any
from unittest import mock

from optgen.backends.assignments import Assignments, Part
from support.statement_invariants import verify_statements

MAKE = Part.code


@contextmanager
def verified_statements() -> Iterator[list[Assignments]]:
    """Verify the statements of every function that is compiled meanwhile; they are collected."""
    made: list[Assignments] = []

    @wraps(MAKE)
    def code(part: Part, *args: Any, **kwargs: Any) -> Assignments:
        made.append(MAKE(part, *args, **kwargs))
        verify_statements(made[-1])
        return made[-1]

    with mock.patch.object(Part, "code", code):
        yield made

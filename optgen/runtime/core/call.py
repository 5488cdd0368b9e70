"""Argument of a compiled pass, as templates/include/optgen/call.h declares it."""

from __future__ import annotations

import ctypes

FIELDS = (
    "tensors",
    "chunks",
    "first",
    "threads",
    "table",
    "grads",
    "values",
    "chunk_table",
    "partials",
    "reduced",
    "lines",
    "scratch",
    "found_inf",
    "arrays",
    "wide",
)
"""Numbers and addresses, eight bytes each."""


class Call(ctypes.Structure):
    """Mirrors `Call` in call.h."""

    _fields_ = tuple((name, ctypes.c_int64) for name in FIELDS)

    def numbers(self) -> tuple[int, ...]:
        """The fields in their order."""
        return tuple(getattr(self, name) for name in FIELDS)

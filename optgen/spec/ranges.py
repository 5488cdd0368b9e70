"""Ranges as specs write them: `[0, 1)`, `(-inf, inf)`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_NUMBER = r"[-+]?(?:inf|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
_RANGE = re.compile(rf"\s*([\[(])\s*({_NUMBER})\s*,\s*({_NUMBER})\s*([\])])\s*")


@dataclass(frozen=True)
class Range:
    """The numbers between `low` and `high`; an open end is not part of it. NaN is in no range."""

    low: float
    high: float
    low_open: bool
    high_open: bool

    def contains(self, x: float) -> bool:
        """Check whether `x` lies in the range."""
        above = self.low < x if self.low_open else self.low <= x
        below = x < self.high if self.high_open else x <= self.high
        return above and below

    def __str__(self) -> str:
        low, high = _number(self.low), _number(self.high)
        return f"{'(' if self.low_open else '['}{low}, {high}{')' if self.high_open else ']'}"


def parse_range(text: str) -> Range:
    """Reads a range such as `[0, 1)`; a square bracket includes its end, a round one does not.

    Raises:
        ValueError: if the text is not a range, the range is empty, or an infinite end is included.
    """
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"`{text}` is not a range")
    opening, low_text, high_text, closing = match.groups()
    low, high = float(low_text), float(high_text)
    result = Range(low, high, opening == "(", closing == ")")
    if (math.isinf(low) and not result.low_open) or (math.isinf(high) and not result.high_open):
        raise ValueError(f"`{text}` includes an infinite end")
    if not low < high and not result.contains(low):
        raise ValueError(f"`{text}` is empty")
    return result


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e16 else repr(value)

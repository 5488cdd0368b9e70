"""Ranges are read, printed and tested exactly."""

from __future__ import annotations

import math

import pytest

from optgen.spec.ranges import Range, parse_range


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, 0.999], [-1e-9, 1, math.inf]),
        ("(0, 100]", [1e-300, 100], [0, 100.0001]),
        ("[0, inf)", [0, 1e308], [-1, math.inf, -math.inf]),
        ("(-inf, inf)", [-1e308, 0], [math.inf, -math.inf]),
        ("[1, 1]", [1], [0, 2]),
        ("[-1.5e-3, .5)", [-0.0015, 0.4], [-0.0016, 0.5]),
    ],
)
def test_contains(text: str, inside: list[float], outside: list[float]) -> None:
    allowed = parse_range(text)
    assert all(allowed.contains(x) for x in inside)
    assert not any(allowed.contains(x) for x in [*outside, math.nan])
    assert parse_range(str(allowed)) == allowed


def test_prints_as_written() -> None:
    assert str(parse_range(" ( 0 ,100 ] ")) == "(0, 100]"
    assert str(parse_range("[0.5, inf)")) == "[0.5, inf)"
    assert parse_range("[0, 1)") == Range(0.0, 1.0, False, True)


REFUSED = ["", "0 to 1", "[0, 1", "[1, 0]", "(1, 1)", "[0, inf]", "[nan, 1]", "[0,1,2]", "[a, b)"]


@pytest.mark.parametrize("text", REFUSED)
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="`"):
        parse_range(text)

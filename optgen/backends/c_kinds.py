"""Numbers of each kind in C++: how many there are, and which of them belongs to a number of a larger kind."""

from __future__ import annotations

from optgen.backends.code import Code, call
from optgen.ir.nodes import Kind

COUNTS = {
    Kind.MATRIX: "t.count(false, false)",
    Kind.ROW: "t.count(true, false)",
    Kind.COL: "t.count(false, true)",
    Kind.CHANNEL: "t.at(CHANNELS)",
    Kind.LAST: "t.at(COLS)",
    Kind.LAST2: "t.at(ROWS)",
    Kind.LAST3: "t.at(PLANES)",
    Kind.LAST4: "t.at(BLOCKS_OF_PLANES)",
}
"""Lengths of arrays."""
LENGTHS = {Kind.ROW: "t.at(ROWS)", Kind.COL: "t.at(COLS)"}
"""Numbers of a kind that a matrix has."""


def number_of(part: Kind, whole: Kind, index: str) -> str:
    """The index of the number of a kind that a number of a larger one has."""
    matrix = f"{index} / {LENGTHS[whole]}" if whole in LENGTHS else index
    match part:
        case Kind.MATRIX:
            return matrix
        case Kind.CHANNEL:
            return f"{index} / t.at(CHANNEL_ROWS)"
        case Kind.LAST | Kind.LAST2:
            return f"{index} % {COUNTS[part]}"
        case Kind.LAST4:
            matrix = f"{index} / ({LENGTHS[whole]} * t.at(PLANES))" if whole in LENGTHS else f"{index} / t.at(PLANES)"
    return f"{matrix} % {COUNTS[part]}"


def reduced(array: str, part: Kind, whole: Kind, way: str) -> Code:
    """The reduction of those numbers of an array that number `i` of a smaller kind has."""
    if part in (Kind.MATRIX, Kind.CHANNEL):
        length = "t.at(CHANNEL_ROWS)" if part is Kind.CHANNEL else LENGTHS[whole]
        return call(f"line_sum{way}", f"{array} + i * {length}", length)
    inner = {
        Kind.LAST3: LENGTHS.get(whole, "1"),
        Kind.LAST4: " * ".join([*filter(None, [LENGTHS.get(whole)]), "t.at(PLANES)"]),
    }
    return call(f"strided_sum{way}", array, "i", COUNTS[part], inner.get(part, "1"), COUNTS[whole])

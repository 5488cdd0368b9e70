"""Write templates/include/optgen/int8_books.h, the tables of the 8-bit codecs in C++, from optgen/codecs.py.

Usage: python tools/make_books.py [--check]
--check: write nothing; exit 1 with a message if the committed header is not what would be written.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import frexp
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "templates" / "include" / "optgen" / "int8_books.h"

sys.path.insert(0, str(ROOT))

from optgen.codecs import VALUE_SHIFT, code_book, float32, midpoints, value_lines  # noqa: E402  (runs from a checkout, without an installation)

DECADES = 7
BINADES = 32  # binades of the table of lines: from 2**-31, below every midpoint, to 2
# How far the lines of the first guess are moved down, in codes. A guess must never be too high and at most one too low.
# Within a decade that holds from 0 to 1; right after a decade's edge the first code starts only at 0.2 (its midpoint to
# the decade before is not on the grid), and the last code, 1.0, starts at 0.75: so 0.2 < GUESS_SHIFT < 0.75, and the
# middle leaves the most room for rounding.
GUESS_SHIFT = 0.475
# The decade whose line is compared with the binade's line. A binade holds at most one edge between decades. Where codes
# are few, one straight line across the edge is near enough; at 0.01 and 0.1 it is not, and both edges are this line's.
SHARED_LINE = 5
SMALLEST_MARGIN = 0.1  # in codes: what a guess by binades must keep from being wrong; rounding takes about 0.0001
FIXED_ONE = 2**16  # what a code is in fixed point: 255 of them are whole numbers in a float32
FIXED_WINDOW = 4  # how near to a whole code rounding can put what is on its other side, twice what it does

TEMPLATE = """\
// The tables of the 8-bit codecs. Written by tools/make_books.py from optgen/codecs.py: do not edit.
//
// Each struct Int8Tables<is_signed> holds
//   book      the values of the 256 codes;
//   midpoints midpoints[k] lies between magnitude k and k + 1: a magnitude above it has code k + 1 or higher. The last
//             entries are infinite, so that no index computed from a number in [0, 1] is out of range;
//   slope, offset
//             one line a decade: the smallest of slope[l] * y + offset[l], without its fraction, is the code of the
//             magnitude y or one less (the books are piecewise linear, and each decade's line is flatter than the one
//             before, so that the smallest of all lines is the right one);
//   binade_slope, binade_offset
//             the same with two lines only: line number shared_line above, and one for each binade, by exponent (entry
//             31 is for [1, 2), 30 for [0.5, 1) and so on);
//   level_edge, fixed_slope, fixed_offset, fixed_end
//             one line a level, which is a decade (with level 0 also zero, level 7 is the last code alone): a magnitude
//             above level_edge[l] is at level l or higher, and the smaller of fixed_slope[l] * y + fixed_offset[l] and
//             fixed_end[l] is its code in {one}ths, more by {window} than what it is;
//   value_shift, value_slope, value_offset
//             the book itself: with x = k + value_shift for magnitude k, and the lower three bits l of its exponent,
//             value_slope[l] * x + value_offset[l], rounded once, is the value;
//   book_bytes (signed: magnitude_bytes, the book's positive half)
//             the same numbers cut into four planes, the lowest byte of each first, for processors that look up 128
//             bytes at once.
#pragma once

#include <stdint.h>

#include "function.h"
#include "libm.h"

namespace optgen {{

template <bool is_signed>
struct Int8Tables;

{tables}
}}  // namespace optgen
"""

TABLES = """\
template <>
struct Int8Tables<{signed}> {{
  static constexpr int zero_code = {zero};
  OPTGEN_ALIGNED(64) static constexpr float book[256] = {{
{book}
  }};
  OPTGEN_ALIGNED(64) static constexpr float midpoints[{padded}] = {{
{midpoints}
  }};
  static constexpr float slope[{decades}] = {{
{slope}
  }};
  static constexpr float offset[{decades}] = {{
{offset}
  }};
  static constexpr int shared_line = {shared_line};
  OPTGEN_ALIGNED(64) static constexpr float binade_slope[{binades}] = {{
{binade_slope}
  }};
  OPTGEN_ALIGNED(64) static constexpr float binade_offset[{binades}] = {{
{binade_offset}
  }};
  OPTGEN_ALIGNED(64) static constexpr float level_edge[8] = {{
{level_edge}
  }};
  OPTGEN_ALIGNED(64) static constexpr float fixed_slope[8] = {{
{fixed_slope}
  }};
  OPTGEN_ALIGNED(64) static constexpr float fixed_offset[8] = {{
{fixed_offset}
  }};
  OPTGEN_ALIGNED(64) static constexpr float fixed_end[8] = {{
{fixed_end}
  }};
  static constexpr float value_shift = {value_shift}f;
  OPTGEN_ALIGNED(64) static constexpr float value_slope[8] = {{
{value_slope}
  }};
  OPTGEN_ALIGNED(64) static constexpr float value_offset[8] = {{
{value_offset}
  }};
  OPTGEN_ALIGNED(64) static constexpr uint8_t {plane_name}_bytes[4][{plane_size}] = {{
{book_bytes}
  }};
}};
"""


def render() -> str:
    """The header's text."""
    tables = "\n".join(_tables(signed) for signed in (True, False))
    return TEMPLATE.format(tables=tables, one=FIXED_ONE, window=FIXED_WINDOW)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if the header is out of date")
    options = parser.parse_args(arguments)
    text = render()
    current = HEADER.read_text(encoding="utf-8") if HEADER.exists() else ""
    if current == text:
        return 0
    if options.check:
        print(f"{HEADER.relative_to(ROOT)} is out of date: run `python tools/make_books.py`", file=sys.stderr)
        return 1
    HEADER.write_text(text, encoding="utf-8")
    return 0


def _tables(signed: bool) -> str:
    book = code_book(signed)
    padded = 128 if signed else 256
    thresholds = [*midpoints(signed), *[float("inf")] * (padded - len(midpoints(signed)))]
    lines = [guess_line(signed, decade) for decade in range(DECADES)]
    levels = [level_line(signed, level) for level in range(DECADES + 1)]
    binades = [binade_line(signed, exponent) for exponent in range(1 - BINADES, 1)]
    values = lines_by_exponent(signed)
    # The negative half of the signed book is the positive one with the sign changed: planes of magnitudes are enough,
    # and so that 128 entries do, magnitude k stands at k - 1 (zero is masked).
    planes = book[128:] if signed else book
    return TABLES.format(
        signed=str(signed).lower(),
        zero=127 if signed else 0,
        padded=padded,
        decades=DECADES,
        plane_name="magnitude" if signed else "book",
        plane_size=len(planes),
        book=_floats(book),
        midpoints=_floats(thresholds),
        slope=_floats([slope for slope, _ in lines]),
        offset=_floats([offset for _, offset in lines]),
        shared_line=SHARED_LINE,
        binades=BINADES,
        binade_slope=_floats([slope for slope, _ in binades]),
        binade_offset=_floats([offset for _, offset in binades]),
        level_edge=_floats([line.edge for line in levels]),
        fixed_slope=_floats([float32(line.slope * FIXED_ONE) for line in levels]),
        fixed_offset=_floats([float32(line.offset * FIXED_ONE + FIXED_WINDOW) for line in levels]),
        fixed_end=_floats([line.end * FIXED_ONE for line in levels]),
        value_shift=VALUE_SHIFT[signed],
        value_slope=_floats([slope for slope, _ in values]),
        value_offset=_floats([offset for _, offset in values]),
        book_bytes=_planes(planes),
    )


def guess_line(signed: bool, decade: int) -> tuple[float, float]:
    """(slope, offset) of the line that counts codes within a decade, moved down by GUESS_SHIFT; float32 numbers."""
    cells = 2 ** (decade if signed else decade + 1)
    first = cells if signed else cells - 1  # number of the decade's first magnitude
    slope = cells / (0.9 * 10.0 ** (decade - DECADES + 1))
    return float32(slope), float32(first - slope * 0.1 * 10.0 ** (decade - DECADES + 1) - GUESS_SHIFT)


def binade_line(signed: bool, exponent: int) -> tuple[float, float]:
    """(slope, offset) of the line for magnitudes from 2**exponent to twice that (at most to 1); float32 numbers.

    Its slope is that of the smallest of all lines but the shared one, from end to end; its offset the middle of those
    whose guesses are always right or one too low.
    """
    lines = [guess_line(signed, decade) for decade in range(DECADES)]
    shared = lines.pop(SHARED_LINE)
    low, high = 2.0**exponent, 2.0 ** (exponent + 1)
    slope = float32((_smallest(lines, high) - _smallest(lines, low)) / (high - low))
    high = min(high, 1.0)
    thresholds = midpoints(signed)
    below = {y: sum(threshold < y for threshold in thresholds) for y in (low, high)}
    inside = [(k, threshold) for k, threshold in enumerate(thresholds) if low <= threshold < high]
    # Code k is right up to threshold k, code k + 1 beyond it: at the threshold the guess must lie from k to k + 1.
    at_least = [(low, below[low] - 1.0), *[(threshold, float(k)) for k, threshold in inside]]
    at_most = [*[(threshold, k + 1.0) for k, threshold in inside], (high, min(below[high] + 1.0, len(thresholds)))]
    lower = max(guess - slope * y for y, guess in at_least)
    left = [(y, guess) for y, guess in at_most if _smallest([shared], y) > guess - SMALLEST_MARGIN]
    upper = min((guess - slope * y for y, guess in left), default=lower + 1)  # none left: the shared line does all
    if upper - lower < 2 * SMALLEST_MARGIN:
        raise AssertionError(f"no line from {low} to {high} of the {'signed' if signed else 'unsigned'} book")
    return slope, max(float32((lower + upper) / 2), 0.0)


@dataclass(frozen=True)
class LevelLine:
    """The line of a level, in codes: the smaller of slope * y + offset and end, for y above edge."""

    edge: float
    slope: float
    offset: float
    end: float


def level_line(signed: bool, level: int) -> LevelLine:
    """A decade's line with codes as whole numbers, level 0 bent to pass through the threshold of zero.

    The last level is the code of 1.0 alone. What is not finite ends there on a whole number, as if in doubt.
    """
    thresholds = midpoints(signed)
    cells = 2 ** (level if signed else level + 1)
    first = cells if signed else cells - 1
    if level == DECADES:
        return LevelLine(thresholds[-1], 0.25, len(thresholds) + 0.25, len(thresholds) + 1.0)
    decade = 10.0 ** (level - DECADES + 1)
    slope = cells / (0.9 * decade)
    offset = first - slope * 0.1 * decade
    if level == 0 and signed:  # codes 0 and 1
        slope, offset = 0.7 / thresholds[0], 0.3
    elif level == 0:  # codes 0 to 2
        slope = 1.0 / (thresholds[1] - thresholds[0])
        offset = 1.0 - slope * thresholds[0]
    return LevelLine(thresholds[first - 1] if level else -1.0, slope, offset, first + cells - 0.5)


def lines_by_exponent(signed: bool) -> list[tuple[float, float]]:
    """(slope, offset) of the lines of values, by the lower three bits of an exponent: a decade each.

    0 and 1 share one, since their exponents are 8 apart; with the products of its slope, which are exact or rounded to
    1, it gives both.
    """
    last, shift = (128 if signed else 255), VALUE_SHIFT[signed]
    slope = float32(1 / last)
    lines = {_line_of(signed, 0): (slope, -slope * shift)}
    for decade, line in enumerate(value_lines(signed)):
        lines[_line_of(signed, 2 ** (decade if signed else decade + 1) - (not signed))] = line
    found = [lines[entry] for entry in range(8)]
    for number, value in enumerate(code_book(signed)[127 if signed else 0 :]):
        slope, offset = found[_line_of(signed, number)]
        if float32(slope * (number + shift) + offset) != value:
            raise AssertionError(f"magnitude {number} of the {'signed' if signed else 'unsigned'} book is on no line")
    return found


def _line_of(signed: bool, number: int) -> int:
    return (frexp(number + VALUE_SHIFT[signed])[1] + 126) % 8


def _smallest(lines: Iterable[tuple[float, float]], y: float) -> float:
    return min(slope * y + offset for slope, offset in lines)


def _floats(values: Iterable[float]) -> str:
    return _rows([_literal(value) for value in values], 6)


def _literal(value: float) -> str:
    """Nine significant digits name each float32 exactly."""
    if value == float("inf"):
        return "OPTGEN_INFINITY"
    text = f"{value:.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"


def _planes(values: Sequence[float]) -> str:
    words = [struct.pack("<f", value) for value in values]
    return ",\n".join("   {\n" + _rows([f"0x{word[plane]:02x}" for word in words], 16) + "}" for plane in range(4))


def _rows(items: Sequence[str], per_row: int) -> str:
    rows = [", ".join(items[i : i + per_row]) for i in range(0, len(items), per_row)]
    return ",\n".join(f"    {row}" for row in rows)


if __name__ == "__main__":
    sys.exit(main())

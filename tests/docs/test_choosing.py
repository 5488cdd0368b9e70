"""docs/choosing.md and docs/environment.md: figures are those of the plans, variables those that are read."""

from __future__ import annotations

import re

import pytest
from support.compiling import ROOT, stock_package

CHOOSING = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
CLASSES = {info.name: info for info in stock_package().classes}
ROUNDING_BYTES = {"split16": 2.0, "split8": 1.0, "kahan": 2.0, "stochastic": 0.0}


def rows(name: str) -> list[list[str]]:
    """The cells of a marked table, without its head."""
    text = CHOOSING.split(f"<!-- {name} -->")[1].split("<!-- end -->")[0].strip()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def state_bytes(name: str, states: str) -> float:
    bits = re.match(r"(\d+) bits", states)
    return CLASSES[name].stored_in(int(bits[1])).state_bytes if bits else CLASSES[name].state_bytes


def shown(cells: list[str], each: float) -> None:
    """Compare the bytes of a parameter and what a model needs with bytes that were computed."""
    assert float(cells[0]) == pytest.approx(each, abs=0.0006)
    for cell, billions in zip(cells[1:], (1, 7, 70), strict=True):
        assert float(cell) == pytest.approx(each * billions, rel=0.005, abs=0.005)


@pytest.mark.parametrize("row", rows("states"), ids=lambda row: f"{row[0].strip('`')}-{row[1]}")
def test_states(row: list[str]) -> None:
    shown(row[2:], state_bytes(row[0].strip("`"), row[1]))


@pytest.mark.parametrize("row", rows("totals"), ids=lambda row: row[0])
def test_totals(row: list[str]) -> None:
    parameters, gradients, states = map(float, row[1:4])
    said = row[0] if "the same" not in row[0] else rows("totals")[rows("totals").index(row) - 1][0]
    name = re.search(r"`(\w+)`", said.split(",", 1)[1])
    rounding = re.search(r'rounding="(\w+)"', said)
    bits = re.search(r"in (\d+ bits)", said)
    assert name
    assert states == pytest.approx(state_bytes(name[1], bits[1] if bits else ""), abs=0.0006)
    own = 2.0 if "bfloat16" in said else 4.0
    assert parameters == own + (ROUNDING_BYTES[rounding[1]] if rounding else 0)
    assert gradients == (0 if "fused_backward" in row[0] else own)
    shown(row[4:], parameters + gradients + states)


def test_classes_are_there() -> None:
    for name in re.findall(r"`([A-Z]\w+)`", CHOOSING):
        assert name in CLASSES, name


def test_variables_are_those_that_are_read() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?m)^\| `(OPTGEN_\w+)` \|", page))
    pattern = re.compile(r"(?:environ(?:\.get\(|\[)|VARIABLE =)\s*\"(OPTGEN_\w+)\"")
    read = {name for path in (ROOT / "optgen").rglob("*.py") for name in pattern.findall(path.read_text("utf-8"))}
    assert named == read

"""Any text in a block compiles or is refused with a place; nothing else happens."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.compiling import compiled, probe

from optgen.compiler import common_parts
from optgen.diagnostics import SpecError

TEXT = """
param grad step active lr beta1 exp_avg kept size past rows_of total amsgrad mode pair ndim x y update sqrt norm sum
row_sum col_mean where push percentile min over=all over=matrix ( ) ( ) , = == > * - ** / if else elif : not and or
is None True 0 1 2.5 1e-8 'a' "left" . [ ] lambda // % & | ~ @ += pow clamp std sigmoid .mul_ .sum torch. self. np.
return max .data .grad dim= alpha= min= value= & <<
"""
WORDS = TEXT.split()
LINES = (
    "x = grad * grad", "if amsgrad:\n    kept = grad", "if mode == 'a':\n    x = 1\nelse:\n    x = grad", "y = norm(x)",
    "exp_avg = exp_avg + x", "size = y", "param = param - lr * x", "if ndim >= 2:\n    rows_of = row_mean(grad)",
    "past = push(past, y)", "active = active and grad > 0", "total = sum(x, over=all)", "grad = where(y > 1, x / y, x)",
    "x = rows_of * x", "y = percentile(past, 50)", "if beta1 is not None:\n    x = beta1 * x", "param = x",
)  # fmt: skip
soup = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join), max_size=4).map("\n".join)
programs = st.lists(st.sampled_from(LINES), max_size=10).map("\n".join)
bodies = st.one_of(soup, programs, st.text(max_size=60))


USES = """
if beta1 is not None:
    exp_avg = beta1 * exp_avg
if amsgrad:
    kept = 2 * kept
if mode == "a" and pair == "left":
    size = 2 * size
past = push(past, lr)
if ndim >= 2:
    rows_of = 2 * rows_of
total = total + lr
"""  # of everything that the probe declares


def outcome(body: str, uses: str = "") -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            planned = compiled(Path(folder), probe(body + uses))
        except SpecError as error:
            assert all(d.location is not None for d in error.diagnostics)
            return "refused"
        assert len(planned.renderings(common_parts([planned]))) == 5
        return "accepted"


@given(bodies, st.sampled_from(("", USES)))
@example("param = *grad / lr", "")
@settings(max_examples=100, deadline=None)
def test_every_block_compiles_or_is_refused(body: str, uses: str) -> None:
    outcome(body, uses)


def test_long_chains_are_taken_or_refused() -> None:
    for word in ("and", "or"):
        for length in (100, 200, 1000, 10_000):
            chain = f" {word} ".join(["y > 1"] * length)
            assert outcome(f"y = norm(grad)\nparam = where({chain}, param, grad)") == (
                "accepted" if length == 100 else "refused"
            )


@pytest.mark.parametrize(("count", "expected"), [(100, "accepted"), (300, "refused")])
@pytest.mark.parametrize("nested", [False, True])
def test_many_settings_are_taken_or_refused(count: int, expected: str, nested: bool) -> None:
    tests = [f"lr > {i}" for i in range(count)]
    lines = [f"if {test}:\n    x = x + grad" for test in tests]
    if nested:
        rows = [" and ".join(tests[i : i + 7]) for i in range(0, count, 7)]
        lines = [
            f"{'    ' * i}if {row}:\n{'    ' * (i + 1)}x = x + {' + '.join(['x'] * 100)}" for i, row in enumerate(rows)
        ]
    assert outcome("\n".join(["x = grad", *lines, "param = x"])) == expected


def test_both_happen() -> None:
    assert outcome("x = grad\nparam = x") == "accepted"
    assert outcome("x = ") == "refused"

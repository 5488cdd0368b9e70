"""docs/distributed.md: its bounds, links and commands. Its Python is run by tests/distributed, in several processes."""

from __future__ import annotations

import math
import re

import pytest
from distributed.scenarios.bounds import ADAM, CASES, MEAN, RATE, SIGNED, SQUARE, STEPS, UNSIGNED, drift, norms
from support.compiling import ROOT

PAGE = ROOT / "docs" / "distributed.md"
TEXT = PAGE.read_text(encoding="utf-8")
RULES = {"AdamW": "adamw", "StableAdamW": "stable_adamw", "LARS": "lars", "LAMB": "lamb", "Adafactor": "adafactor"}


@pytest.mark.parametrize("rule", RULES)
def test_bounds_are_those_that_tests_hold_it_to(rule: str) -> None:
    (shown,) = re.findall(rf"(?m)^\| {rule}(?: with `beta1`)? \| ([\d.]+)% \|", TEXT)
    bound = 100 * (CASES[RULES[rule]].bound - 1)
    assert float(shown) == math.ceil(10 * bound) / 10


def test_factors_are_those_that_bounds_are_made_of() -> None:
    assert STEPS == 3
    assert f"by a factor of {MEAN:.3f} in a state" in TEXT
    assert f"{MEAN:.3f}" == f"{SQUARE:.3f}"
    assert f"({ADAM:.3f} each)" in TEXT
    assert f"a factor of eight ({drift(SIGNED, 0.125):.2f})" in TEXT
    assert f"(a factor of {norms(RATE):.3f})" in TEXT
    assert f"({norms(0.1 * 0.02):.3f})" in TEXT
    assert f"at most {100 * SIGNED:.2f}% of" in TEXT.replace("\n", " ")
    assert f"and {100 * UNSIGNED:.2f}% where" in TEXT.replace("\n", " ")


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links
    for link in links:
        assert (PAGE.parent / link).exists(), link

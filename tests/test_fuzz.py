"""Specs at random become whole packages or are refused; `python tools/fuzz.py` tries them for hours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import fuzz
import pytest
from support.fuzzing import FaultError, c_faults, python_faults
from support.mutations import Case, make_case

CASES = 30
PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
def test_specs_at_random_become_whole_packages_or_are_refused(part: int) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(part * CASES, (part + 1) * CASES):
        found = fuzz.attempt(make_case(seed))
        assert isinstance(found, str), f"`python tools/fuzz.py --seed {seed}`:\n{found.said}"
        outcomes[found] += 1
    assert min(outcomes["accepted"], outcomes["refused"]) > CASES // 8


def test_a_seed_is_always_the_same_spec() -> None:
    assert make_case(17) == make_case(17)
    assert make_case(17) != make_case(18)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("void f() {\n  const double x = 1.0;\n  const float x = 2.0f;\n}\n", "x is declared twice"),
        ("void f() {\n  {\n    Tile<XCodec> x_tile;\n  }\n  Tile<XCodec> x_tile;\n}\n", ""),
        ("void f() {\n  for (int i = 0; i < n; ++i) {\n    float* const x = a;\n  }\n}\n", ""),
        ("void f() {  // }\n", "a bracket stays open"),
        ("void f() { \\\n}}\n", "a bracket closes nothing"),
        ("void f() { g(1; }\n", "a bracket stays open"),
    ],
)
def test_faults_of_kernels_are_seen(text: str, fault: str) -> None:
    assert next(c_faults(text), "") == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("def f(a):\n    return a + b\n", "f reads b, which nothing defines"),
        ("import b\ndef f(a):\n    return a + b.c\n", ""),
        ("class A:\n    pass\ndef A():\n    pass\n", "A is defined twice"),
    ],
)
def test_faults_of_modules_are_seen(text: str, fault: str) -> None:
    assert next(python_faults(text), "") == fault


def test_what_fails_is_kept_in_few_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case, folder: Path, compiler: str) -> str:
        if b"\ntwo\n" in case.files["a.yaml"] and b"\nfour\n" in case.files["a.yaml"]:
            raise FaultError("both")
        return "accepted"

    monkeypatch.setattr(fuzz, "examine", fail)
    found = fuzz.attempt(Case(3, {"a.yaml": b"zero\none\ntwo\nthree\nfour\nfive\n" * 3}))
    assert isinstance(found, fuzz.Failure)
    fuzz.keep(fuzz.reduced(found), tmp_path)
    assert (tmp_path / "3" / "a.yaml").read_bytes().count(b"\n") <= 6
    assert (tmp_path / "3" / "said.txt").read_text().strip().endswith("FaultError: both")

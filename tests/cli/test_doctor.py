"""The doctor's findings, also of machines that lack things."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from optgen import doctor
from optgen.doctor import Finding, examine, is_usable, readable_size


def named(findings: tuple[Finding, ...], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_a_missing_torch_is_said_and_makes_the_machine_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    findings = examine()
    assert named(findings, "torch").status == "missing"
    assert "pip install torch" in named(findings, "torch").advice
    assert not is_usable(findings)


def test_a_missing_compiler_is_advice_not_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from optgen.runtime import cache

    rejected = cache.Candidate("g++", "the search path", None, "is not installed")
    monkeypatch.setattr(cache, "compiler_candidates", lambda: iter([rejected]))
    findings = examine()
    finding = named(findings, "C++ compiler")
    assert finding.status == "missing"
    assert finding.found == "g++: is not installed"
    assert "torch target" in finding.advice
    assert is_usable(findings)


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("broken driver")

    monkeypatch.setitem(doctor._LOOKS, "CUDA", fail)
    assert named(examine(), "CUDA") == Finding("CUDA", "problem", "RuntimeError: broken driver")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (12_345_678, "12.3 MB"), (5e9, "5.0 GB")]
)
def test_sizes(size: int, text: str) -> None:
    assert readable_size(size) == text

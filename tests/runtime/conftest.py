"""Fixtures of the run time's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.machine import sweep_or_skip

from optgen.runtime.core import sweep


@pytest.fixture(params=["python", "compiled"])
def each_sweep(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to look at tensors."""
    monkeypatch.setattr(sweep, "used", sweep.PLAIN if request.param == "python" else sweep_or_skip())


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """Nothing is compiled yet, and nothing counted."""
    dynamo = pytest.importorskip("torch._dynamo")
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()

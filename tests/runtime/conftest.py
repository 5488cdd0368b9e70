"""Fixtures of the run time's tests."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

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
    _reset(dynamo)
    dynamo.utils.counters.clear()
    yield
    _reset(dynamo)


def _reset(dynamo: Any) -> None:
    """Reset the compiler, with the None that torch 2.13 has for all functions.

    That keeps for good where a traced `backward` last found it, a gradient of some function's, and any function that is
    compiled later would take what it returns from there.
    """
    dynamo.reset()
    none = getattr(importlib.import_module("torch._dynamo.variables.constant"), "CONSTANT_VARIABLE_NONE", None)
    if none is not None:
        none.source = None

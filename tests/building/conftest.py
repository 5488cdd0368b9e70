"""Fixtures for tests of building: nothing is built but what a test asks for, with the flags that users have."""

from __future__ import annotations

import pytest
from support.owners import Give, giving

from optgen.runtime.building import cache


@pytest.fixture(autouse=True)
def _as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTGEN_CXXFLAGS", raising=False)
    monkeypatch.setattr(cache, "parsed_headers", lambda compiler, folder: ())


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """Gives a file, folder or link to another user."""
    return giving(monkeypatch)

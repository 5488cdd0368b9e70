"""Fixtures for tests of building: nothing is built but what a test asks for, with the flags that users have."""

from __future__ import annotations

import pytest

from optgen.runtime.building import cache


@pytest.fixture(autouse=True)
def _as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPTGEN_CXXFLAGS", raising=False)
    monkeypatch.setattr(cache, "parsed_headers", lambda compiler: ())

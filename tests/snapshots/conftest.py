"""`pytest tests/snapshots --update-golden` writes the goldens again; read the diff."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/snapshots/goldens again")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True if goldens are to be written."""
    return bool(request.config.getoption("--update-golden", default=False))

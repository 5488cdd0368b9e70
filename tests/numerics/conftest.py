"""Fixtures of numeric tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.targets import GPU, ready


@pytest.fixture(params=["torch", "cpu", "cuda", pytest.param(GPU, marks=pytest.mark.gpu)])
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each target: cuda on the stand-in, and on a GPU, where whatever tensor the test makes then lies."""
    with ready(request.param) as name:
        yield name

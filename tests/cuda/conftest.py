"""Fixtures for tests of paged states: the stand-in, the memory that it can page in, and how much at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import standin
from support.paged import KINDS, MANAGED, PORTIONS, earlier, small_portions
from support.targets import require_standin


@pytest.fixture
def driver() -> Iterator[standin.Driver]:
    """The stand-in, serving CPU tensors."""
    require_standin()
    driver = standin.load()
    gc.collect()
    gc.freeze()  # what is alive now need not be looked at again
    earlier.update(allocation.pointer for allocation in driver.live_allocations())
    yield driver
    driver.reset()
    earlier.clear()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, driver: standin.Driver) -> str:
    """The memory that states are paged in, which is what the device can do."""
    driver.configure(concurrent_managed_access=request.param == MANAGED)
    return str(request.param)


@pytest.fixture(params=PORTIONS.values(), ids=PORTIONS)
def portion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """All states at once, or in portions that split parameters."""
    if request.param is not None:
        small_portions(monkeypatch, request.param)
    return request.param

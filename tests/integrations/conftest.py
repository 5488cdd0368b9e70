"""What the tests of other libraries share: a fresh state of accelerate, whose settings hold for a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _accelerate_begins_anew() -> Iterator[None]:
    yield
    state = pytest.importorskip("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()

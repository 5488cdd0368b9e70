"""What this machine can run."""

from __future__ import annotations

import pytest


def require_compiler() -> None:
    """Skip where no C++ compiler is found."""
    cache = pytest.importorskip("optgen.runtime.cache")
    if cache.find_compiler() is None:
        pytest.skip("no C++ compiler on this machine")

"""Files that belong to another user, whoever runs the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ANOTHER = 54321
Give = Callable[[Path, int], None]


def giving(monkeypatch: pytest.MonkeyPatch) -> Give:
    """A function that gives a file, folder or link to a user, as far as `os.lstat` tells."""
    owners: dict[str, int] = {}
    lstat = os.lstat

    def owned(path: str | Path) -> os.stat_result:
        found = lstat(path)
        owner = owners.get(os.fspath(path))
        return found if owner is None else os.stat_result((*found[:4], owner, *found[5:]))

    monkeypatch.setattr(os, "lstat", owned)
    return lambda path, user: owners.__setitem__(os.fspath(path), user)

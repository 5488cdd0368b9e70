"""Temporary folders of a process and of those forked from it: each goes with the last of them.

A folder is held by a lock on it, which forked processes share and which the system takes back when the last of them
ends, however it ends. Who ends in order and finds that nobody else holds the folder removes it; what killed processes
left is removed by the next that makes one. Programs that clean up /tmp pass over locked folders.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from optgen.runtime.building.trusted_path import follow

PREFIX = "optgen-held-"
ABANDONED_SECONDS = 3600.0  # a folder that is younger may not be held yet


def temporary_dir() -> Path:
    """Make an empty folder that nobody else may read or write, removed when all processes that use it have ended.

    Raises:
        OSError: if none can be made where others could not put another in its place.
    """
    parent = Path(tempfile.gettempdir()).absolute()
    follow(parent / PREFIX)
    _remove_abandoned(parent)
    fresh = Path(tempfile.mkdtemp(prefix=PREFIX))
    atexit.register(_leave, fresh, _hold(fresh), os.getpid())
    return fresh


def _leave(directory: Path, held: int | None, maker: int) -> None:
    """Give up a folder at the end of a process, and remove it if no other holds it."""
    if held is None:
        if os.getpid() == maker:
            shutil.rmtree(directory, ignore_errors=True)
        return
    with suppress(OSError):
        if os.path.samestat(
            os.fstat(held), directory.stat()
        ):  # a daemon may have closed it, and its number be another's
            os.close(held)
        _remove_if_free(directory)


def _remove_abandoned(parent: Path) -> None:
    """Remove what processes of this user left behind."""
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    for directory in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            found = os.lstat(directory)
            if found.st_uid == user and time.time() - found.st_mtime > ABANDONED_SECONDS:
                _remove_if_free(directory)


def _remove_if_free(directory: Path) -> None:
    held = _hold(directory, alone=True)
    if held is not None:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _hold(directory: Path, *, alone: bool = False) -> int | None:
    """Lock a folder, if its file system has locks and nobody else holds it `alone`; return the open folder."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(opened, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        return None
    return opened

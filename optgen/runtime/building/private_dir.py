"""The per-user folder that compiled kernels are kept in: who may write there, locks, atomic writes, leftovers.

Libraries from this folder are loaded into the process, so it must belong to the user alone. Where the wanted folder
cannot be had, a fresh temporary one serves this process and is removed at its end.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from optgen.runtime.building.temporary import temporary_dir

TEMPORARY_PREFIX = ".tmp-"
LOCK_PREFIX = "lock-"
ENTRY_NAME = re.compile(r".+-[0-9a-f]{32}\.(so|gch|cubin)|(compiler|nvcc)-[0-9a-f]{32}\.json")
STALE_SECONDS = 3600.0
LOCK_TIMEOUT_SECONDS = 900.0

_fallbacks: dict[Path, Path] = {}
_locks: dict[int, threading.Lock] = {}  # by process: a forked one does not have the thread that holds its parent's


def cache_dir() -> Path:
    """Return the folder of compiled kernels, made with mode 0700 if it does not exist.

    It is `$OPTGEN_CACHE_DIR` where that is set, else the user's cache folder (`~/.cache/optgen` on Linux). A folder
    that cannot be made, or that belongs to someone else, is replaced by a private temporary one, with one warning.
    """
    wanted = _wanted_dir()
    fallback = _fallbacks.get(wanted)
    if fallback is not None:
        return fallback
    try:
        _make_private(wanted)
    except OSError as error:
        return fall_back(wanted, str(error))
    return wanted


def fall_back(wanted: Path, reason: str) -> Path:
    """Use a private temporary folder in place of `wanted` from now on, and say so once.

    Raises OSError if no temporary folder can be made either.
    """
    with _locks.setdefault(os.getpid(), threading.Lock()):
        known = _fallbacks.get(wanted)
        if known is not None:
            return known
        fresh = temporary_dir()
        _fallbacks[wanted] = fresh
    warnings.warn(
        f"optgen cannot use the cache folder {wanted} ({reason}); kernels are compiled into {fresh} for this process "
        "only. Set OPTGEN_CACHE_DIR to a folder that you own and can write to.",
        RuntimeWarning,
        stacklevel=3,
    )
    return fresh


def is_fallback(directory: Path) -> bool:
    """Say whether `directory` is one of this process's temporary folders."""
    return directory in _fallbacks.values()


def _wanted_dir() -> Path:
    override = os.environ.get("OPTGEN_CACHE_DIR")
    if override:
        wanted = Path(override)
        with suppress(RuntimeError):  # "~someone" that nobody knows
            wanted = wanted.expanduser()
        return wanted.absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("optgen", appauthor=False))


def _make_private(directory: Path) -> None:
    """Make `directory` with mode 0700, or bring an own one to it. Raises OSError if it is not to be trusted."""
    if not directory.is_absolute():
        raise OSError("the user has no home folder")
    try:
        found = directory.stat()
    except FileNotFoundError:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            directory.mkdir(0o700)
        found = directory.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise OSError("it is not a folder")
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid != os.geteuid():
        raise OSError(f"it belongs to user {found.st_uid}, this is user {os.geteuid()}")
    mode = stat.S_IMODE(found.st_mode)
    if mode == 0o700:
        return
    if all(_is_ours(path.name) for path in directory.iterdir()):
        directory.chmod(0o700)
    elif mode & 0o022:
        # Somebody's /tmp or project folder: not ours to close, and not to be trusted as it is.
        raise OSError(f"others may write to it (mode {mode:o}) and it holds other files too")


def _is_ours(name: str) -> bool:
    return name.startswith((TEMPORARY_PREFIX, LOCK_PREFIX)) or ENTRY_NAME.fullmatch(name) is not None


@contextmanager
def locked(directory: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` of `directory` against other processes and threads.

    Where the file system has no locks, or the holder hangs, work goes on without one: every write is atomic, so the
    worst that can happen is that the same thing is built twice.
    """
    import filelock

    lock = filelock.FileLock(directory / f"{LOCK_PREFIX}{name}", timeout=LOCK_TIMEOUT_SECONDS, mode=0o600)
    held = False
    with suppress(OSError, NotImplementedError, filelock.Timeout):
        lock.acquire()
        held = True
    try:
        yield
    finally:
        if held:
            lock.release()


@contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """Give a new folder inside `directory`, on the same file system, and remove it afterwards. Raises OSError."""
    fresh = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-", dir=directory))
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def publish(temporary: Path, target: Path) -> None:
    """Move a finished file to its place so that others see all of it or nothing, also after a power cut."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, target)
    with suppress(OSError):
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_own(path: Path) -> bytes | None:
    """Return the file's bytes, or None if it is missing, unreadable, not ours, or writable by others."""
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
                return None
            return file.read()
    except OSError:
        return None


def remove_unused(directory: Path, pattern: str, days: float) -> None:
    """Remove the files of a name's form that nobody has read for so many days."""
    for path in directory.glob(pattern):
        with suppress(OSError):
            found = path.stat()
            if time.time() - max(found.st_atime, found.st_mtime) > days * 86400:
                path.unlink()


def remove_stale(directory: Path) -> None:
    """Remove what builds that were killed more than an hour ago left behind."""
    for path in directory.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path)

"""The per-user folder that compiled kernels are kept in: who may write there, locks, atomic writes, leftovers.

Libraries from this folder are loaded into the process, so it must belong to the user alone. Where the wanted folder
cannot be had, a fresh temporary one serves this process and is removed at its end.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from optgen.runtime.building.temporary import temporary_dir
from optgen.runtime.building.trusted_path import OTHERS_WRITE, follow, others_write

TEMPORARY_PREFIX = ".tmp-"
LOCK_PREFIX = "lock-"
# The user may have named a folder that holds other things too: what is removed is told by its whole name.
ENTRY_NAME = re.compile(r".+-[0-9a-f]{32}\.(so|gch|cubin)|(catalogue|compiler|nvcc)-[0-9a-f]{32}\.json")
LOCK_NAME = re.compile(rf"{re.escape(LOCK_PREFIX)}([0-9a-f]{{2}}|compiler|nvcc)")
TEMPORARY_NAME = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}\d+-[a-z0-9_]{{8}}")  # as tempfile.mkdtemp makes it
STALE_SECONDS = 3600.0
LOCK_TIMEOUT_SECONDS = 900.0

_fallbacks: dict[Path, Path] = {}
_locks: dict[int, threading.Lock] = {}  # by process: a forked one does not have the thread that holds its parent's


def cache_dir() -> Path:
    """Return the folder of compiled kernels, made with mode 0700 if it does not exist.

    It is `$OPTGEN_CACHE_DIR` where that is set, else the user's cache folder (`~/.cache/optgen` on Linux). A folder
    that cannot be made, that belongs to someone else, or that others could exchange for another is replaced by a
    private temporary one, with one warning.
    """
    wanted = wanted_dir()
    fallback = _fallbacks.get(wanted)
    if fallback is not None:
        return fallback
    reason = why_not_usable(wanted)
    return fall_back(wanted, reason) if reason else wanted


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
        "only. Set OPTGEN_CACHE_DIR to a folder of your own that you can write to, in folders that only you and root "
        "can write to.",
        RuntimeWarning,
        stacklevel=3,
    )
    return fresh


def is_fallback(directory: Path) -> bool:
    """Check whether `directory` is one of this process's temporary folders."""
    return directory in _fallbacks.values()


def wanted_dir() -> Path:
    """Return the folder of compiled kernels that is wanted, which may not be usable."""
    override = os.environ.get("OPTGEN_CACHE_DIR")
    if override:
        wanted = Path(override)
        with suppress(RuntimeError):  # "~someone" that nobody knows
            wanted = wanted.expanduser()
        return wanted.absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("optgen", appauthor=False))


def why_not_usable(directory: Path) -> str:
    """Make the folder if it does not exist; return why it cannot be used, "" if it can."""
    try:
        _make_private(directory)
    except OSError as error:
        return str(error)
    return ""


def _make_private(directory: Path) -> None:
    """Make `directory` with mode 0700, or bring an own one to it. Raises OSError if it is not to be trusted."""
    if not directory.is_absolute():
        raise OSError("the user has no home folder")
    directory = follow(directory)
    above = itertools.takewhile(lambda folder: not folder.exists(), (directory, *directory.parents))
    for missing in reversed(list(above)):
        with suppress(FileExistsError):
            missing.mkdir(0o700)
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode):
        raise OSError("it is not a folder")
    if not hasattr(os, "geteuid"):
        return
    if found.st_uid != os.geteuid():
        raise OSError(f"it belongs to user {found.st_uid}, this is user {os.geteuid()}")
    mode = stat.S_IMODE(found.st_mode)
    if mode == 0o700:
        return
    if others_write(found):
        # Somebody's /tmp or project folder: not ours to close, and what lies in it not to be trusted.
        if any(directory.iterdir()):
            raise OSError(f"others may write to it (mode {mode:o}) and it is not empty")
        directory.chmod(0o700)
        if any(directory.iterdir()):
            raise OSError(f"others wrote to it (mode {mode:o}) while it was closed to them")
    elif all(_is_ours(path.name) for path in directory.iterdir()):
        directory.chmod(0o700)


def _is_ours(name: str) -> bool:
    return any(form.fullmatch(name) for form in (ENTRY_NAME, LOCK_NAME, TEMPORARY_NAME))


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


@contextmanager
def open_own(path: Path) -> Iterator[BinaryIO | None]:
    """Give a file of the user's own, open for reading; None if it is missing, unreadable, not ours, or others write."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            found = os.fstat(file.fileno())
        except OSError:
            yield None
            return
        foreign = hasattr(os, "geteuid") and (found.st_uid != os.geteuid() or bool(found.st_mode & OTHERS_WRITE))
        yield None if foreign else file


def read_own(path: Path) -> bytes | None:
    """Return the bytes of such a file, or None."""
    with suppress(OSError), open_own(path) as file:
        return None if file is None else file.read()
    return None


_ways = itertools.count()


def way_to(file: BinaryIO, path: Path) -> str:
    """Return a path to an open file, whatever stands at its own `path` by now; that where the system has no such path.

    It is spelled in another way each time: to those who load libraries a path seen before is the library loaded then.
    """
    way = next(_ways)
    proc, own, numbers = ("/" * (1 + way // 64**place % 64) for place in range(3))
    opened = f"/proc{proc}self{own}fd{numbers}{file.fileno()}"
    return opened if Path(opened).exists() else str(path)


def named(directory: Path, form: re.Pattern[str]) -> Iterator[Path]:
    """Yield what lies in a folder under names of a form, in the order of the names."""
    with suppress(OSError):
        # Every build asks, of a folder of thousands: paths are made of those names only that have the form.
        names = [entry.name for entry in os.scandir(directory)]
        yield from (directory / name for name in sorted(filter(form.fullmatch, names)))


def remove_unused(directory: Path, form: re.Pattern[str], days: float) -> None:
    """Remove the files of a name's form that nobody has read for so many days."""
    for path in named(directory, form):
        with suppress(OSError):
            found = path.stat()
            if time.time() - max(found.st_atime, found.st_mtime) > days * 86400:
                path.unlink()


def remove_stale(directory: Path) -> None:
    """Remove what builds that were killed more than an hour ago left behind."""
    for path in named(directory, TEMPORARY_NAME):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path)

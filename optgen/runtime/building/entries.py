"""The entries of the compile cache, of any kind: built once, checked whenever they are loaded, healed when damaged.

An entry is named after everything that decides its content, so it never has to be invalidated. It ends in a footer
with its length and SHA-256, so that what a full disk or a crash damaged is told from a good one before it is loaded.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from optgen.log import logger
from optgen.paths import include_dir
from optgen.runtime.building.forks import renew_in_child
from optgen.runtime.building.notice import notice
from optgen.runtime.building.private_dir import (
    ENTRY_NAME,
    LOCK_NAME,
    TEMPORARY_NAME,
    cache_dir,
    fall_back,
    is_fallback,
    locked,
    named,
    open_own,
    publish,
    remove_stale,
    scratch,
    way_to,
)
from optgen.runtime.building.programs import Output, out_of_space

MESSAGE_LINES = 12
FOOTER = struct.Struct("<Q32s8s")
FOOTER_MARK = b"optgen\x00\x01"

Loaded = TypeVar("Loaded")
LOG = logger(__name__)


class CompileError(RuntimeError):
    """A kernel could not be built or loaded. The message shows the command, what was said, and what to do."""


class _CannotStore(OSError):
    """The cache folder takes no new entries (full, read-only); another folder may."""


@dataclass(frozen=True)
class Kernel(Generic[Loaded]):
    """Recipe for building and loading one kernel.

    Attributes:
        source: Its source, for messages.
        compiler: The compiler's path, for messages.
        key: Hashes everything that decides the content; called again after building, when the source may have changed.
        name: The entry's file name for a key.
        build: Runs the compiler: (where the result goes, a folder for other files). Raises OSError.
        load: Loads an entry: (a path to the very file that was checked, its content without the footer), while the
            file is open. Raises OSError for what cannot be loaded.
        advice: Advice for users without such a kernel.
        unloadable: Possible cause when a kernel that was just built cannot be loaded: a sentence about a folder.
        optional: Whether it is done without where the cache folder takes no more; else another folder is taken.
        told: Said to the user while it is built for longer than a moment; "" for nothing.
    """

    source: Path
    compiler: str
    key: Callable[[], str]
    name: Callable[[str], str]
    build: Callable[[Path, Path], Output]
    load: Callable[[str, bytes], Loaded]
    advice: str
    unloadable: Callable[[Path], str]
    optional: bool = False
    told: str = ""


class Loader(Generic[Loaded]):
    """Gives kernels of one kind, each built by one thread and loaded once a process."""

    def __init__(self) -> None:
        self.loaded: dict[str, Loaded] = {}
        self._renew_locks()
        renew_in_child(self._renew_locks)

    def _renew_locks(self) -> None:
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def get(self, kernel: Kernel[Loaded]) -> Loaded:
        """Return the kernel, building it only if no cache has it.

        Raises:
            CompileError: when it cannot be built, stored or loaded.
        """
        for _ in range(3):
            key = kernel.key()
            with self._guard:
                lock = self._locks.setdefault(key, threading.Lock())
            with lock:
                known = self.loaded.get(key)
                if known is not None:
                    return known
                made = _load_or_build(kernel, key)
                # A source that was rewritten while it was compiled must not be loaded under its old key.
                if made is not None:
                    self.loaded[key] = made
                    return made
        raise CompileError(f"{kernel.source} kept changing while it was compiled; try again when nothing writes it")


class Hash:
    """A SHA-256 of texts and bytes in which no two sequences run together."""

    def __init__(self, *parts: str | bytes) -> None:
        self._digest = hashlib.sha256()
        self.add(*parts)

    def add(self, *parts: str | bytes) -> None:
        """Take up further parts."""
        for part in parts:
            data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            self._digest.update(struct.pack("<Q", len(data)) + data)

    def add_defines(self, defines: Mapping[str, str]) -> None:
        """Take up macros, in whatever order they are given."""
        for name in sorted(defines):
            self.add("define", name, defines[name])

    def add_source(self, source: Path) -> None:
        """Take up a source, what it includes from beside it, and all headers of `optgen.paths.include_dir()`.

        Raises:
            CompileError: when one of them cannot be read.
        """
        try:
            for path in _with_included(source):
                self.add("source", path.read_bytes())
            root = include_dir()
            for header in sorted(path for path in root.rglob("*") if path.is_file()):
                self.add("header", str(header.relative_to(root)), header.read_bytes())
        except OSError as error:
            raise CompileError(
                f"cannot read the C++ source of a kernel: {error}\nReinstall optgen, or run `optgen build` again."
            ) from None

    def hexdigest(self) -> str:
        """The hash of what was taken up so far."""
        return self._digest.hexdigest()


INCLUDE = re.compile(rb'^#include "(\w+\.h)"$', re.MULTILINE)


def _with_included(source: Path) -> list[Path]:
    """A source and the headers beside it that it includes, and they."""
    paths = [source]
    for path in paths:
        found = (source.with_name(name.decode()) for name in INCLUDE.findall(path.read_bytes()))
        paths += [header for header in found if header not in paths]
    return paths


def words(defines: Mapping[str, str]) -> tuple[str, ...]:
    """The arguments that every compiler takes: where the headers are, and the macros."""
    return (f"-I{include_dir()}", *(f"-D{name}={defines[name]}" for name in sorted(defines)))


def with_footer(content: bytes) -> bytes:
    """Append the footer by which a content is checked."""
    return content + FOOTER.pack(len(content), hashlib.sha256(content).digest(), FOOTER_MARK)


def without_footer(data: bytes | None) -> bytes | None:
    """Return the content if it is there, and byte for byte what was built; else None."""
    if data is None or len(data) < FOOTER.size:
        return None
    length, digest, mark = FOOTER.unpack_from(data, len(data) - FOOTER.size)
    content = data[: len(data) - FOOTER.size]
    whole = mark == FOOTER_MARK and length == len(content) and hashlib.sha256(content).digest() == digest
    return content if whole else None


def cache_size() -> tuple[int, int]:
    """Return how many files the cache holds, and their bytes."""
    files = total = 0
    for path in named(cache_dir(), ENTRY_NAME):
        with suppress(OSError):
            total += path.stat().st_size
            files += 1
    return files, total


def clear_cache() -> tuple[int, int]:
    """Empty the cache; return how many files were removed, and their bytes. Only files made by optgen are touched.

    Kernels that are loaded already go on working. Builds that run at this moment are left alone.
    """
    directory = cache_dir()
    files = total = 0
    for path in named(directory, ENTRY_NAME):
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            files += 1
            total += size
    remove_stale(directory)
    if not any(named(directory, TEMPORARY_NAME)):
        for path in named(directory, LOCK_NAME):
            with suppress(OSError):
                path.unlink()
    return files, total


def _load_or_build(kernel: Kernel[Loaded], key: str) -> Loaded | None:
    """Load the entry, building it if it is missing or damaged; None if the source changed meanwhile."""
    try:
        directory = cache_dir()
    except OSError as error:
        raise CompileError(f"no folder for compiled kernels can be made: {error}\n{kernel.advice}") from None
    anew = False
    while True:
        entry = directory / kernel.name(key)
        try:
            return _load_entry(kernel, key, entry, anew)
        except _CannotStore as error:
            if kernel.optional or is_fallback(directory):
                raise CompileError(
                    f"cannot store the compiled kernel {entry}: {error}\n"
                    f"Make room there, or set OPTGEN_CACHE_DIR to another folder. {kernel.advice}"
                ) from None
            directory = _leave(directory, str(error), kernel.advice)
        except OSError as error:
            if anew:
                raise CompileError(
                    f"the kernel was built from {kernel.source} but cannot be loaded: {error}\n"
                    f"{kernel.unloadable(directory)} {kernel.advice}"
                ) from None
            anew = True


def _leave(directory: Path, reason: str, advice: str) -> Path:
    """Give up a cache folder for this process. Raises CompileError if there is no other."""
    try:
        return fall_back(directory, reason)
    except OSError as error:
        raise CompileError(f"cannot write to {directory} ({reason}) nor anywhere else: {error}\n{advice}") from None


def _load_entry(kernel: Kernel[Loaded], key: str, entry: Path, anew: bool) -> Loaded | None:
    """Load an entry, building it if need be; None if the source changed. Raises OSError if it cannot be loaded."""
    made = None if anew else load_stored(kernel, entry)
    if made is not None:
        LOG.debug("loaded %s, compiled earlier: %s", kernel.source, entry)
        return made
    with locked(entry.parent, key[-2:]):
        # Another process may have built it while this one waited.
        made = None if anew else load_stored(kernel, entry)
        if made is not None:
            return made
        built = _build(kernel, key, entry)
        if built is None:
            return None
    with built:
        made = _load(kernel, built, entry)
    if made is None:
        raise OSError(f"{entry} is not what was written")
    return made


def load_stored(kernel: Kernel[Loaded], entry: Path) -> Loaded | None:
    """Load what is stored: the very file that is checked, whatever takes its place meanwhile.

    Returns:
        None if it is missing, not the user's own, or not byte for byte what was built.

    Raises:
        OSError: if it cannot be loaded.
    """
    with open_own(entry) as file:
        return None if file is None else _load(kernel, file, entry)


def _load(kernel: Kernel[Loaded], file: BinaryIO, entry: Path) -> Loaded | None:
    content = without_footer(file.read())
    if content is None:
        return None
    way = way_to(file, entry)
    try:
        return kernel.load(way, content)
    except OSError as error:
        raise OSError(str(error).replace(way, str(entry))) from None


def _build(kernel: Kernel[Loaded], key: str, entry: Path) -> BinaryIO | None:
    """Compile into a folder beside the entry, then move the result into place; None if the source changed.

    Returns the result as an open file: the entry may be gone by now, cleared or damaged by others.
    """
    try:
        remove_stale(entry.parent)
        with scratch(entry.parent) as temporary:
            output = temporary / f"kernel{entry.suffix}"
            begun = time.perf_counter()
            try:
                with notice(kernel.told):
                    done = kernel.build(output, temporary)
            except OSError as error:
                raise CompileError(f"cannot run the compiler {kernel.compiler}: {error}\n{kernel.advice}") from None
            if done.status != 0 or not output.exists():
                full = out_of_space(done, temporary)
                if full:
                    raise _CannotStore(full)
                raise CompileError(_compiler_failed(kernel, done))
            if kernel.key() != key:
                return None
            LOG.info("compiled %s in %.1f s: %s", kernel.source, time.perf_counter() - begun, entry)
            LOG.debug("the command was: %s", shlex.join(done.command))
            output.write_bytes(with_footer(output.read_bytes()))
            output.chmod(0o700)
            built = output.open("rb")
            try:
                publish(output, entry)
            except BaseException:
                built.close()
                raise
    except _CannotStore:
        raise
    except OSError as error:
        raise _CannotStore(str(error)) from None
    return built


def _compiler_failed(kernel: Kernel[Loaded], done: Output) -> str:
    lines = done.said.strip().splitlines()
    # Warnings may be many; the first error is what has to be seen.
    start = next((i for i, line in enumerate(lines) if "error" in line.lower() or "fatal" in line.lower()), 0)
    start = start if start >= MESSAGE_LINES else 0
    shown = lines[start : start + MESSAGE_LINES]
    if len(lines) > start + MESSAGE_LINES:
        shown.append(f"... {len(lines) - start - MESSAGE_LINES} more lines")
    if done.status == 0:
        ended = "it wrote nothing"
    else:
        ended = f"exit status {done.status}" if done.status > 0 else f"killed by signal {-done.status}"
    message = "\n  ".join(shown) or "(it printed nothing)"
    return f"compiling {kernel.source} failed ({ended})\n  {shlex.join(done.command)}\n  {message}\n{kernel.advice}"

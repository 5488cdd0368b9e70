"""The compile cache: C++ source in, loaded shared library out.

An entry is named after everything that decides its content, so it never has to be invalidated: the source and the
headers, the defines, the compiler with its flags, the processor. It ends in a footer with its length and SHA-256, so
that what a full disk or a crash damaged is told from a good one before it is loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shlex
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from optgen.paths import include_dir
from optgen.runtime.compilers import (
    FORMAT_VERSION,
    Candidate,
    Compiler,
    compile_library,
    compiler_candidates,
    find_compiler,
    first_line,
    processor,
    why_no_compiler,
)
from optgen.runtime.private_dir import (
    ENTRY_NAME,
    LOCK_PREFIX,
    TEMPORARY_PREFIX,
    cache_dir,
    fall_back,
    is_fallback,
    locked,
    publish,
    read_own,
    remove_stale,
    scratch,
)

__all__ = [
    "Candidate",
    "CompileError",
    "Compiler",
    "cache_dir",
    "cache_size",
    "clear_cache",
    "compiler_candidates",
    "find_compiler",
    "processor",
    "shared_library",
    "why_no_compiler",
]

MESSAGE_LINES = 12
FOOTER = struct.Struct("<Q32s8s")
FOOTER_MARK = b"optgen\x00\x01"
OUT_OF_SPACE = ("No space left on device", "Disk quota exceeded", "Read-only file system")

_libraries: dict[str, ctypes.CDLL] = {}
_libraries_lock = threading.Lock()


class CompileError(RuntimeError):
    """A kernel could not be built or loaded. The message shows the command, what was said, and what to do."""


class _CannotStore(OSError):
    """The cache folder takes no new entries (full, read-only); another folder may."""


def shared_library(source: Path, defines: Mapping[str, str], compiler: Compiler) -> ctypes.CDLL:
    """Return the library built from `source` with `-D` for each of `defines`, building it only if no cache has it.

    The headers of `optgen.paths.include_dir()` are found by the compiler; headers beside the source are not part of an
    entry's key and must not be included. Safe to call from many processes and threads at once. Import torch first:
    the library then shares torch's OpenMP threads.

    Raises CompileError.
    """
    with _libraries_lock:
        for _ in range(3):
            openmp = _renamed_openmp()
            key = _entry_key(source, defines, compiler, openmp)
            library = _libraries.get(key)
            if library is not None:
                return library
            library = _load_or_build(source, defines, compiler, openmp, key)
            # A source that was rewritten while it was compiled must not be loaded under its old key.
            if library is not None:
                _libraries[key] = library
                return library
        raise CompileError(f"{source} kept changing while it was compiled; try again when nothing writes it")


def cache_size() -> tuple[int, int]:
    """Return how many files the cache holds, and their bytes."""
    files = total = 0
    for path in _entries(cache_dir()):
        with suppress(OSError):
            total += path.stat().st_size
            files += 1
    return files, total


def clear_cache() -> tuple[int, int]:
    """Empty the cache; return how many files were removed, and their bytes. Only files made by optgen are touched.

    Libraries that are loaded already go on working. Builds that run at this moment are left alone.
    """
    directory = cache_dir()
    files = total = 0
    for path in _entries(directory):
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            files += 1
            total += size
    remove_stale(directory)
    if not any(directory.glob(f"{TEMPORARY_PREFIX}*")):
        for path in directory.glob(f"{LOCK_PREFIX}*"):
            with suppress(OSError):
                path.unlink()
    return files, total


def _entries(directory: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from (path for path in sorted(directory.iterdir()) if ENTRY_NAME.fullmatch(path.name))


def _entry_key(source: Path, defines: Mapping[str, str], compiler: Compiler, openmp: str | None) -> str:
    """Hash everything that decides what the compiler makes."""
    digest = hashlib.sha256()

    def add(*parts: str | bytes) -> None:
        for part in parts:
            data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            digest.update(struct.pack("<Q", len(data)) + data)

    add(str(FORMAT_VERSION), processor(), compiler.version, *compiler.command, openmp or "")
    add("flags", *compiler.flags)
    for name in sorted(defines):
        add("define", name, defines[name])
    try:
        add("source", source.read_bytes())
        root = include_dir()
        for header in sorted(path for path in root.rglob("*") if path.is_file()):
            add("header", str(header.relative_to(root)), header.read_bytes())
    except OSError as error:
        raise CompileError(
            f"cannot read the C++ source of a kernel: {error}\nReinstall optgen, or run `optgen build` again."
        ) from None
    return digest.hexdigest()


def _load_or_build(
    source: Path, defines: Mapping[str, str], compiler: Compiler, openmp: str | None, key: str
) -> ctypes.CDLL | None:
    """Load the entry, building it if it is missing or damaged; None if the source changed meanwhile."""
    try:
        directory = cache_dir()
    except OSError as error:
        raise CompileError(f"no folder for compiled kernels can be made: {error}\n{_advice()}") from None
    name = f"{source.stem}-{key[:32]}.so"
    failure = ""
    while True:
        entry = directory / name
        try:
            for attempt in range(2):
                if attempt > 0 or not _is_whole(entry):
                    with locked(directory, key[0]):
                        # Another process may have built it while this one waited.
                        needed = attempt > 0 or not _is_whole(entry)
                        if needed and not _build(source, defines, compiler, openmp, key, entry):
                            return None
                try:
                    return ctypes.CDLL(str(entry))
                except OSError as error:
                    failure = str(error)
        except _CannotStore as error:
            if is_fallback(directory):
                raise CompileError(
                    f"cannot store the compiled kernel {entry}: {error}\n"
                    f"Make room there, or set OPTGEN_CACHE_DIR to another folder. {_advice()}"
                ) from None
            directory = _leave(directory, str(error))
            continue
        raise CompileError(
            f"the kernel was built from {source} but cannot be loaded: {failure}\n"
            f"If {directory} is mounted noexec, set OPTGEN_CACHE_DIR to another folder. {_advice()}"
        )


def _leave(directory: Path, reason: str) -> Path:
    """Give up a cache folder for this process. Raises CompileError if there is no other."""
    try:
        return fall_back(directory, reason)
    except OSError as error:
        raise CompileError(f"cannot write to {directory} ({reason}) nor anywhere else: {error}\n{_advice()}") from None


def _build(
    source: Path, defines: Mapping[str, str], compiler: Compiler, openmp: str | None, key: str, entry: Path
) -> bool:
    """Compile into a folder beside the entry, then move the result into place; False if the source changed."""
    arguments = [f"-I{include_dir()}", *(f"-D{name}={defines[name]}" for name in sorted(defines))]
    # The loader matches libraries by name, and torch's may carry another one than the compiler's own.
    libraries = [] if openmp is None else ["-Wl,--as-needed", openmp]
    try:
        remove_stale(entry.parent)
        with scratch(entry.parent) as temporary:
            output = temporary / "kernel.so"
            try:
                command, status, said = compile_library(
                    compiler, [*arguments, str(source.absolute()), *libraries, "-o", str(output)], temporary
                )
            except OSError as error:
                raise CompileError(f"cannot run the compiler {compiler.path}: {error}\n{_advice()}") from None
            if status != 0:
                if any(phrase in said for phrase in OUT_OF_SPACE):
                    raise _CannotStore(first_line(said))
                raise CompileError(_compiler_failed(source, command, status, said))
            if _entry_key(source, defines, compiler, openmp) != key:
                return False
            content = output.read_bytes()
            with output.open("ab") as file:
                file.write(FOOTER.pack(len(content), hashlib.sha256(content).digest(), FOOTER_MARK))
            output.chmod(0o700)
            publish(output, entry)
    except _CannotStore:
        raise
    except OSError as error:
        raise _CannotStore(str(error)) from None
    return True


def _is_whole(entry: Path) -> bool:
    """Say whether the entry is there, ours, and byte for byte what was built."""
    data = read_own(entry)
    if data is None or len(data) < FOOTER.size:
        return False
    length, digest, mark = FOOTER.unpack_from(data, len(data) - FOOTER.size)
    content = memoryview(data)[: len(data) - FOOTER.size]
    return bool(mark == FOOTER_MARK and length == len(content) and hashlib.sha256(content).digest() == digest)


def _compiler_failed(source: Path, command: tuple[str, ...], status: int, said: str) -> str:
    lines = said.strip().splitlines()
    shown = lines[:MESSAGE_LINES]
    if len(lines) > MESSAGE_LINES:
        shown.append(f"... {len(lines) - MESSAGE_LINES} more lines")
    ended = f"exit status {status}" if status >= 0 else f"killed by signal {-status}"
    message = "\n  ".join(shown) or "(it printed nothing)"
    return f"compiling {source} failed ({ended})\n  {shlex.join(command)}\n  {message}\n{_advice()}"


def _advice() -> str:
    return (
        'To go on without compiled kernels, pass target="torch" to the optimizer; '
        "to use another compiler, set OPTGEN_CXX; `optgen doctor` shows what was found."
    )


_OPENMP_FILE = re.compile(r"libgomp-[0-9A-Za-z]+\.so[.\d]*")
_openmp_found: list[str] = []


def _renamed_openmp() -> str | None:
    """Return the path of a loaded libgomp whose file carries a name of its own, as some torch wheels ship it.

    One named libgomp.so.1 needs no care: the loader takes it for any library that asks for this name.
    """
    if _openmp_found:
        return _openmp_found[0]
    with suppress(OSError), Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            path = line.rstrip("\n").partition("/")[2]
            if "libgomp-" in path and _OPENMP_FILE.fullmatch(path.rpartition("/")[2]):
                _openmp_found.append(f"/{path}")
                return _openmp_found[0]
    return None

"""The programs that build kernels: finding them, running them, remembering on disk what was found out about them."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from optgen.runtime.building.private_dir import fall_back, is_fallback, locked, publish, read_own, scratch

FORMAT_VERSION = 1
PROBE_TIMEOUT_SECONDS = 120.0
COMPILE_TIMEOUT_SECONDS = 600.0
LOW_PRIORITY = 10
TIMED_OUT = 124  # as an exit status
OUT_OF_SPACE = ("No space left on device", "Disk quota exceeded", "Read-only file system")
ROOM = 4 << 20  # bytes that a compiler has use for


class Program(Protocol):
    """Description of a program: a frozen dataclass of texts and tuples of texts, which JSON can hold."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def command(self) -> tuple[str, ...]:
        """The program and the words that stand before every other argument."""


Found = TypeVar("Found", bound=Program)


@dataclass(frozen=True)
class Candidate(Generic[Found]):
    """A compiler that was looked for: `name` as asked for and by whom, and the reason why it cannot serve, if so."""

    name: str
    origin: str
    compiler: Found | None
    reason: str = ""


def first_found(candidates: Iterable[Candidate[Found]]) -> Found | None:
    """The first that serves; later ones are not examined."""
    return next((candidate.compiler for candidate in candidates if candidate.compiler is not None), None)


def why_none(candidates: Iterable[Candidate[Any]]) -> str:
    """In one line what was looked for and why none of it serves; "" if one does."""
    reasons = []
    for candidate in candidates:
        if candidate.compiler is not None:
            return ""
        reasons.append(f"{candidate.name}: {candidate.reason}")
    return "; ".join(reasons)


@dataclass(frozen=True)
class Output:
    """A run that has ended: the command, its exit status (negative for a signal) and all that it printed."""

    command: tuple[str, ...]
    status: int
    said: str


def resolve(name: str, search_path: str) -> tuple[str, ...] | None:
    """Return program and leading arguments: `name` is a program, or a command line such as "ccache g++".

    Symbolic links are kept, since ccache and wrappers look at their name.
    """
    whole = shutil.which(name, path=search_path)
    if whole is not None:
        return (str(Path(whole).absolute()),)
    try:
        words = shlex.split(name)
    except ValueError:
        return None
    program = shutil.which(words[0], path=search_path) if words else None
    return None if program is None else (str(Path(program).absolute()), *words[1:])


def run(command: Sequence[str], temporary: Path, timeout: float, behind: bool = False) -> Output:
    """Run a program in the folder `temporary`, with English messages and its temporary files there.

    It ends when time is up or this process is interrupted or ends, with all that it has started.

    Args:
        behind: Whether it is to leave the processor to others.

    Raises:
        OSError: if it cannot be run.
    """
    environment = dict(os.environ, LC_ALL="C", TMPDIR=str(temporary))
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env=environment,
        # Compilers search the folder that they run in where CPATH or its like has an empty word.
        cwd=temporary,
        start_new_session=True,  # a compiler is several programs, which can only be ended together
    ) as process:
        _running[process] = os.getpid()
        try:
            if behind and sys.platform != "win32":
                with suppress(OSError):
                    os.setpriority(os.PRIO_PGRP, process.pid, LOW_PRIORITY)
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _end(process)
            return Output(tuple(command), TIMED_OUT, f"no answer after {timeout:.0f} seconds")
        except BaseException:
            _end(process)
            raise
        finally:
            del _running[process]
    return Output(tuple(command), process.returncode, said)


_running: dict[subprocess.Popen[str], int] = {}  # with the process that started it, which alone may end it


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(OSError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)


@atexit.register
def end_all() -> None:
    """End the programs that threads of this process wait for."""
    for process, starter in list(_running.items()):
        if starter == os.getpid():
            _end(process)


def first_line(text: str) -> str:
    """Return the first line that says what is wrong: one with "error" in it if there is one, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")


def out_of_space(done: Output, folder: Path) -> str:
    """Return why there was no place for the files of a program that failed: "No space left on device"; "" if there was.

    Args:
        folder: Folder of those files. Some programs, as linkers, say nothing of the disk, or die of it.
    """
    for phrase in OUT_OF_SPACE:
        if phrase in done.said:
            return phrase
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def identity(words: Sequence[str]) -> str:
    """Describe programs without running them: for every word its text, and the file behind it if it names one."""
    described = []
    for word in words:
        described.append(word)
        # Every word that names a program counts: behind "ccache g++" both may change.
        program = word if Path(word).is_absolute() else (None if word.startswith("-") else shutil.which(word))
        with suppress(OSError):
            if program is not None:
                found = Path(program).stat()
                described += [str(Path(program).resolve()), str(found.st_mtime_ns), str(found.st_size)]
    return "\0".join(described)


def examine(
    kind: str,
    command: tuple[str, ...],
    facts: str,
    directory: Path,
    read: Callable[[Any], Found],
    probe: Callable[[Path], Found | str],
) -> Found | str:
    """Return what is known of a program, or the reason why it cannot serve.

    What was found out is kept in `directory`, or in its fallback where it cannot be written; reasons are not kept.

    Args:
        kind: Beginning of the record's name: "compiler", "nvcc".
        command: The program and its leading arguments.
        facts: Whatever else decides what is found, as text; one record each.
        read: Makes the result from JSON; raises ValueError, KeyError or TypeError for what is none.
        probe: Tries the program out, given a folder for its files; may raise OSError.
    """
    known = f"{FORMAT_VERSION}\0{facts}\0{identity(command)}"
    name = f"{kind}-{hashlib.sha256(known.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.json"
    try:
        return _remembered(kind, command, directory, name, read, probe)
    except OSError as error:
        if not is_fallback(directory):
            try:
                return _remembered(kind, command, fall_back(directory, str(error)), name, read, probe)
            except OSError as second:
                error = second
        return f"cannot be tried: {error}"


def _remembered(
    kind: str,
    command: tuple[str, ...],
    directory: Path,
    name: str,
    read: Callable[[Any], Found],
    probe: Callable[[Path], Found | str],
) -> Found | str:
    """Read what is known of the program from disk, or try it out and write that down. Raises OSError."""
    record = directory / name
    known = _read_record(record, command, read)
    if known is not None:
        return known
    with locked(directory, kind):
        known = _read_record(record, command, read)
        if known is not None:
            return known
        with scratch(directory) as temporary:
            found = probe(temporary)
            if isinstance(found, str):
                return found
            written = temporary / "record.json"
            written.touch(mode=0o600)
            written.write_text(json.dumps(asdict(found)), encoding="utf-8")
            publish(written, record)
            return found


def _read_record(record: Path, command: tuple[str, ...], read: Callable[[Any], Found]) -> Found | None:
    data = read_own(record)
    if data is None:
        return None
    try:
        found = read(json.loads(data))
    except (ValueError, KeyError, TypeError):
        return None
    return found if found.command == command else None

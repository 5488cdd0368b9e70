"""Finding a C++ compiler that can build the kernels, and remembering on disk what was found out about it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from optgen.runtime.private_dir import cache_dir, fall_back, is_fallback, locked, publish, read_own, scratch

FORMAT_VERSION = 1
PROBE_TIMEOUT_SECONDS = 120.0
COMPILE_TIMEOUT_SECONDS = 600.0

COMMON_FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fopenmp",
    # Products and sums are rounded one by one, as in torch's own operations, so that both targets agree.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)

PROBE = """\
#include <optional>
#include <omp.h>
int main() {
    std::optional<int> threads;
#pragma omp parallel num_threads(2)
#pragma omp single
    threads = omp_get_num_threads();
    return threads.value_or(0) >= 1 ? 0 : 1;
}
"""


@dataclass(frozen=True)
class Compiler:
    """A compiler that builds OpenMP C++17 for this machine.

    `path` is the program as found (symbolic links kept, since ccache and wrappers look at their name), `arguments` are
    words that stand before every other argument, `flags` those that this compiler takes for this processor.
    """

    path: str
    version: str
    family: Literal["gcc", "clang"]
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = COMMON_FLAGS

    @property
    def command(self) -> tuple[str, ...]:
        return (self.path, *self.arguments)


@dataclass(frozen=True)
class Candidate:
    """A compiler that was looked for: `name` as asked for and by whom, and the reason why it cannot serve, if so."""

    name: str
    origin: str
    compiler: Compiler | None
    reason: str = ""


def find_compiler() -> Compiler | None:
    """Return the first compiler that builds OpenMP C++17, or None.

    `$OPTGEN_CXX` alone is tried where it is set; otherwise `$CXX`, g++, clang++ and c++, in this order.
    """
    for candidate in compiler_candidates():
        if candidate.compiler is not None:
            return candidate.compiler
    return None


def why_no_compiler() -> str:
    """Return in one line what was looked for and why none of it serves; "" if a compiler was found."""
    reasons = []
    for candidate in compiler_candidates():
        if candidate.compiler is not None:
            return ""
        reasons.append(f"{candidate.name}: {candidate.reason}")
    return "; ".join(reasons)


def compiler_candidates() -> Iterator[Candidate]:
    """Yield what is looked for, in order. Later ones are examined only when they are asked for."""
    forced = os.environ.get("OPTGEN_CXX")
    if forced:
        wanted = [(forced, "OPTGEN_CXX")]
    else:
        own = os.environ.get("CXX")
        wanted = [(own, "CXX")] if own else []
        wanted += [(name, "PATH") for name in ("g++", "clang++", "c++")]
    for name, origin in wanted:
        yield _examine(name, origin, os.environ.get("PATH", os.defpath), str(cache_dir()))


@functools.lru_cache(maxsize=64)
def _examine(name: str, origin: str, search_path: str, directory: str) -> Candidate:
    """Look at one candidate, once a process."""
    if os.name == "nt":
        return Candidate(name, origin, None, "building kernels is not supported on Windows")
    command = _resolve(name, search_path)
    if command is None:
        return Candidate(name, origin, None, "not found")
    try:
        return _identify(name, origin, command, Path(directory))
    except OSError as error:
        if not is_fallback(Path(directory)):
            try:
                return _identify(name, origin, command, fall_back(Path(directory), str(error)))
            except OSError as second:
                error = second
        return Candidate(name, origin, None, f"cannot be tried: {error}")


def _resolve(name: str, search_path: str) -> tuple[str, ...] | None:
    """Return program and leading arguments: `name` is a program, or a command line such as "ccache g++"."""
    whole = shutil.which(name, path=search_path)
    if whole is not None:
        return (str(Path(whole).absolute()),)
    try:
        words = shlex.split(name)
    except ValueError:
        return None
    program = shutil.which(words[0], path=search_path) if words else None
    return None if program is None else (str(Path(program).absolute()), *words[1:])


def _identify(name: str, origin: str, command: tuple[str, ...], directory: Path) -> Candidate:
    """Read what is known of the compiler from disk, or try it out and write that down. Raises OSError."""
    key = _command_key(command)
    record = directory / f"compiler-{key}.json"
    known = _read_record(record, command)
    if known is not None:
        return Candidate(name, origin, known)
    with locked(directory, "compiler"):
        known = _read_record(record, command)
        if known is not None:
            return Candidate(name, origin, known)
        with scratch(directory) as temporary:
            found = _probe(command, temporary)
            if isinstance(found, str):
                return Candidate(name, origin, None, found)
            written = temporary / "record.json"
            written.touch(mode=0o600)
            written.write_text(json.dumps(asdict(found)), encoding="utf-8")
            publish(written, record)
            return Candidate(name, origin, found)


def _command_key(command: tuple[str, ...]) -> str:
    """Hash what tells one compiler from another without running it: its path, the file behind it, this processor."""
    digest = hashlib.sha256(f"{FORMAT_VERSION}\0{processor()}\0".encode())
    for word in command:
        digest.update(word.encode("utf-8", "surrogateescape") + b"\0")
        # Every word that names a program counts: behind "ccache g++" both may change.
        program = word if Path(word).is_absolute() else (None if word.startswith("-") else shutil.which(word))
        with suppress(OSError):
            if program is not None:
                found = Path(program).stat()
                real = Path(program).resolve()
                digest.update(f"{real}\0{found.st_mtime_ns}\0{found.st_size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _read_record(record: Path, command: tuple[str, ...]) -> Compiler | None:
    data = read_own(record)
    if data is None:
        return None
    try:
        fields = json.loads(data)
        family = fields["family"]
        if family not in ("gcc", "clang"):
            return None
        found = Compiler(
            str(fields["path"]), str(fields["version"]), family, tuple(fields["arguments"]), tuple(fields["flags"])
        )
    except (ValueError, KeyError, TypeError):
        return None
    return found if found.command == command else None


def _probe(command: tuple[str, ...], temporary: Path) -> Compiler | str:
    """Try the compiler out; return it, or the reason why it cannot serve."""
    version = _run((*command, "--version"), temporary, PROBE_TIMEOUT_SECONDS)
    if version.returncode != 0:
        return f"`--version` failed: {first_line(version.stdout)}"
    family: Literal["gcc", "clang"] = "clang" if "clang" in version.stdout.lower() else "gcc"
    source = temporary / "probe.cpp"
    source.write_text(PROBE, encoding="utf-8")
    message = ""
    for processor_flags in _processor_flags():
        flags = (*COMMON_FLAGS[:1], *processor_flags, *COMMON_FLAGS[1:])
        # A program rather than a library: it can be run without loading a second OpenMP into this process.
        as_program = [flag for flag in flags if flag not in ("-shared", "-fPIC")]
        program = temporary / "probe"
        built = _run((*command, *as_program, str(source), "-o", str(program)), temporary, PROBE_TIMEOUT_SECONDS)
        if built.returncode == 0:
            ran = _run((str(program),), temporary, PROBE_TIMEOUT_SECONDS)
            if ran.returncode == 0:
                return Compiler(command[0], version.stdout.strip(), family, command[1:], flags)
            message = f"a program it built does not run here (exit status {ran.returncode}): {first_line(ran.stdout)}"
        else:
            message = f"it does not build OpenMP C++17: {first_line(built.stdout)}"
    return message.rstrip(": ")


def _processor_flags() -> Iterator[tuple[str, ...]]:
    """Yield flags that tune for this processor, best first; the last ones are accepted everywhere."""
    if "avx512f" in processor().split():
        yield ("-march=native", "-mprefer-vector-width=512")
    yield ("-march=native",)
    if platform.machine().lower() in ("arm64", "aarch64"):
        yield ("-mcpu=native",)
    yield ()


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """Describe this processor: what decides the instructions that -march=native uses, and how it tunes for them."""
    kept: dict[str, str] = {}
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        # The first processor only: on large machines the whole file takes long to make.
        for line in file:
            name, colon, value = line.partition(":")
            if not colon and kept:
                break
            name = name.strip()
            if name in ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU part", "isa"):
                kept[name] = value.strip()
    described = " ".join(f"{name} {value}" for name, value in kept.items())
    return f"{platform.system()} {platform.machine()} {described or platform.processor()}"


def compile_library(compiler: Compiler, arguments: Sequence[str], temporary: Path) -> tuple[tuple[str, ...], int, str]:
    """Run the compiler; return the command, its exit status and what it printed. Raises OSError."""
    command = (*compiler.command, *compiler.flags, *arguments)
    done = _run(command, temporary, COMPILE_TIMEOUT_SECONDS)
    return command, done.returncode, done.stdout


def _run(command: Sequence[str], temporary: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a program with English messages and its temporary files in `temporary`. Raises OSError."""
    environment = dict(os.environ, LC_ALL="C", TMPDIR=str(temporary))
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, f"no answer after {timeout:.0f} seconds")


def first_line(text: str) -> str:
    """Return the first line that says what is wrong: one with "error" in it if there is one, else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")

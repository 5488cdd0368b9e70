"""Finding a C++ compiler that can build the kernels, and remembering on disk what was found out about it."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from optgen.paths import include_dir
from optgen.runtime.building.flags import COMMON_FLAGS, OPENMP, Family, as_program, attempts
from optgen.runtime.building.private_dir import cache_dir
from optgen.runtime.building.programs import (
    COMPILE_TIMEOUT_SECONDS,
    PROBE_TIMEOUT_SECONDS,
    Candidate,
    Output,
    examine,
    first_found,
    first_line,
    out_of_space,
    resolve,
    run,
    why_none,
)

PROBE = """\
#include <optgen/threads.h>
#include <optional>
int main() {
    std::optional<int> threads = 0;
    int ran[2] = {};
    optgen::with_threads(2, [&](const optgen::Team& team) { team.each(2, [&](int64_t i) { ran[i] = 1; }); });
    *threads = ran[0] + ran[1];
    return threads.value_or(0) == 2 ? 0 : 1;
}
"""

WINDOWS_LLVM = Path(r"C:\Program Files\LLVM\bin\clang-cl.exe")
VERSIONED = re.compile(r"g\+\+-\d+").fullmatch

# What compilers define for the instructions that they may use, widest first.
WIDTHS = (
    ("__AVX512F__", "AVX-512", 512),
    ("__AVX2__", "AVX2", 256),
    ("__AVX__", "AVX", 256),
    ("__SSE2__", "SSE2", 128),
    ("__ARM_NEON", "NEON", 128),
)


@dataclass(frozen=True)
class Compiler:
    """A compiler that builds kernels for this machine: C++17, with OpenMP's threads or our own.

    `path` is the program as found (symbolic links kept, since ccache and wrappers look at their name), `arguments` are
    words that stand before every other argument, `flags` those that this compiler takes for this processor.
    """

    path: str
    version: str
    family: Family
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = (*COMMON_FLAGS, OPENMP)

    @property
    def openmp(self) -> bool:
        """True if kernels run on OpenMP's threads, which torch shares."""
        return OPENMP in self.flags and "-fno-openmp" not in self.flags

    @property
    def command(self) -> tuple[str, ...]:
        """The words that a command line begins with."""
        return (self.path, *self.arguments)


def find_compiler() -> Compiler | None:
    """Return the first compiler that builds kernels, or None.

    `$OPTGEN_CXX` alone is tried where it is set; otherwise `$CXX`, g++, clang++, c++, and g++ by a version (`g++-15`,
    as brew calls it), in this order; on Windows clang-cl. The words of `$OPTGEN_CXXFLAGS` stand behind all others.
    """
    return first_found(compiler_candidates())


def why_no_compiler() -> str:
    """Return in one line what was looked for and why none of it serves; "" if a compiler was found."""
    return why_none(compiler_candidates())


def compiler_candidates() -> Iterator[Candidate[Compiler]]:
    """Yield what is looked for, in order. Later ones are examined only when they are asked for."""
    forced = os.environ.get("OPTGEN_CXX")
    if forced:
        wanted = [(forced, "OPTGEN_CXX")]
    else:
        own = os.environ.get("CXX")
        wanted = [(own, "CXX")] if own else []
        wanted += [(name, "PATH") for name in _usual()]
    for name, origin in wanted:
        more = os.environ.get("OPTGEN_CXXFLAGS", "")
        try:
            directory = str(cache_dir())
        except OSError as error:
            yield Candidate(name, origin, None, f"cannot be tried: {error}")
            continue
        yield _examine(name, origin, os.environ.get("PATH", os.defpath), directory, more)


def _usual() -> list[str]:
    """Names of compilers, in the order in which they are tried."""
    if platform.system() == "Windows":
        return ["clang-cl", str(WINDOWS_LLVM)]
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    found = {
        path.name: int(path.name[4:])
        for folder in folders
        for path in folder.glob("g++-[0-9]*")
        if VERSIONED(path.name)
    }
    return ["g++", "clang++", "c++", *sorted(found, key=found.__getitem__, reverse=True)]


@functools.lru_cache(maxsize=64)
def _examine(name: str, origin: str, search_path: str, directory: str, more: str) -> Candidate[Compiler]:
    """Examine one candidate, once a process."""
    command = resolve(name, search_path)
    if command is None:
        return Candidate(name, origin, None, "not found")
    try:
        own = tuple(shlex.split(more))
    except ValueError as error:
        return Candidate(name, origin, None, f"OPTGEN_CXXFLAGS is not a list of words: {error}")
    tried = [flag for family in get_args(Family) for words in attempts(family, processor(), own) for flag in words]
    facts = "\0".join((processor(), *own, *tried))
    found = examine("compiler", command, facts, Path(directory), _read, lambda folder: _probe(command, own, folder))
    return Candidate(name, origin, None, found) if isinstance(found, str) else Candidate(name, origin, found)


def _read(fields: Any) -> Compiler:
    """Read the record of a compiler. Raises ValueError, KeyError or TypeError for what is no such record."""
    family = fields["family"]
    if family not in get_args(Family):
        raise ValueError(family)
    return Compiler(
        str(fields["path"]), str(fields["version"]), family, tuple(fields["arguments"]), tuple(fields["flags"])
    )


def _probe(command: tuple[str, ...], own: tuple[str, ...], temporary: Path) -> Compiler | str:
    """Try the compiler out; return it, or the reason why it cannot serve."""
    version = run((*command, "--version"), temporary, PROBE_TIMEOUT_SECONDS)
    if version.status != 0:
        return f"`--version` failed: {first_line(version.said)}"
    family: Family = "clang" if "clang" in version.said.lower() else "gcc"
    if Path(command[0]).stem.lower() == "clang-cl":
        family = "clang-cl"
    source = temporary / "probe.cpp"
    source.write_text(PROBE, encoding="utf-8")
    message = ""
    for tried in attempts(family, processor(), own):
        flags = (*tried, *own)
        program = temporary / "probe.exe"
        words = (*command, *as_program(flags), f"-I{include_dir()}", str(source), "-o", str(program))
        built = run(words, temporary, PROBE_TIMEOUT_SECONDS)
        if built.status == 0:
            ran = run((str(program),), temporary, PROBE_TIMEOUT_SECONDS)
            if ran.status == 0:
                return Compiler(command[0], version.said.strip(), family, command[1:], flags)
            failed = ran
            message = f"a program it built does not run here (exit status {ran.status}): {first_line(ran.said)}"
        else:
            failed = built
            message = f"it does not build C++17: {first_line(built.said)}"
        full = out_of_space(failed, temporary)
        if full:
            raise OSError(f"{full} in {temporary.parent}")
    return message.rstrip(": ")


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


def compile_library(compiler: Compiler, arguments: Sequence[str], temporary: Path) -> Output:
    """Run the compiler. Raises OSError."""
    return run((*compiler.command, *compiler.flags, *arguments), temporary, COMPILE_TIMEOUT_SECONDS)


def vectors(compiler: Compiler) -> str:
    """Instructions for vectors that kernels are compiled to, and their width: "AVX2, 256 bits"."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.cpp"
        empty.touch()
        flags = [flag for flag in compiler.flags if flag != "-shared"]
        asked = run((*compiler.command, *flags, "-dM", "-E", str(empty)), Path(folder), PROBE_TIMEOUT_SECONDS)
    defined = set(re.findall(r"#define (\w+)", asked.said))
    found = next(((name, bits) for macro, name, bits in WIDTHS if macro in defined), None)
    if found is None:
        return "no vectors"
    chosen = [flag.rpartition("=")[2] for flag in compiler.flags if flag.startswith("-mprefer-vector-width=")]
    bits = min([found[1], *map(int, filter(str.isdigit, chosen[-1:]))])
    return f"{found[0]}, {bits} bits"

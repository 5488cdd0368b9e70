"""The headers of kernels as g++ keeps them once it has parsed them (a precompiled header), beside the kernels.

Parsing them takes about half of the time in which a kernel is compiled; what is compiled is the same, byte for byte.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from pathlib import Path

from optgen.paths import include_dir
from optgen.runtime.building.compilers import Compiler, processor
from optgen.runtime.building.entries import CompileError, Hash, Kernel, Loader, load_stored
from optgen.runtime.building.private_dir import cache_dir, remove_unused
from optgen.runtime.building.programs import COMPILE_TIMEOUT_SECONDS, FORMAT_VERSION, run

HEADER = Path("optgen", "cpu.h")  # the one that every kernel includes first
SUFFIX = ".gch"
NAME = re.compile(rf"headers-[0-9a-f]{{32}}{re.escape(SUFFIX)}")
FILES = Path("/proc")  # where Linux shows what processes have open
UNUSED_DAYS = 30.0  # after which one of an earlier version of optgen or of the compiler is removed

_parsed = Loader[int]()  # as open files, so that what was checked is what compilers read
_makers: dict[str, threading.Thread] = {}


def parsed_headers(compiler: Compiler, folder: Path) -> tuple[str, ...]:
    """Return the arguments with which a kernel takes its headers as parsed already; () where they are not.

    They are then parsed in the background, for the kernels to come: the first ones do not wait for it.

    Args:
        folder: Place for them while the compiler runs: an empty folder of its own.
    """
    if compiler.family != "gcc" or not FILES.is_dir():
        return ()  # clang refuses a kept header for reasons of its own, such as a file's time
    kernel = _kernel(compiler, behind=True)
    key = kernel.key()
    with suppress(OSError):
        opened = _parsed.loaded.get(key)
        if opened is None:
            opened = load_stored(kernel, cache_dir() / kernel.name(key))
        if opened is not None:
            _parsed.loaded[key] = opened
            # g++ takes X.gch where it is asked to include X.
            (folder / f"headers{SUFFIX}").symlink_to(FILES / str(os.getpid()) / "fd" / str(opened))
            return ("-include", str(folder / "headers"))
    if key not in _makers:
        _makers[key] = threading.Thread(target=_make, args=(kernel,), name="optgen-headers", daemon=True)
        _makers[key].start()
    return ()


def parse_headers(compiler: Compiler) -> None:
    """Parse the headers now, unless the cache has them: worth it before many kernels are compiled."""
    if compiler.family == "gcc":
        _make(_kernel(compiler, behind=False))


def _make(kernel: Kernel[int]) -> None:
    with suppress(OSError, CompileError):  # kernels are compiled without it too
        _parsed.get(kernel)
        remove_unused(cache_dir(), NAME, UNUSED_DAYS)


def _kernel(compiler: Compiler, behind: bool) -> Kernel[int]:
    header = include_dir() / HEADER
    flags = [flag for flag in compiler.flags if flag != "-shared"]
    words = (*compiler.command, *flags, f"-I{include_dir()}", "-x", "c++-header", str(header))
    return Kernel(
        source=header,
        compiler=compiler.path,
        key=lambda: _key(compiler, header),
        name=lambda key: f"headers-{key[:32]}{SUFFIX}",
        build=lambda output, folder: run((*words, "-o", str(output)), folder, COMPILE_TIMEOUT_SECONDS, behind),
        load=lambda entry, _: os.open(entry, os.O_RDONLY),
        advice="Kernels are compiled without it too; that takes longer.",
        unloadable=lambda directory: f"If {directory} is full, set OPTGEN_CACHE_DIR to another folder.",
        optional=True,
    )


def _key(compiler: Compiler, header: Path) -> str:
    """Hash everything that decides what the compiler makes."""
    made = Hash(str(FORMAT_VERSION), processor(), compiler.version, *compiler.command)
    made.add("flags", *compiler.flags)
    made.add_source(header)
    return made.hexdigest()

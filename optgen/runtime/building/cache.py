"""The compile cache: C++ source in, loaded shared library out.

An entry is named after everything that decides its content, so it never has to be invalidated: the source and the
headers, the defines, the compiler with its flags, the processor.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from optgen.runtime.building.compilers import (
    Compiler,
    compile_library,
    find_compiler,
    processor,
    why_no_compiler,
)
from optgen.runtime.building.entries import CompileError, Hash, Kernel, Loader, cache_size, clear_cache, words
from optgen.runtime.building.forks import pause_threads_at_forks
from optgen.runtime.building.headers import parsed_headers
from optgen.runtime.building.private_dir import cache_dir
from optgen.runtime.building.programs import FORMAT_VERSION, TIMED_OUT, Output

__all__ = [
    "CompileError",
    "Compiler",
    "cache_dir",
    "cache_size",
    "clear_cache",
    "find_compiler",
    "processor",
    "shared_library",
    "why_no_compiler",
]

ADVICE = (
    'To go on without compiled kernels, pass target="torch" to the optimizer; '
    "to use another compiler, set OPTGEN_CXX; `optgen doctor` shows what was found."
)

_libraries = Loader[ctypes.CDLL]()


def shared_library(
    source: Path, defines: Mapping[str, str], compiler: Compiler, functions: Iterable[str] = (), told: str = ""
) -> ctypes.CDLL:
    """Return the library built from `source` with `-D` for each of `defines`, building it only if no cache has it.

    One that lacks any of `functions` is built again, and refused if it still does. While it is built for longer than a
    moment, the user is told `told`.

    The headers of `optgen.paths.include_dir()` are found by the compiler; they and headers beside the source that it
    includes are part of an entry's key. Safe to call from many processes and threads at once. Import torch first: the
    library then shares torch's OpenMP threads.

    Raises CompileError.
    """
    openmp = _renamed_openmp()
    # The loader matches libraries by name, and torch's may carry another one than the compiler's own.
    libraries = [] if openmp is None else ["-Wl,--as-needed", openmp]
    arguments = [*words(defines), str(source.absolute()), *libraries]
    return _libraries.get(
        Kernel(
            source=source,
            compiler=compiler.path,
            key=lambda: _entry_key(source, defines, compiler, openmp),
            name=lambda key: f"{source.stem}-{key[:32]}.so",
            build=lambda output, folder: _compile(compiler, [*arguments, "-o", str(output)], folder),
            load=lambda entry, _: _load(entry, functions),
            advice=ADVICE,
            unloadable=lambda directory: f"If {directory} is mounted noexec, set OPTGEN_CACHE_DIR to another folder.",
            told=told,
        )
    )


def _load(entry: str, functions: Iterable[str]) -> ctypes.CDLL:
    library = ctypes.CDLL(entry)
    lacking = [name for name in functions if not hasattr(library, name)]
    if lacking:
        raise OSError(f"{entry} lacks {', '.join(lacking)}")
    pause_threads_at_forks(library)
    return library


def _compile(compiler: Compiler, arguments: Sequence[str], folder: Path) -> Output:
    """Compile with the headers that are parsed already; if that is refused, say what the compiler says without."""
    headers = parsed_headers(compiler, folder)
    done = compile_library(compiler, [*headers, *arguments], folder)
    refused = done.status > 0 and done.status != TIMED_OUT
    return compile_library(compiler, arguments, folder) if refused and headers else done


def _entry_key(source: Path, defines: Mapping[str, str], compiler: Compiler, openmp: str | None) -> str:
    """Hash everything that decides what the compiler makes."""
    made = Hash(str(FORMAT_VERSION), processor(), compiler.version, *compiler.command, openmp or "")
    made.add("flags", *compiler.flags)
    made.add_defines(defines)
    made.add_source(source)
    return made.hexdigest()


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

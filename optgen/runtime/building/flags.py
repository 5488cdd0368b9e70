"""Flags with which C++ compilers build kernels, by family and system; the best first, as they are tried out."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Collection, Iterator
from itertools import product
from pathlib import Path
from typing import Literal

Family = Literal["gcc", "clang", "clang-cl"]

COMMON_FLAGS = (
    "-O3",
    "-std=c++17",
    "-shared",
    "-fPIC",
    # Products and sums are rounded one by one, as in torch's own operations, so that both targets agree.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
)
# The same for clang under the name and the command line of Microsoft's compiler, which itself has not the attributes
# and built-in functions of kernels. Its OpenMP would be a second one beside that of torch's package.
CL_FLAGS = (
    "/O2",
    "/nologo",
    "/std:c++17",
    "/LD",
    "/EHsc",
    "/clang:-ffp-contract=off",
    "/clang:-fno-math-errno",
    "/clang:-fno-trapping-math",
    "/clang:-fopenmp-simd",
)
LIBRARY_FLAGS = ("-shared", "-fPIC", "/LD")

OPENMP = "-fopenmp"
OWN_THREADS = ("-fopenmp-simd", "-pthread")
"""For a compiler without OpenMP: the hints to its vectoriser alone, and threads of our own (threads_own.h)."""

SCHEDULED = ("-fschedule-insns", "-fsched-pressure")
"""g++ orders instructions before it gives them registers, so that fewer wait for each other. With AVX-512 kernels are
no faster so."""


def attempts(family: Family, processor: str, own: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield the flags of a kernel, best first.

    Args:
        processor: Description of the machine's, with the names of its instructions.
        own: The user's flags, which will follow.
    """
    if family == "clang-cl":
        for native in (("/clang:-march=native",), ()):
            yield (*CL_FLAGS[:1], *native, *CL_FLAGS[1:])
        return
    for threads, tuned in product(_threads(family), _tuned(family, processor, own)):
        yield (*COMMON_FLAGS[:1], *tuned, *COMMON_FLAGS[1:], *threads)


def as_program(flags: tuple[str, ...]) -> list[str]:
    """The flags of a program instead of a library: it can be run without a second OpenMP in this process."""
    return [flag for flag in flags if flag not in LIBRARY_FLAGS]


def _threads(family: Family) -> Iterator[tuple[str, ...]]:
    """Yield flags for threads, best first.

    On macOS a compiler's own OpenMP would be the second one beside that of torch's package: LLVM's ends a process that
    starts two. Apple's clang, which has none, takes torch's.
    """
    if platform.system() != "Darwin":
        yield (OPENMP,)
    elif family == "clang":
        folder = torch_libraries()
        if folder is not None and (folder / "libomp.dylib").is_file():
            yield ("-Xpreprocessor", OPENMP, f"-L{folder}", "-lomp", f"-Wl,-rpath,{folder}")
    yield OWN_THREADS


def torch_libraries() -> Path | None:
    """The folder of the libraries of torch's package."""
    spec = importlib.util.find_spec("torch")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "lib"


def _tuned(family: Family, processor: str, own: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield flags that tune for this processor, best first; the last ones are accepted everywhere."""
    if "avx512f" in processor.split() and "-mno-avx512f" not in own:
        yield ("-march=native", "-mprefer-vector-width=512")
    elif family == "gcc" and platform.machine().lower() in ("x86_64", "amd64"):
        yield ("-march=native", *SCHEDULED)
    yield ("-march=native",)
    if platform.machine().lower() in ("arm64", "aarch64"):
        yield ("-mcpu=native",)
    yield ()

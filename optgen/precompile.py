"""`optgen build --compile` and `--arch`: compiles a package's kernels before anyone asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optgen.errors import UserError


class PrecompileError(UserError):
    """A kernel could not be compiled, or there is no compiler; the message says what to do."""


class ArchError(ValueError):
    """No such GPU architecture, or none that the compiler here builds for; the message names those that there are."""


@contextmanager
def _compile_errors() -> Iterator[None]:
    """Messages of the runtime, as commands show them."""
    from optgen.runtime.building.cache import CompileError

    try:
        yield
    except CompileError as error:
        raise PrecompileError(str(error)) from error


def precompile(package: str, directory: Path) -> int:
    """Compile the common specializations of every C++ file of a generated package into the compile cache.

    Args:
        package: the name of the package.
        directory: where it was written.

    Returns:
        How many libraries are in the cache because of it.

    Raises:
        PrecompileError: see above.
    """
    from optgen.runtime.building.cache import find_compiler, why_no_compiler

    compiler = find_compiler()
    if compiler is None:
        raise PrecompileError(f"nothing was compiled: {why_no_compiler()}")
    from optgen.runtime.precompile import compile_libraries

    with _compile_errors():
        return compile_libraries(package, directory, compiler)


def checked_archs(given: Sequence[str]) -> tuple[str, ...]:
    """The architectures that `--arch` names, in lists separated by commas, each once.

    Raises:
        ArchError: if a name is not an architecture, or the compiler here does not build for it.
        PrecompileError: if there is no compiler for GPUs.
    """
    from optgen.runtime.building.nvrtc import INSTALL, find_cuda_compiler, why_no_cuda_compiler

    names = list(dict.fromkeys(name.strip() for item in given for name in item.split(",")))
    nvcc = find_cuda_compiler()
    if nvcc is None:
        reason = f"{why_no_cuda_compiler()}; {INSTALL}"
        raise PrecompileError(f"there is no nvcc or NVRTC to build kernels for GPUs: {reason}")
    for name in names:
        if name not in nvcc.archs:
            known = ", ".join(nvcc.archs)
            raise ArchError(
                f"{name!r} is not an architecture that {nvcc.file} of CUDA {nvcc.release} builds for: {known}"
            )
    return tuple(names)


def precompile_cubins(package: str, directory: Path, archs: Sequence[str]) -> int:
    """Compile the common specializations of every CUDA file of a generated package into its folder `cubins`.

    Args:
        package: the name of the package.
        directory: where it was written.
        archs: what `checked_archs` returned.

    Returns:
        How many cubins serve these architectures.

    Raises:
        PrecompileError: see above.
    """
    from optgen.runtime.building.nvrtc import find_cuda_compiler, why_no_cuda_compiler

    nvcc = find_cuda_compiler()
    if nvcc is None:
        raise PrecompileError(f"nothing was compiled: {why_no_cuda_compiler()}")
    from optgen.runtime.precompile import compile_cubins

    with _compile_errors():
        return compile_cubins(package, directory, archs, nvcc)


def drop_stale_cubins(directory: Path) -> int:
    """Remove the cubins of a package that were built from other sources than it has now; return how many.

    Raises:
        PrecompileError: when a source cannot be read.
    """
    from optgen.runtime.building.cubins import drop_stale_cubins as drop

    with _compile_errors():
        return drop(directory)

"""`optgen build --compile`: compiles a package's kernels before anyone asks for them."""

from __future__ import annotations

from pathlib import Path

from optgen.errors import UserError


class PrecompileError(UserError):
    """A kernel could not be compiled, or there is no compiler; the message says what to do."""


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
    from optgen.runtime.cache import CompileError, why_no_compiler

    reason = why_no_compiler()
    if reason:
        raise PrecompileError(f"nothing was compiled: {reason}")
    from optgen.runtime.precompile import compile_package

    try:
        return compile_package(package, directory)
    except CompileError as error:
        raise PrecompileError(str(error)) from error

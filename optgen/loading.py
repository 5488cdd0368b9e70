"""Compiles specs and imports them at once, for notebooks and tests: nothing is written beside them."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType

from optgen.errors import UserError
from optgen.garbage import garbage_left
from optgen.runtime.building.temporary import temporary_dir

_directory: list[str] = []
_locks: dict[int, threading.Lock] = {}  # by process: a forked one does not have the thread that holds its parent's


def load(*specs: str | Path, onto: str | Path | None = None) -> ModuleType:
    """The optimizers of some spec files or folders, or of rules with stages of one's own on them.

    The package lives in a temporary directory until this process and all that are forked from it have ended; the same
    specs give the same module.

    Args:
        specs: Spec files and folders of them; with `onto` files of stages, in their order.
        onto: What the stages are put on: a rule or class of optgen's own specs, as "adamw", or the path of specs. The
            stages' names come before those of its classes: `lookahead` makes `LookaheadAdamW`.

    Returns:
        A module with a class for every optimizer, and `create`.

    Raises:
        SpecError: all mistakes of all files at once.
        UserError: when the package cannot be written, as on a full disk; optgen has no rule that `onto` names.

    Warns:
        SpecWarning: what of the specs is allowed and was hardly meant.
    """
    with garbage_left():
        from optgen.compiler import compile_specs
        from optgen.diagnostics import SpecWarning, format_diagnostics
        from optgen.emit.writer import write

        package = compile_specs([Path(spec) for spec in specs], "optgen_loaded", onto)
    if package.warnings:
        warnings.warn(f"\n{format_diagnostics(package.warnings)}\n", SpecWarning, stacklevel=2)
    content = hashlib.sha256("\0".join(f"{k}\0{v}" for k, v in package.files.items()).encode()).hexdigest()
    name = f"{package.name}_{content[:16]}"
    with _locks.setdefault(os.getpid(), threading.Lock()):
        if name in sys.modules:
            return sys.modules[name]
        if not _directory:
            _directory.append(_own_directory())
        if _directory[0] not in sys.path:  # also where someone has put sys.path back to what it was
            sys.path.append(_directory[0])
        write(package, Path(_directory[0]) / name)
        importlib.invalidate_caches()
        return importlib.import_module(name)


def _own_directory() -> str:
    try:
        return str(temporary_dir())
    except OSError as error:
        raise UserError(f"no folder for the package can be made: {error}; TMPDIR can name another place") from error

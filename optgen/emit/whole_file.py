"""Writes single files that users ask for: a page, a picture. Each is whole, or what it was before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from optgen.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside the place it is for, then put it there.

    Raises:
        UserError: it cannot be written; says why. What was there is unchanged.
    """
    try:
        if path.exists() and not path.is_file():  # a terminal, a pipe
            path.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(path)), content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; nothing was changed") from error


def _replace(target: Path, content: bytes) -> None:
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(content)
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except FileExistsError:  # not ours
        raise
    except BaseException:
        beside.unlink(missing_ok=True)
        raise

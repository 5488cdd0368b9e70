"""Exchanges two directories in one step, where the system can."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2
_NOT_OFFERED = {errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EBUSY}


def exchange_directories(first: Path, second: Path) -> bool:
    """Give each directory the other's name, both at once.

    Returns:
        False if the system or the file system does not offer that; both are as they were.

    Raises:
        OSError: it is offered and failed.
    """
    code = _call(os.fsencode(first), os.fsencode(second))
    if code == 0:
        return True
    if code in _NOT_OFFERED:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _call(first: bytes, second: bytes) -> int:
    """The error number of the system call, 0 if it went well."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            failed = libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
        elif sys.platform == "darwin":
            failed = libc.renamex_np(first, second, _RENAME_SWAP)
        else:
            return errno.ENOSYS
    except (AttributeError, OSError, TypeError):
        return errno.ENOSYS
    return ctypes.get_errno() if failed else 0

"""Check of who could change the end of a path: only this user and root may, as for the files that ssh and sudo trust.

Whoever may write to a folder can put something else in the place of what lies in it, and the owner of a link can point
it elsewhere. So every folder and every link that a path leads through counts, not only the last.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

MAX_LINKS = 40
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def follow(path: Path) -> Path:
    """Follow the links of an absolute path, looking at all that it leads through except at the folder that it ends in.

    Returns:
        The path without links. Its last parts need not be there.

    Raises:
        OSError: if others could make it lead elsewhere, or it leads nowhere; says what is wrong and where.
    """
    if not hasattr(os, "geteuid"):
        return path
    here, ahead, links = path.anchor, list(reversed(path.parts[1:])), 0
    _look_at_folder(here, os.lstat(here))
    while ahead:
        part = ahead.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        item = os.path.join(here, part)
        try:
            found = os.lstat(item)
        except FileNotFoundError:
            return Path(item, *reversed(ahead))
        if stat.S_ISLNK(found.st_mode):
            _look_at_owner(item, found, "point it elsewhere")
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = Path(item).readlink()
            here = target.anchor or here
            ahead += reversed(target.parts[1:] if target.anchor else target.parts)
        else:
            if ahead:
                _look_at_folder(item, found)
            here = item
    return Path(here)


def others_write(found: os.stat_result) -> bool:
    """Check whether others than the owner may write to a folder; a group that is the user's alone is no other."""
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)


def _look_at_folder(folder: str, found: os.stat_result) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(f"{folder} is not a folder")
    _look_at_owner(folder, found, "put something else in the place of what lies in it")
    # With the sticky bit set, as in /tmp, nobody can move away what is another's.
    if not found.st_mode & stat.S_ISVTX and others_write(found):
        mode = f"mode {stat.S_IMODE(found.st_mode):o}"
        raise OSError(f"others may write to {folder} ({mode}), and put something else in the place of what lies in it")


def _look_at_owner(item: str, found: os.stat_result, could: str) -> None:
    user = os.geteuid()
    if found.st_uid not in (user, 0) and found.st_uid != _unknown_user():
        raise OSError(f"{item} belongs to user {found.st_uid}, who could {could}; this is user {user}")


def _unknown_user() -> int:
    """The number that stands for users whom this user namespace does not know, root outside of it among them; else 0.

    In a container without privileges folders of the system belong to it.
    """
    with suppress(OSError, ValueError):
        known = sum(int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines())
        if known < 2**32 - 1:
            return int(Path("/proc/sys/kernel/overflowuid").read_text())
    return 0


def _is_own_group(group: int) -> bool:
    """Check whether a group has this user alone: one of the user's name, which many systems make for each user."""
    import grp
    import pwd

    with suppress(KeyError):
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
        return found.gr_gid == user.pw_gid and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
    return False

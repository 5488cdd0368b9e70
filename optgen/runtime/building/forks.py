"""Keeps forks safe: a forked process has one thread alone, whatever other threads were doing.

OpenMP keeps the threads of a parallel loop for the next one. GNU's does not notice that a forked process has none of
them, and waits for them for ever.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

PAUSE_SOFT = 1  # of OpenMP's omp_pause_resource_t: threads go, settings stay

_paused: set[int] = set()


def pause_threads_at_forks(library: ctypes.CDLL) -> None:
    """Has OpenMP give its threads back before each fork; the next parallel loop starts new ones.

    Two may be loaded: the one that `library` runs on, and torch's, which states are made with. LLVM's looks after forks
    itself, and does not mind. One older than OpenMP 5 (GCC 8) cannot be paused.
    """
    if sys.platform == "win32":
        return
    for scope in (library, ctypes.CDLL(None)):
        try:
            pause = scope.omp_pause_resource_all
        except AttributeError:
            continue
        pause.argtypes, pause.restype = [ctypes.c_int], ctypes.c_int
        place = ctypes.cast(pause, ctypes.c_void_p).value or 0
        if place not in _paused:
            _paused.add(place)
            os.register_at_fork(before=lambda pause=pause: pause(PAUSE_SOFT))


def renew_in_child(renew: Callable[[], None]) -> None:
    """Calls `renew` in each forked process: for locks, whose holders do not exist there."""
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=renew)

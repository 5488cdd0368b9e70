"""Control of the interpreter's garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_left() -> Iterator[None]:
    """Leaves looking for cyclic garbage for later.

    Compiling makes many objects and few cycles of them, while each look goes over all that the process holds: with
    torch imported that takes as long as compiling a rule.
    """
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looks:
            gc.enable()

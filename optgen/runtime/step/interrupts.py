"""Ctrl-C in a step: what has begun to write is finished first.

Python raises KeyboardInterrupt between any two of its instructions, so also when some parameters are stepped and others
are not. While a step writes, another handler stands in the place of the program's own, and only notes that the signal
came; then the program's own is put back and called. Where that raises, `step()` does.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

# The module below signal.signal and signal.getsignal, which spend most of their time on names of handlers.
_signal: Any = getattr(signal, "_signal", signal)


class Uninterrupted:
    """Defers Ctrl-C to its end, in the thread that Python calls handlers in; a second one acts at once.

    Handlers that are not Python's are left alone, as are those that end the process or ignore the signal.

    Args:
        at_once: Whether one call of a kernel writes everything: nothing can come between.
    """

    __slots__ = ("_at_once", "_came", "_handler")

    def __init__(self, at_once: bool = False) -> None:
        self._at_once = at_once

    def __enter__(self) -> None:
        """Note from now on that the signal came."""
        self._handler: Any = None
        if self._at_once:
            return
        self._came: tuple[int, FrameType | None] | None = None
        handler = _signal.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler = handler
            try:
                _signal.signal(signal.SIGINT, self._note)
            except ValueError:  # another thread
                self._handler = None

    def __exit__(self, *_: object) -> None:
        """Put the handler back, and call it if the signal came."""
        if self._handler is not None:
            _signal.signal(signal.SIGINT, self._handler)
            if self._came is not None:
                self._handler(*self._came)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number, frame
        else:
            self._handler(number, frame)

"""The process of the command `optgen`: its streams, its warnings, and how Ctrl-C ends it.

What commands do is in commands.py, which is imported late: importing it takes most of the time of a quick command, and
Ctrl-C may come while it goes on.
"""

from __future__ import annotations

import os
import sys

INTERRUPTED = 130  # the exit status in which commands pass Ctrl-C on


def main() -> None:
    """The entry point of the script `optgen`."""
    try:
        _open_closed_streams()
        import warnings

        from optgen.commands import app
        from optgen.console import print_error

        warnings.showwarning = lambda message, *_, **__: print_error(f"warning: {message}")
        app()
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            _end_interrupted()
        raise
    finally:
        _drop_unwritten()


def _open_closed_streams() -> None:
    """Let nothing else take the numbers of streams that are closed, as in `optgen list >&-`.

    A file opened later would get the number, and whatever prints would write into it. What is printed to a closed
    standard output fails, as on a full disk; there is no place to say that standard error is closed.
    """
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)  # the lowest number that is free
            os.set_inheritable(opened, True)
            setattr(sys, name, os.fdopen(opened, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def _drop_unwritten() -> None:
    """Drop what the streams did not take: that was said, or nobody reads on; Python would complain once more."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _end_interrupted() -> None:
    """End as Python does on Ctrl-C, by the signal, which tells shells to stop what they run; without a traceback."""
    sys.excepthook = lambda *_: None
    raise KeyboardInterrupt

"""The log: messages of what goes on, for `logging` under the name `optgen`.

Nothing is shown unless a program sets `logging` up, or `OPTGEN_LOG` names a level: then lines of that level and above
go to standard error.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

VARIABLE = "OPTGEN_LOG"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"


def logger(module: str) -> logging.Logger:
    """The logger of a module of optgen, named after it."""
    return logging.getLogger(module)


class _ToStandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at the moment, as tests and notebooks exchange it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.stream = sys.stderr
        super().emit(record)


def set_up() -> None:
    """Show what the environment asks for."""
    root = logging.getLogger("optgen")
    root.addHandler(logging.NullHandler())
    wanted = os.environ.get(VARIABLE, "").strip().lower()
    if not wanted:
        return
    handler = _ToStandardError()
    handler.setFormatter(logging.Formatter(FORMAT))
    root.addHandler(handler)
    root.propagate = False  # else it is shown twice where a program has set logging up too
    root.setLevel(LEVELS.get(wanted, logging.WARNING))
    if wanted not in LEVELS:
        root.warning("%s=%s is no level; there are %s", VARIABLE, wanted, ", ".join(LEVELS))


set_up()

"""Notice to the user of what a step waits for: a line on standard error, or a spinner where that is a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

PATIENCE_SECONDS = 1.0  # what takes no longer is not worth a word

_said: set[str] = set()


@contextmanager
def notice(text: str) -> Iterator[None]:
    """Say what goes on in the block once it has taken longer than a moment; "" says nothing.

    The line is said once a process, the spinner goes away with the block.
    """
    if not text:
        yield
        return
    done = threading.Event()
    teller = threading.Thread(target=_tell, args=(text, done), name="optgen-notice", daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def say_once(text: str) -> None:
    """Say a line on standard error, once a process."""
    if text in _said:
        return
    _said.add(text)
    with suppress(Exception):  # a closed standard error is nothing to fail for
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _tell(text: str, done: threading.Event) -> None:
    if done.wait(PATIENCE_SECONDS):
        return
    with suppress(Exception):  # a closed standard error is nothing to fail for
        if sys.stderr.isatty() and find_spec("rich") is not None:  # which comes with the compiler
            from rich.console import Console

            with Console(stderr=True, markup=False, highlight=False).status(text):
                done.wait()
        else:
            say_once(text)

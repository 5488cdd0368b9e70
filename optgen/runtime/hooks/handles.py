"""Handles of optimizers, by which an operator in a compiled graph finds the one that it steps.

They are words: torch.compile may take a number for one that changes from call to call.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer

_KNOWN: weakref.WeakValueDictionary[str, Optimizer] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)


def make_handle(optimizer: Optimizer) -> str:
    """A handle of its own for an optimizer, which it does not keep alive."""
    handle = str(next(_NUMBERS))
    _KNOWN[handle] = optimizer
    return handle


def optimizer_of(handle: str) -> Optimizer:
    """The optimizer of a handle.

    Raises:
        KeyError: if it is gone.
    """
    return _KNOWN[handle]

"""Numbers of optimizers, by which an operator in a compiled graph finds the one that it steps."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optgen.runtime.optimizer import Optimizer

_KNOWN: weakref.WeakValueDictionary[int, Optimizer] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)


def numbered(optimizer: Optimizer) -> int:
    """A number of its own for an optimizer, which it does not keep alive."""
    number = next(_NUMBERS)
    _KNOWN[number] = optimizer
    return number


def optimizer_of(number: int) -> Optimizer:
    """The optimizer of a number.

    Raises:
        KeyError: if it is gone.
    """
    return _KNOWN[number]

"""Handles of optimizers, by which an operator in a compiled graph finds the one that it steps.

They are words: torch.compile may take a number for one that changes from call to call.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

from torch import Tensor

from optgen.runtime.step.optimizer_like import OptimizerLike


class Stepper(OptimizerLike, Protocol):
    """An optimizer whose step a compiler traces."""

    _handle: str

    @property
    def _in_backward(self) -> object | None:
        """Updater of parameters within backward, if there is one."""

    def _check_step(self) -> None:
        """Raise for a step that may not be taken as it is asked for."""

    def _end_round(self) -> None:
        """Let the next backward pass begin."""

    def _update_in_backward(self, param: Tensor) -> None:
        """Step one parameter, if anything is updated within backward."""


_KNOWN: weakref.WeakValueDictionary[str, Stepper] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count(1)


def make_handle(optimizer: Stepper) -> str:
    """A handle of its own for an optimizer, which it does not keep alive."""
    handle = str(next(_NUMBERS))
    _KNOWN[handle] = optimizer
    return handle


def optimizer_of(handle: str) -> Stepper:
    """The optimizer of a handle.

    Raises:
        KeyError: if it is gone.
    """
    return _KNOWN[handle]

"""Inputs of one step, set on the optimizer: those that its rule declares, and whether to skip the step.

`torch.amp.GradScaler.step` sets `grad_scale` and `found_inf` around a step and deletes them after it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.settings.validation import is_number


class SkippedStepError(Exception):
    """The gradients hold an Inf or NaN, as `found_inf` says: nothing of the step may happen."""


@dataclass(frozen=True)
class Inputs:
    """Inputs that are set for one step.

    Attributes:
        values: The inputs that are set, by name: numbers, or tensors of one element.
        found_inf: One element, not 0 where the step is to be skipped; None without a gradient scaler.
    """

    values: Mapping[str, float | Tensor] = field(default_factory=dict)
    found_inf: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs that are set."""
        return tuple(self.values)

    def skips(self) -> bool:
        """Check whether the step is to be skipped; the host reads it, and waits for the device that knows."""
        return self.found_inf is not None and float(self.found_inf) != 0.0


NO_INPUTS = Inputs()


def read_inputs(optimizer: Any, names: Iterable[str]) -> Inputs:
    """Read the inputs that are set on an optimizer at present.

    Raises:
        TypeError: if an input is neither a number nor a tensor of one element.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    values = {}
    for name in names:
        value = getattr(optimizer, name, None)
        if value is not None:
            values[name] = value
    if found_inf is None and not values:
        return NO_INPUTS
    for name, value in (*values.items(), ("found_inf", 0.0 if found_inf is None else found_inf)):
        if isinstance(value, bool) or not is_number(value):
            wanted = "a number, or a tensor of one element"
            raise TypeError(f"{type(optimizer).__name__}: {name} is {wanted}, not {_shown(value)}")
    if found_inf is not None and not isinstance(found_inf, Tensor):
        # A scaler that saw no gradient at all has summed nothing.
        found_inf = torch.tensor(float(found_inf), device="cpu")
    return Inputs(values, found_inf)


LOSS = "loss"
"""The input that is the loss of the closure of a step."""


def closure_loss(optimizer: Any, names: Container[str], loss: Any) -> AbstractContextManager[None]:
    """Set the loss that a closure has returned as an input of this step, where the rule has that."""
    return _UNCHANGED if LOSS not in names or loss is None else _with_loss(optimizer, loss)


_UNCHANGED = nullcontext()


@contextmanager
def _with_loss(optimizer: Any, loss: Any) -> Iterator[None]:
    before = getattr(optimizer, LOSS, None)
    setattr(optimizer, LOSS, loss.detach() if isinstance(loss, Tensor) else loss)
    try:
        yield
    finally:
        setattr(optimizer, LOSS, before)


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)

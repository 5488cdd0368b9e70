"""Counts of steps: `state["step"]`, a float32 tensor without dimensions, as torch.optim has it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.state_checks import why_unreadable


def is_count(step: Any) -> bool:
    """Whether a value is a number of steps: a finite number that is not negative, or a tensor of one."""
    if isinstance(step, Tensor):
        return _may_count(step) and _is_number_of_steps(step.item())
    return isinstance(step, int | float) and not isinstance(step, bool) and _is_number_of_steps(step)


def _may_count(step: Tensor) -> bool:
    if step.numel() != 1 or step.is_complex() or step.dtype is torch.bool:
        return False
    return not why_unreadable(step)


def _is_number_of_steps(number: float) -> bool:
    return 0 <= number < math.inf


def check_counts(entries: Iterable[Mapping[str, Any]]) -> None:
    """Raise for states `step` that are no numbers of steps. Those on a device are read together: the host waits once.

    Raises:
        ValueError: showing what there is.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for step in [entry["step"] for entry in entries if "step" in entry]:
        if isinstance(step, Tensor) and _may_count(step):
            alike.setdefault((step.device, step.dtype), []).append(step.detach().reshape(()))
        elif isinstance(step, Tensor) or not is_count(step):
            _refuse(step)
    for steps in alike.values():
        for step, number in zip(steps, torch.stack(steps).tolist(), strict=True):
            if not _is_number_of_steps(number):
                _refuse(step)


def _refuse(step: Any) -> None:
    raise ValueError(f"state 'step' is {count_shown(step)}, and it is to be a number of steps")


def count_shown(step: Any) -> str:
    """What stands in the place of a count, in words."""
    if not isinstance(step, Tensor):
        return repr(step)
    if step.numel() != 1:
        return f"a tensor of shape {tuple(step.shape)}"
    return why_unreadable(step) or repr(step.item())

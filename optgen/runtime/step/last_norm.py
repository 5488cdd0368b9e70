"""clip_by_last_norm: max_grad_norm with the norm of the last step in the place of this one's.

Equations and kernels stay as they are: each pass that sums squares of gradients over all parameters hands its sum over
to be that of the next step, and goes on with the last step's. So a parameter that is stepped alone, within backward,
need not wait for the gradients of the others. Before the first step the sum is 0, which clips nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.block import Settings
from optgen.runtime.rule import Rule

OPTION = "clip_by_last_norm"
SUM = "grad_squares_all"  # what the clipping of shared.yaml makes of norm(grad, over=all)
KEY = "last_grad_squares"  # of param groups: that sum as the last step had it


def check_settings(name: str, rule: Rule, settings: Settings) -> None:
    """Raise for what cannot go with clip_by_last_norm=True, where that is asked for.

    Raises:
        ValueError: with the reason.
    """
    if not settings.get(OPTION):
        return
    if settings.get("capturable"):
        raise ValueError(
            f"{name}: {OPTION}=True does not go with capturable=True: the host hands norms on from step to step, and "
            "does nothing when a graph is replayed; leave one out"
        )
    if not any(total[0] == SUM for total in rule.blocks["step"].sums):
        raise ValueError(f"{name} cannot have {OPTION}=True: its step does not clip by max_grad_norm")


def clips_alone(settings: Settings) -> dict[str, Any]:
    """Settings without a clipping that waits for other gradients, if there is none of this step."""
    return {**settings, "max_grad_norm": 0.0} if settings.get(OPTION) else dict(settings)


def is_asked(name: str, groups: Sequence[Mapping[str, Any]]) -> bool:
    """Check whether the norm is the last step's.

    Raises:
        ValueError: if that differs by group or by parameter.
    """
    overrides = [own for group in groups for own in group.get("overrides", {}).values() if OPTION in own]
    asked = {bool(own.get(OPTION)) for own in (*groups, *overrides)}
    if len(asked) > 1:
        raise ValueError(f"{name}: {OPTION} is one choice for the optimizer and cannot differ by group or parameter")
    return asked == {True}


def hand_on(groups: Sequence[dict[str, Any]]) -> None:
    """Give a group that was added the sum that the others have."""
    if KEY in groups[0]:
        groups[-1].setdefault(KEY, groups[0][KEY])


class LastNorm:
    """The sums of a step so far, of which the next one takes the total."""

    def __init__(self) -> None:
        self._parts: list[float | Tensor] = []

    def exchange(self, sums: Mapping[Any, float | Tensor], group: Mapping[str, Any]) -> dict[Any, float | Tensor]:
        """Sums of this step, that of squares being the last step's; its own is kept for the next.

        Args:
            sums: By name, or by name and what it is over.
        """
        result = dict(sums)
        for key in sums:
            if (key if isinstance(key, str) else key[0]) == SUM:
                self._parts.append(sums[key])
                result[key] = group.get(KEY, 0.0)
        return result

    def end_step(self, groups: Sequence[dict[str, Any]]) -> None:
        """Let the next step take the total of this one, unless that is not finite."""
        if self._parts:
            total = sum(self._parts[1:], start=self._parts[0])
            before = groups[0].get(KEY, 0.0)
            if isinstance(total, Tensor) and total.device.type != "cpu":
                total = torch.where(torch.isfinite(total), total, before)
            else:
                total = float(total) if math.isfinite(total) else before
            for group in groups:
                group[KEY] = total
        self._parts = []

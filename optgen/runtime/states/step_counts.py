"""Counts of steps: `state["step"]`, a float32 tensor without dimensions, as torch.optim has it.

From 2^24 on float32 does not hold every whole number. An optimizer therefore keeps the exact count of each parameter in
float64 beside it, where the same target advances both. The state stands first: where it is not what the exact count
shows as float32, somebody has set it. Checkpoints hold a float64 `step` where float32 would round it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.core.bucket import Member
from optgen.runtime.states.checks import why_unreadable

EXACT = 2.0**24  # below which float32 holds every whole number


@dataclass(frozen=True, eq=False)
class Count:
    """The count of a parameter: its state `step`, and beside it the exact one, float64 of shape ()."""

    state: Tensor
    exact: Tensor


def is_count(step: Any) -> bool:
    """Check whether a value is a number of steps: a finite one that is not negative, or a readable tensor of one."""
    if isinstance(step, Tensor):
        return _is_real(step) and _is_number_of_steps(step.item())
    return isinstance(step, int | float) and not isinstance(step, bool) and _is_number_of_steps(step)


def _may_count(step: Tensor) -> bool:
    return _is_real(step) and not why_unreadable(step)


def _is_real(step: Tensor) -> bool:
    return step.numel() == 1 and not step.is_complex() and step.dtype is not torch.bool


def _is_number_of_steps(number: float) -> bool:
    return 0 <= number < math.inf


def read_counts(known: Mapping[Tensor, Count], members: Sequence[Member]) -> dict[int, float]:
    """The states `step` that are others than at the last look, 0 where there is none, by the identity of the member.

    Those on a device are read together: the host waits once.

    Raises:
        ValueError: if a count is not a number of steps; the message shows it.
    """
    steps = {}
    for member in members:
        step, count = member.entry.get("step", 0.0), known.get(member.whole)
        if count is not None and count.state is step and _fits(step, count.exact):
            continue
        if not _may_count(step) if isinstance(step, Tensor) else not is_count(step):
            _refuse(step)
        steps[id(member)] = step
    numbers = _read_together(list(steps.values()))
    for step, number in zip(steps.values(), numbers, strict=True):
        if not _is_number_of_steps(number):
            _refuse(step)
    return dict(zip(steps, numbers, strict=True))


def _fits(step: Tensor, exact: Tensor) -> bool:
    return step.dtype is torch.float32 and not step.dim() and step.device == exact.device


def _read_together(numbers: Sequence[Any]) -> list[float]:
    """Numbers, and tensors of one, as floats."""
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, number in enumerate(numbers):
        if isinstance(number, Tensor):
            alike.setdefault((number.device, number.dtype), []).append(place)
    result = [0.0 if isinstance(number, Tensor) else float(number) for number in numbers]
    for places in alike.values():
        together = torch.stack([numbers[place].detach().reshape(()) for place in places])
        for place, number in zip(places, together.tolist(), strict=True):
            result[place] = float(number)
    return result


def read_exact(states: Sequence[Tensor], counts: Sequence[Count | None]) -> list[float]:
    """The numbers of steps of parameters, by their states and by the exact counts beside these.

    Args:
        counts: What is known of each parameter; None, or another state's, where nothing is.
    """
    exact = [c.exact if c is not None and c.state is s else s for s, c in zip(states, counts, strict=True)]
    return list(map(steps_of, _read_together(states), _read_together(exact)))


def _refuse(step: Any) -> None:
    raise ValueError(f"state 'step' is {count_shown(step)}, and must be a number of steps")


def count_shown(step: Any) -> str:
    """Describe the value in place of a count, in words."""
    if not isinstance(step, Tensor):
        return repr(step)
    if step.numel() != 1:
        return f"a tensor of shape {tuple(step.shape)}"
    return why_unreadable(step) or repr(step.item())


def steps_of(shown: float, exact: float) -> float:
    """Number of steps of a parameter, by its state and by the exact count beside it."""
    return exact if ctypes.c_float(exact).value == shown else shown


def settled_count(known: Count | None, state: Tensor, read: float | None) -> Count:
    """The count of a state `step` in its final form: the one that is known, or a new one.

    Args:
        read: The state before, if it was not the known one.
    """
    if known is not None and known.state is state:
        return known
    exact = 0.0 if known is None else float(known.exact)
    steps = exact if read is None else steps_of(read, exact)
    return Count(state, torch.full((), steps, dtype=torch.float64, device=state.device))


def as_state(count: float) -> Tensor:
    """A count as a state on the host: float32, or float64 where that would round it."""
    rounds = ctypes.c_float(count).value != count
    return torch.full((), count, dtype=torch.float64 if rounds else torch.float32, device="cpu")


def with_exact_counts(
    groups: Sequence[Mapping[str, Any]], counts: Mapping[Tensor, Count], saved: dict[str, Any]
) -> dict[str, Any]:
    """Convert the result of torch's `state_dict`: counts that float32 rounds are given in float64.

    Args:
        groups: The optimizer's.
        counts: Those of its parameters.
    """
    found: dict[Any, Count] = {}
    for own, group in zip(groups, saved["param_groups"], strict=True):
        for param, key in zip(own["params"], group["params"], strict=True):
            count = counts.get(param)
            if count is not None and saved["state"].get(key, {}).get("step") is count.state:
                found[key] = count
    shown = _read_together([count.state for count in found.values()])
    if not any(number >= EXACT for number in shown):
        return saved
    steps = map(steps_of, shown, _read_together([count.exact for count in found.values()]))
    states = dict(zip(found, map(as_state, steps), strict=True))
    rounded = {key: step for key, step in states.items() if step.dtype is torch.float64}
    return {**saved, "state": {k: {**v, "step": rounded[k]} if k in rounded else v for k, v in saved["state"].items()}}

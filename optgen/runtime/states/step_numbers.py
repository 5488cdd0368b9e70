"""Numbers of steps as the host knows them, for rules of which it decides what happens on some steps only.

Counts lie where kernels advance them. Those on the host are read at each step. Those on a GPU are read once, and the
host counts along, until a state `step` is another tensor or has been written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from optgen.runtime.states.step_counts import Count, read_exact

Entries = Mapping[Tensor, Mapping[str, Any]]


class StepNumbers:
    """The counts of an optimizer's parameters on GPUs."""

    def __init__(self) -> None:
        self._known: dict[Tensor, tuple[Tensor, int, float]] = {}  # the state, its version, the count

    def read(self, params: Sequence[Tensor], entries: Entries, counts: Mapping[Tensor, Count]) -> list[int]:
        """The steps that parameters have had, 0 where there is no state yet."""
        found, unread = [0.0] * len(params), {}
        for position, param in enumerate(params):
            step = entries[param].get("step", 0.0) if param in entries else 0.0
            known = self._known.get(param)
            if not isinstance(step, Tensor):
                found[position] = float(step)
            elif known is not None and known[0] is step and known[1] == step._version:
                found[position] = known[2]
            else:
                unread[position] = step
        numbers = read_exact(list(unread.values()), [counts.get(params[position]) for position in unread])
        for (position, step), number in zip(unread.items(), numbers, strict=True):
            found[position] = number
            if step.device.type != "cpu":
                self._known[params[position]] = (step, step._version, number)
        return [int(number) for number in found]

    def advance(self, params: Iterable[Tensor]) -> None:
        """Count a step of these parameters, which has ended."""
        for param in params:
            if param in self._known:
                step, _, number = self._known[param]
                self._known[param] = (step, step._version, number + 1)

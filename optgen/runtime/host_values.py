"""What is the same for all parameters of a group, in a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor

from optgen.runtime.rule import Block, Settings

Sums = Mapping[str, float | Tensor]


class HostValues:
    """Settings of a step and sums over all parameters, as passes take them.

    Attributes:
        rows: The settings of every row, with the inputs of the step.
        sums: Sums over all parameters that earlier passes have completed; tensors on a GPU are unread.
        elements: Elements of all parameters.
    """

    def __init__(self, block: Block, rows: Sequence[Settings], sums: Sums, elements: float) -> None:
        self.block, self.rows, self.sums, self.elements = block, rows, sums, elements

    @cached_property
    def numbers(self) -> dict[str, float]:
        """The sums as the host reads them: it waits for a GPU."""
        return {name: float(value) for name, value in self.sums.items()}

    @cached_property
    def computed(self) -> list[tuple[float, ...]]:
        """The values that passes read, computed by the host: a row for every settings."""
        return [self.block.values(row, self.numbers, self.elements) for row in self.rows]

    @cached_property
    def inputs(self) -> list[tuple[float | Tensor, ...]]:
        """What those values follow from, for a target that computes them itself; tensors stay unread."""
        return [self.block.inputs(row, self.sums, self.elements) for row in self.rows]

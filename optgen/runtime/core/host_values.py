"""Values that all parameters of a group share in a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from torch import Tensor

from optgen.runtime import torch_math as m
from optgen.runtime.block import Block, Settings
from optgen.runtime.rule import Rule

SumKey = tuple[str, int | None]
"""A sum over several parameters: its name, and the identity of the group whose they are; None over all."""
Sums = Mapping[SumKey, float | Tensor]


def given(
    rule: Rule, names: Iterable[str], settings: Settings, sums: Sums, group: int, elements: float
) -> dict[str, float | Tensor]:
    """Numbers of a group and sums over several parameters by name; tensors on a GPU are unread.

    Args:
        settings: Those of a group, with its states and the inputs of the step.
        group: Its identity.
        elements: Elements of all parameters, which are called `total_numel`.
    """
    result: dict[str, float | Tensor] = {}
    for name in names:
        source = rule.sources.get(name)
        if source is None:
            found = sums.get((name, None), sums.get((name, group), m.NAN))
            result[name] = elements if name == "total_numel" else found
        else:
            value, part = settings.get(source[0]), source[1]
            if part is not None and value is not None:
                value = value[part]
            result[name] = value if type(value) is float else m.unread(value)
    return result


def evaluated(
    rule: Rule, function: Callable[..., dict[str, float]], settings: Settings, numbers: Mapping[str, float]
) -> dict[str, float]:
    """Evaluate a function of the host for a group.

    Args:
        numbers: Values that it may be given.
    """
    arguments = {parameter: numbers[name] for parameter, name in parameters(function).items()}
    if "f" in function.__annotations__:
        arguments["f"] = rule.flags(settings, 0, 0, 0, frozenset())
    return function(**arguments)


def committed(
    rule: Rule, function: Callable[..., dict[str, float]], settings: Settings, sums: Sums, group: int, elements: float
) -> dict[str, float]:
    """New values of the states of a group, and of those of the optimizer."""
    inputs = given(rule, parameters(function).values(), settings, sums, group, elements)
    return evaluated(rule, function, settings, {name: m.number(value) for name, value in inputs.items()})


@cache
def parameters(function: Callable[..., Any]) -> Mapping[str, str]:
    """The numbers that a function of the host is given: parameters with their names in equations, as `f_value`: f."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    return {name: name.removesuffix("_value") for name in names if name != "f"}


class HostValues:
    """Settings of a step and sums over several parameters, as passes take them.

    Attributes:
        rows: The settings of every row, with the inputs of the step.
        groups: The identity of each row's group.
        sums: Sums over several parameters that earlier passes have completed; tensors on a GPU are unread.
        elements: Elements of all parameters.
    """

    def __init__(
        self,
        rule: Rule,
        block: Block,
        rows: Sequence[Settings],
        groups: Sequence[int],
        sums: Sums,
        elements: float,
    ) -> None:
        self.rule, self.block, self.rows, self.groups = rule, block, rows, groups
        self.sums, self.elements = sums, elements

    def with_sums(self, sums: Sums) -> HostValues:
        """The same settings, and sums that are complete now."""
        return HostValues(self.rule, self.block, self.rows, self.groups, {**self.sums, **sums}, self.elements)

    @cached_property
    def numbers(self) -> dict[SumKey, float]:
        """The sums as the host reads them: it waits for a GPU."""
        return {key: float(value) for key, value in self.sums.items()}

    @cached_property
    def computed(self) -> list[dict[str, float]]:
        """The values that passes read, by name in the order of kernels: what others follow from, then these."""
        result, function = [], self.block.values
        for row, inputs in zip(self.rows, self.inputs, strict=True):
            numbers = {name: m.number(value) for name, value in inputs.items()}
            derived = {} if function is None else evaluated(self.rule, function, row, numbers)
            result.append(numbers | derived)
        return result

    @cached_property
    def inputs(self) -> list[dict[str, float | Tensor]]:
        """Values from which the host's values follow, for a target that computes them itself; tensors stay unread."""
        names = self.block.reads.split()
        rows = zip(self.rows, self.groups, strict=True)
        return [given(self.rule, names, row, self.sums, group, self.elements) for row, group in rows]

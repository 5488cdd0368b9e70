"""Numbers of parameters that users give for the next step: checked at once, and kept among the states until then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.core.shards import Shard, local_tensor
from optgen.runtime.dimensions import kind_dims, shape_of
from optgen.runtime.rule import State
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.step.find_shards import find_shards
from optgen.runtime.step.matrix_parts import form_of_part
from optgen.runtime.step.optimizer_like import OptimizerLike

Given = list[tuple[Tensor, str, Tensor]]
"""Parameters, each with the name of a state and what is to be stored for it."""


def checked(optimizer: OptimizerLike, inputs: Mapping[str, Any]) -> Given:
    """Check numbers of parameters by the names of inputs; nothing is stored.

    Raises:
        TypeError: for an input that the rule has not, and what are no numbers by parameter.
        ValueError: for a parameter that is not in the optimizer, and another number of numbers.
    """
    name, known = optimizer._policy.name, optimizer._policy.rule.given_states
    for key, numbers in inputs.items():
        if key not in known:
            listed = ", ".join(known) or "none"
            raise TypeError(f"{name}.give: the rule {optimizer._policy.rule.name} has no input {key!r} of parameters; "
                            f"it has {listed}")  # fmt: skip
        if not isinstance(numbers, Mapping):
            raise TypeError(f"{name}.give: {key} is numbers by parameter, as {{parameter: tensor}}, not a "
                            f"{type(numbers).__name__}")  # fmt: skip
    settings: dict[int, Mapping[str, Any]] = {}
    for group in optimizer.param_groups:
        for index, param in enumerate(group["params"]):
            settings[id(param)] = {**group, **group.get("overrides", {}).get(index, {})}
    shards = find_shards(name, [param for numbers in inputs.values() for param in numbers if id(param) in settings])
    return [
        (param, key, _own(optimizer, known[key], param, value, settings, shards.get(id(param))))
        for key, numbers in inputs.items()
        for param, value in numbers.items()
    ]


def _own(
    optimizer: OptimizerLike,
    state: State,
    param: Tensor,
    value: Any,
    settings: Mapping[int, Mapping[str, Any]],
    shard: Shard | None,
) -> Tensor:
    """The numbers of what this process has of a parameter, as its state is kept."""
    name, rule = optimizer._policy.name, optimizer._policy.rule
    if id(param) not in settings:
        shape = tuple(param.shape) if isinstance(param, Tensor) else param
        raise ValueError(f"{name}.give: {state.name} of a parameter (shape {shape}) that is not in the optimizer")
    given = torch.as_tensor(value).detach()
    if given.dtype is torch.bool or given.is_complex():
        raise TypeError(f"{name}.give: {state.name} is numbers, not {given.dtype}")
    form = matrix_form(rule, param.shape, settings[id(param)])
    wanted, shape = shape_of(state.kind, form), tuple(given.shape)
    numbers = math.prod(wanted)
    several = numbers // given.numel() if given.numel() else 1
    if not (given.dim() <= 1 or shape[:-1] == wanted[:-1]) or given.numel() * several != numbers:
        seen = "" if form == param.shape else f", which is seen as {tuple(form)},"
        raise ValueError(
            f"{name}.give: {state.name} of a parameter of shape {tuple(param.shape)}{seen} has the shape {shape}, not "
            f"{wanted}: one number for each {state.kind}, or for each of several equal blocks"
        )
    given = given.reshape(-1).repeat_interleave(several).reshape(wanted)
    if shard is not None:
        part = form_of_part(name, rule, shard, settings[id(param)])
        for at, dim in enumerate(kind_dims(state.kind, len(form))):
            if part.offset is not None and part.line_shape[dim] != form[dim]:
                given = given.narrow(at, part.offset[dim], part.line_shape[dim])
    return given.to(local_tensor(param).device, torch.float32, copy=True)


def store(optimizer: OptimizerLike, given: Given) -> None:
    """Keep what was checked; where the state lies already its memory stays, which graphs may read."""
    for param, key, value in given:
        entry = optimizer.state[param]
        old = entry.get(key)
        if isinstance(old, Tensor) and old.shape == value.shape and old.device == value.device:
            old.copy_(value)
        else:
            entry[key] = value

"""Between an optimizer's states and checkpoints of them, where processes have parts of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.runtime.checkpoints.row_format import own_form, saved_form
from optgen.runtime.core.shards import Shard, local_tensor
from optgen.runtime.settings.storage import choose_codecs
from optgen.runtime.step.find_shards import find_shards
from optgen.runtime.step.optimizer_like import OptimizerLike


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter and its key in a checkpoint.

    Attributes:
        own: What this process has of it.
        codecs: Of its element states.
    """

    key: Any
    own: Tensor
    shard: Shard | None
    codecs: tuple[Codec, ...]

    @property
    def lines(self) -> torch.Size | None:
        """The shape that numbers of rows and columns belong to, if it is not the parameter's."""
        return None if self.shard is None else self.shard.line_shape


def places_in(optimizer: OptimizerLike, groups: Sequence[Mapping[str, Any]]) -> list[Place]:
    """The parameters of an optimizer, in their order.

    Args:
        groups: A checkpoint's, as many and as long as the optimizer's.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    shards = find_shards(optimizer._policy.name, params)
    places = []
    for own, theirs in zip(optimizer.param_groups, groups, strict=True):
        for index, (param, key) in enumerate(zip(own["params"], theirs["params"], strict=True)):
            shard = shards.get(id(param))
            overrides = [group.get("overrides", {}).get(index, {}) for group in (theirs, own)]
            settings = {**optimizer.defaults, **own, **overrides[0], **overrides[1]}
            shape = param.shape if shard is None else shard.shape
            codecs = choose_codecs(optimizer._policy.rule, settings, shape.numel())
            places.append(Place(key, local_tensor(param), shard, codecs))
    return places


def with_saved_shards(optimizer: OptimizerLike, saved: dict[str, Any]) -> dict[str, Any]:
    """What `state_dict` returns, with states of DTensor parameters as checkpoints have them."""
    states = dict(saved["state"])
    theirs = zip(optimizer.param_groups, saved["param_groups"], strict=True)
    for place in places_in(optimizer, [{**own, "params": group["params"]} for own, group in theirs]):
        if place.shard is not None and place.shard.placed is not None and place.key in states:
            states[place.key] = saved_form(optimizer._policy.rule, place.shard, place.codecs, states[place.key])
    return {**saved, "state": states}


def with_own_shards(
    optimizer: OptimizerLike, places: Sequence[Place], saved: Mapping[str, Any]
) -> tuple[Mapping[str, Any], list[str]]:
    """A checkpoint whose states are what this process has of them, and what of it does not fit, in words."""
    states, found = dict(saved["state"]), []
    for number, place in enumerate(places):
        entry = states.get(place.key)
        if entry:
            try:
                states[place.key] = own_form(optimizer._policy.rule, place.own, place.shard, place.codecs, entry)
            except (ValueError, RuntimeError) as error:
                found.append(f"parameter {number}: {error}")
    return {**saved, "state": states}, found

"""The parameters of an optimizer and of a checkpoint, side by side: what this process has of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.runtime.core.shards import Owner, Shard, local_tensor
from optgen.runtime.rule import State
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.settings.storage import choose_codecs
from optgen.runtime.step.find_shards import find_shards
from optgen.runtime.step.optimizer_like import OptimizerLike
from optgen.runtime.step.owners import find_owners


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter and its key in a checkpoint.

    Attributes:
        own: Tensor of this process: the parameter, or its part of it.
        codecs: That its states are asked to be in.
        settings: Of the parameter, in the checkpoint.
        seen: Shape that kernels see the parameter in.
        owner: The process that has its matrices, if several have parts of them.
    """

    key: Any
    param: Tensor
    own: Tensor
    shard: Shard | None
    codecs: tuple[Codec, ...]
    settings: Mapping[str, Any]
    seen: torch.Size
    owner: Owner | None = None

    @property
    def has_matrices(self) -> bool:
        """True if this process keeps the matrices of their own dimensions."""
        return self.owner is None or self.owner.here

    def state_shape(self, state: State) -> torch.Size:
        """The shape of a state that has codecs, of which this process has its part; of a matrix all or nothing."""
        if not state.dims:
            return self.own.shape
        return state.shape(self.param.shape, self.settings, here=self.has_matrices)

    @property
    def lines(self) -> torch.Size:
        """The shape that numbers of rows and columns belong to."""
        return self.seen if self.shard is None else self.shard.line_shape


def places_in(optimizer: OptimizerLike, groups: Sequence[Mapping[str, Any]]) -> list[Place]:
    """The parameters of an optimizer, in their order.

    Args:
        groups: A checkpoint's, as many and as long as the optimizer's.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    name, rule = optimizer._policy.name, optimizer._policy.rule
    shards = find_shards(name, params)
    owners = find_owners(name, rule, optimizer.param_groups, shards) if rule.matrix_states else {}
    places = []
    for own, theirs in zip(optimizer.param_groups, groups, strict=True):
        hypers = {key: theirs[key] for key in rule.hypers if key in theirs}
        overrides = [group["overrides"] for group in (theirs, own) if group.get("overrides")]
        common = {**optimizer.defaults, **own, **hypers}
        for index, (param, key) in enumerate(zip(own["params"], theirs["params"], strict=True)):
            shard = shards.get(id(param))
            settings = common
            if overrides:
                for each in overrides:
                    settings = {**settings, **each.get(index, {})}
                settings = {**settings, **hypers}
            codecs = choose_codecs(rule, settings, param.shape if shard is None else shard.shape)
            seen = matrix_form(rule, param.shape, settings)
            places.append(Place(key, param, local_tensor(param), shard, codecs, settings, seen, owners.get(id(param))))
    return places

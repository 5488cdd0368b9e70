"""The parameters of an optimizer and of a checkpoint, side by side: what this process has of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.runtime.core.shards import Owner, Shard, local_tensor
from optgen.runtime.rule import State
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.settings.param_groups import members_of
from optgen.runtime.settings.storage import choose_codecs
from optgen.runtime.step.find_shards import find_shards
from optgen.runtime.step.optimizer_like import OptimizerLike
from optgen.runtime.step.owners import find_owners


class Place(NamedTuple):
    """A parameter and its key in a checkpoint.

    Attributes:
        own: Tensor of this process: the parameter, or its part of it.
        codecs: That its states are asked to be in.
        settings: Of the parameter, once the checkpoint is loaded.
        seen: Shape that kernels see the parameter in.
        owner: The process that computes on its matrices for others too, if one does.
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
        return self.owner is None or self.owner.keeps_matrices

    def state_shape(self, state: State) -> torch.Size:
        """The shape of a state that has codecs, of which this process has its part; of a matrix all or nothing."""
        if not state.dims:
            return self.own.shape
        return state.shape(self.seen, self.settings, here=self.has_matrices)

    @property
    def lines(self) -> torch.Size:
        """The shape that numbers of rows and columns belong to."""
        return self.seen if self.shard is None else self.shard.line_shape


def places_in(optimizer: OptimizerLike, groups: Sequence[Mapping[str, Any]]) -> list[Place]:
    """The parameters of an optimizer, in their order.

    Args:
        groups: As many and as long as the optimizer's, with the keys of a checkpoint as `params`.
    """
    members = list(members_of(optimizer.param_groups, groups, optimizer.defaults))
    keys = [key for group in groups for key in group["params"]]
    name, rule = optimizer._policy.name, optimizer._policy.rule
    shards = find_shards(name, [param for param, _ in members])
    owners = find_owners(name, rule, optimizer.param_groups, shards) if rule.matrix_states else {}
    places = []
    chosen: dict[tuple[Any, ...], tuple[tuple[Codec, ...], torch.Size]] = {}  # models have few shapes
    for key, (param, settings) in zip(keys, members, strict=True):
        shard, owner = shards.get(id(param)), owners.get(id(param))
        kind = (id(settings), param.shape, None if shard is None else shard.shape)
        if kind not in chosen:
            seen = matrix_form(rule, param.shape, settings)
            shape = seen if shard is None or rule.matrix_states else shard.shape
            chosen[kind] = choose_codecs(rule, settings, shape), seen
        codecs, seen = chosen[kind]
        places.append(Place(key, param, local_tensor(param), shard, codecs, settings, seen, owner))
    return places

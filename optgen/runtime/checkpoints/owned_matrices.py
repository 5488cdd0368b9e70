"""States that are matrices of their own dimensions, in checkpoints of parameters that are divided among processes.

A matrix is whole at its owner, and the others have none of it. In a checkpoint its tensors, codes and scales, are as
the owner stores them, DTensors divided by their first dimension among the processes that have parts of the parameter:
any number of processes can load them, and nothing is re-encoded. To save them, owners send the parts of all tensors in
one all-to-all for each process group. A load puts them together, and who is the owner then keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor

from optgen.codecs import Codec
from optgen.runtime.checkpoints.misfits import read_elements
from optgen.runtime.checkpoints.places import Place
from optgen.runtime.core.shards import Box, Owner, Shard, is_dtensor
from optgen.runtime.rule import State
from optgen.runtime.states.stored import Stored, scale_key
from optgen.runtime.states.torch_codecs import zeros
from optgen.runtime.step.all_to_all import Spread, from_owners
from optgen.runtime.step.owners import boxes_in, divided_dims


@dataclass(frozen=True, eq=False)
class Kept:
    """A tensor of a state that an owner has.

    Attributes:
        name: Its key in the entry.
        own: What this process has: all of it, or nothing.
        shape: Of the whole tensor.
    """

    place: Place
    name: str
    own: Tensor
    shape: Size

    @property
    def owner(self) -> Owner:
        """The owner."""
        assert self.place.owner is not None
        return self.place.owner

    @property
    def shard(self) -> Shard:
        """This process's part of the parameter."""
        assert self.place.shard is not None
        return self.place.shard


def kept_tensors(place: Place, state: State, stored: Stored) -> list[Kept]:
    """The tensors of a state: its codes, and its scales if there are any."""
    shape = state.shape(place.seen, place.settings)
    codes = Kept(place, state.name, stored.codes, Size(stored.codec.codes_shape(shape)))
    if stored.scales is None:
        return [codes]
    return [codes, Kept(place, scale_key(state.name), stored.scales, Size((stored.codec.scales(shape.numel()),)))]


def divided(tensors: Sequence[Kept]) -> list[tuple[Kept, Tensor]]:
    """Each with the DTensor that a checkpoint has of it. All processes of their groups take part."""
    by_group: dict[int, list[Kept]] = {}
    for each in tensors:
        by_group.setdefault(id(each.owner.group), []).append(each)
    return [pair for of_group in by_group.values() for pair in _divided(of_group[0].owner.group, of_group)]


def _divided(group: Any, tensors: Sequence[Kept]) -> list[tuple[Kept, Tensor]]:
    spreads = [Spread(each.owner.rank, _boxes(each), each.shape, each.own.dtype) for each in tensors]
    wholes = [each.own for each in tensors if each.owner.here]
    parts = from_owners(group, spreads, wholes, tensors[0].own.device)
    return [(each, _as_dtensor(each, part.clone())) for each, part in zip(tensors, parts, strict=True)]


def _boxes(tensor: Kept) -> tuple[Box | None, ...]:
    return boxes_in(tensor.owner.group, tensor.shard, _placements(tensor.shard), tensor.shape)


def _placements(shard: Shard) -> list[Any]:
    """Placements of a tensor by its first dimension: along the first dimension of the mesh that divides the parameter.

    A second one would divide what has been divided, which torch 2.8 does not put together where that is uneven.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as Divided

    assert shard.placed is not None
    first = divided_dims(shard)[0]
    return [Divided(0) if dim == first else Replicate() for dim in range(shard.placed[0].ndim)]


def _as_dtensor(tensor: Kept, part: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    assert tensor.shard.placed is not None
    shape = tensor.shape
    stride = tuple(shape[i + 1 :].numel() for i in range(len(shape)))
    return DTensor.from_local(
        part, tensor.shard.placed[0], _placements(tensor.shard), run_check=False, shape=shape, stride=stride
    )


def own_matrix(state: State, place: Place, saved: Mapping[str, Any], said: Sequence[Codec], wanted: Codec) -> Stored:
    """A saved state as this process keeps it: all of it, or none of its rows.

    Args:
        said: The codecs that the checkpoint says it has.
        wanted: The one that comes before others where shapes could leave it in doubt.

    Raises:
        TypeError, ValueError: for what is no such state.
    """
    codes, scales = _whole(saved[state.name]), _whole(saved.get(scale_key(state.name)))
    found = read_elements(state, state.shape(place.seen, place.settings), codes, scales, said, (wanted,))
    if place.has_matrices:
        return found
    return Stored(found.codec, *zeros(found.codec, place.state_shape(state), state.signed, found.codes.device))


def _whole(value: Any) -> Any:
    return value.full_tensor() if is_dtensor(value) else value

"""Tensors between processes that have parts of them and one that has each whole, its owner.

However many tensors there are, and of whatever dtypes, they travel in one all-to-all of bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor

from optgen.runtime.core.shards import Box

ALIGNED = 16  # bytes that every part begins at a multiple of
NOTHING: Box = ((0,), Size((0,)))


@dataclass(frozen=True)
class Spread:
    """A tensor of which each process of a group has a part.

    Attributes:
        owner: Rank of the one that has all of it.
        boxes: The part of each; None if it takes no part.
    """

    owner: int
    boxes: tuple[Box | None, ...]
    shape: Size
    dtype: torch.dtype

    def bytes_of(self, rank: int) -> int:
        """Bytes that a process's part takes."""
        _, sizes = self.boxes[rank] or NOTHING
        return -(-sizes.numel() * self.dtype.itemsize // ALIGNED) * ALIGNED

    def part(self, memory: Tensor, rank: int) -> Tensor:
        """A process's part, where it lies in bytes."""
        _, sizes = self.boxes[rank] or NOTHING
        return memory[: sizes.numel() * self.dtype.itemsize].view(self.dtype).view(sizes)

    def place(self, whole: Tensor, rank: int) -> Tensor:
        """A process's part, where it lies in the whole tensor."""
        box = self.boxes[rank]
        if box is None:
            return whole.new_empty(0)
        for dim, (first, length) in enumerate(zip(*box, strict=True)):
            whole = whole.narrow(dim, min(first, whole.shape[dim]), length)
        return whole


def to_owners(group: Any, spreads: Sequence[Spread], parts: Sequence[Tensor]) -> list[Tensor]:
    """The whole tensors that this process owns, in their order, of the parts that all processes have.

    Args:
        parts: This process's, one of each tensor.
    """
    import torch.distributed as dist

    rank, size = dist.get_rank(group), dist.get_world_size(group)
    by_owner = [[i for i, each in enumerate(spreads) if each.owner == owner] for owner in range(size)]
    sent, outgoing = _memory(parts[0].device, [[spreads[i].bytes_of(rank) for i in own] for own in by_owner])
    for own, memory in zip(by_owner, outgoing, strict=True):
        for i, piece in zip(own, memory, strict=True):
            place = spreads[i].part(piece, rank)
            place.copy_(parts[i].reshape(place.shape))
    mine = [spreads[i] for i in by_owner[rank]]
    given, incoming = _memory(parts[0].device, [[each.bytes_of(at) for each in mine] for at in range(size)])
    _all_to_all(group, given, incoming, sent, outgoing)
    wholes = [torch.empty(each.shape, dtype=each.dtype, device=given.device) for each in mine]
    for at, memory in enumerate(incoming):
        for each, whole, piece in zip(mine, wholes, memory, strict=True):
            each.place(whole, at).copy_(each.part(piece, at))
    return wholes


def from_owners(group: Any, spreads: Sequence[Spread], wholes: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """This process's parts of all tensors, in their order, in one piece of memory.

    Args:
        wholes: The tensors that this process owns, in their order.
    """
    import torch.distributed as dist

    rank, size = dist.get_rank(group), dist.get_world_size(group)
    mine = [each for each in spreads if each.owner == rank]
    sent, outgoing = _memory(device, [[each.bytes_of(to) for each in mine] for to in range(size)])
    for to, memory in enumerate(outgoing):
        for each, whole, piece in zip(mine, wholes, memory, strict=True):
            each.part(piece, to).copy_(each.place(whole, to))
    by_owner = [[each for each in spreads if each.owner == owner] for owner in range(size)]
    given, incoming = _memory(device, [[each.bytes_of(rank) for each in own] for own in by_owner])
    _all_to_all(group, given, incoming, sent, outgoing)
    pieces = list(map(iter, incoming))
    return [each.part(next(pieces[each.owner]), rank) for each in spreads]


Pieces = list[tuple[Tensor, ...]]  # of memory, for each process


def _memory(device: torch.device, sizes: Sequence[Sequence[int]]) -> tuple[Tensor, Pieces]:
    """Memory for pieces of so many bytes of every process, and the pieces."""
    memory = torch.empty(sum(map(sum, sizes)), dtype=torch.uint8, device=device)
    of_ranks = torch.split(memory, [sum(own) for own in sizes])
    return memory, [torch.split(of_rank, list(own)) for of_rank, own in zip(of_ranks, sizes, strict=True)]


def _all_to_all(group: Any, given: Tensor, incoming: Pieces, sent: Tensor, outgoing: Pieces) -> None:
    import torch.distributed as dist

    taken, put = ([sum(piece.numel() for piece in of_rank) for of_rank in pieces] for pieces in (incoming, outgoing))
    dist.all_to_all_single(given, sent, taken, put, group=group)

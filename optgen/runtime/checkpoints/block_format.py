"""Quantized states of parts that are not divided by rows alone, in a form that any number of processes can read.

Such a part is a box of the tensor: columns of it, or rows and columns. Its blocks run through the box, so that neither
rows nor columns of the tensor have scales of their own. With `dims` the dimensions that placements divide:

- `NAME`: codes, placed as the parameter; of 4 bits (sizes of dims..., bytes), the other dimensions packed, and
  (sizes of dims...) where that would be the parameter's own shape.
- `NAME_scales`: (sizes of dims..., places), divided as the parameter. A part's scales lie in its own places, one after
  the other, and zeros behind them: there is room for them however the tensor is divided.
- `NAME_division`: int32 (times + 1, dimensions), among how many processes each dimension was divided, time after time
  (0: it was not), and the elements of a block. The same on all processes.

Who has the same boxes takes codes and scales as they are. Others gather the scales, and find for every element the one
that it had: a state's scales are a 64th of its 8-bit codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import WHOLE_TENSOR, Codec
from optgen.runtime.core.shards import Shard, is_dtensor, local_tensor
from optgen.runtime.step.find_shards import divisions_of

ELEMENTS = 2**20  # whose scales are looked for at a time


def division_key(name: str) -> str:
    """The key of how a state was divided."""
    return f"{name}_division"


def places_key(name: str) -> str:
    """The key of a state's scales, where they are no rows'."""
    return f"{name}_scales"


def _counts(shard: Shard) -> list[list[int]]:
    """Among how many processes placements divide each dimension, one after the other."""
    counts: list[list[int]] = [[] for _ in shard.shape]
    for dim, count, _ in [] if shard.placed is None else divisions_of(shard.placed):
        counts[dim].append(count)
    return counts


def _dims(counts: Sequence[Sequence[int]]) -> list[int]:
    return [dim for dim, own in enumerate(counts) if own]


def _division(counts: Sequence[Sequence[int]], block: int) -> Tensor:
    times = max(map(len, counts))
    rows = [[own[i] if i < len(own) else 0 for own in counts] for i in range(times)]
    return torch.tensor([*rows, [block] * len(counts)], dtype=torch.int32)


def _counts_in(division: Tensor) -> list[list[int]]:
    return [[count for count in column if count] for column in division[:-1].T.tolist()]


def _spans(size: int, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Where parts of a dimension begin, and how long they are, empty ones left out: each division as torch.chunk."""
    spans = [(0, size)]
    for count in counts:
        spans = [
            (begin + first, min(length, whole - first))
            for begin, whole in spans
            for length in (max(math.ceil(whole / count), 1),)
            for first in range(0, whole, length)
        ]
    return spans


def _rest(shape: Sequence[int], dims: Sequence[int]) -> int:
    return math.prod(size for dim, size in enumerate(shape) if dim not in dims)


def _order(shape: Sequence[int], dims: Sequence[int]) -> list[int]:
    """Dimensions, divided ones first."""
    return [*dims, *(dim for dim in range(len(shape)) if dim not in dims)]


# To a checkpoint


def boxed_form(name: str, codec: Codec, shard: Shard, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
    """A state as it is saved; a single scale of the whole tensor stays where it is."""
    dims = _dims(_counts(shard))
    own = [shard.own[dim] for dim in dims]
    result = {division_key(name): _division(_counts(shard), codec.block)}
    if codec.packed > 1:
        flat = unpack(codes, shard.own.numel()).reshape(shard.own).permute(_order(shard.shape, dims))
        packed = pack(flat.reshape(math.prod(own), _rest(shard.shape, dims)))
        tail = bytes_of_lines([shard.shape[dim] for dim in dims], _rest(shard.shape, dims), codec, shard.shape)
        codes = packed.reshape(*own, *tail)
    result[name] = _placed(codes, shard, dims, same=codec.packed == 1)
    if codec.block != WHOLE_TENSOR:
        places = math.ceil(_rest(shard.shape, dims) / codec.block)
        room = scales.new_zeros(math.prod(own) * places)
        room[: scales.numel()] = scales
        result[places_key(name)] = _placed(room.reshape(*own, places), shard, dims, same=False)
    return result


def _placements(shard: Shard, dims: Sequence[int], same: bool) -> tuple[Any, ...]:
    """The placements of a tensor whose dimensions are the parameter's, or the divided ones and one more."""
    assert shard.placed is not None
    placements: tuple[Any, ...] = shard.placed[1]
    if same:
        return placements
    return tuple(_moved(p, dims.index(p.dim)) if hasattr(p, "dim") else p for p in placements)


def _moved(placement: Any, dim: int) -> Any:
    """The same division of another dimension."""
    from torch.distributed.tensor import Shard

    if isinstance(placement, Shard):
        return Shard(dim)
    return type(placement)(dim, split_factor=placement.split_factor)


def _placed(own: Tensor, shard: Shard, dims: Sequence[int], same: bool) -> Tensor:
    """This process's part as a DTensor; `same` as for its placements: the sizes of the two can be equal."""
    from torch.distributed.tensor import DTensor

    assert shard.placed is not None
    shape = shard.shape if same else torch.Size((*(shard.shape[dim] for dim in dims), *own.shape[len(dims) :]))
    stride = [shape[i + 1 :].numel() for i in range(len(shape))]
    placements = _placements(shard, dims, same)
    return DTensor.from_local(own, shard.placed[0], placements, run_check=False, shape=shape, stride=tuple(stride))


# From a checkpoint


def own_boxed_codes(codes: Tensor, shard: Shard, codec: Codec, division: Tensor) -> Tensor:
    """This process's codes of 4 bits, in the order of its part.

    Raises:
        ValueError: if the part is no box.
    """
    dims = _dims(_counts_in(division))
    order = _order(shard.shape, dims)
    shape = shard.own if _is_own(codes, shard, dims) else shard.shape
    grid = local_tensor(codes) if shape is shard.own else _whole(codes)
    ordered = [shape[dim] for dim in order]
    count, rest = math.prod(shape[dim] for dim in dims), _rest(shape, dims)
    places = codec.packed * math.ceil(rest / codec.packed)
    by_line = unpack(grid, codec.packed * grid.numel()).reshape(count, places)[:, :rest]
    back = [order.index(dim) for dim in range(len(order))]
    result = by_line.reshape(ordered).permute(back)
    return pack(box_of(result, shard, shape).reshape(1, -1))[0]


def box_of(values: Tensor, shard: Shard, shape: Sequence[int]) -> Tensor:
    """A part of values that have this shape, the part's own or the whole tensor's."""
    if tuple(shape) != tuple(shard.own):
        for dim, (first, length) in enumerate(zip(_offset(shard), shard.own, strict=True)):
            values = values.narrow(dim, min(first, values.shape[dim]), length)
    return values.contiguous()


def own_boxed_scales(
    places: Tensor, shard: Shard, codec: Codec, division: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """This process's scales, if it has a box that was saved; else the scale that each of its elements had.

    Raises:
        ValueError: if the part is no box.
    """
    counts, block = _counts_in(division), int(division[-1, 0])
    dims = _dims(counts)
    spans = [_spans(size, own) for size, own in zip(shard.shape, counts, strict=True)]
    if spans == [_spans(size, own) for size, own in zip(shard.shape, _counts(shard), strict=True)]:
        own = local_tensor(places) if _is_own(places, shard, dims) else _own_places(_whole(places), shard, dims)
        return own.reshape(-1)[: codec.scales(shard.own.numel())].contiguous(), None
    whole = _whole(places)
    rows = max(1, ELEMENTS // max(shard.own[1:].numel(), 1))
    found = whole.new_empty(shard.own)
    for first in range(0, shard.own[0], rows):
        last = min(first + rows, shard.own[0])
        found[first:last] = _scales_of(whole, shard, first, last, dims, spans, block)
    return None, found


def _own_places(places: Tensor, shard: Shard, dims: Sequence[int]) -> Tensor:
    for i, dim in enumerate(dims):
        places = places.narrow(i, min(_offset(shard)[dim], shard.shape[dim]), shard.own[dim])
    return places


def _scales_of(
    places: Tensor,
    shard: Shard,
    first: int,
    last: int,
    dims: Sequence[int],
    spans: Sequence[Sequence[tuple[int, int]]],
    block: int,
) -> Tensor:
    """The scale of each element of some rows of this part: where it lay in the box that it was saved from."""
    begins, sizes = [], []
    place = torch.zeros(1, dtype=torch.int64, device=places.device)
    for dim, offset in enumerate(_offset(shard)):
        own = slice(first, last) if dim == 0 else slice(shard.own[dim])
        numbers = torch.arange(offset, offset + shard.own[dim], device=places.device)[own]
        begin, size = (values.to(places.device)[numbers] for values in _of_indices(spans[dim]))
        line = [-1 if other == dim else 1 for other in range(len(shard.shape))]
        begins.append(begin.reshape(line))
        sizes.append(size.reshape(line))
        place = place * sizes[dim] + numbers.reshape(line) - begins[dim]
    number = place // block
    before, among = number // places.shape[-1], number % places.shape[-1]
    index = []
    for dim in reversed(dims):
        index.append(begins[dim] + before % sizes[dim])
        before = before // sizes[dim]
    return places[(*reversed(index), among)]


def _of_indices(spans: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """For every index of a dimension, where its part begins and how long that is."""
    begins, sizes = torch.tensor(spans, dtype=torch.int64).reshape(-1, 2).T
    return begins.repeat_interleave(sizes), sizes.repeat_interleave(sizes)


def _is_own(value: Tensor, shard: Shard, dims: Sequence[int]) -> bool:
    """Whether a tensor of a checkpoint is divided as this part is."""
    if not is_dtensor(value) or shard.placed is None or _dims(_counts(shard)) != list(dims):
        return False
    mesh, placements = value.device_mesh, tuple(value.placements)  # type: ignore[attr-defined]
    return mesh == shard.placed[0] and placements == _placements(shard, dims, same=False)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if is_dtensor(value) else value  # type: ignore[attr-defined]


def _offset(shard: Shard) -> tuple[int, ...]:
    if shard.offset is None:
        raise ValueError("a plain tensor cannot be divided as its parameter is")
    return shard.offset


# Codes of 4 bits


def bytes_of_lines(lines: Sequence[int], size: int, codec: Codec, shape: Sequence[int]) -> tuple[int, ...]:
    """The last dimension of packed codes of lines of so many elements: bytes.

    There is none where lines of one byte would give codes the parameter's own shape: those of 8 bits have that.
    """
    each = math.ceil(size / codec.packed)
    return () if (*lines, each) == tuple(shape) else (each,)


def unpack(codes: Tensor, count: int) -> Tensor:
    """4-bit codes, the first of a byte in its upper half, one to a number."""
    return torch.stack((codes >> 4, codes & 15), dim=-1).reshape(-1)[:count]


def pack(codes: Tensor) -> Tensor:
    """Rows of 4-bit codes, two to a byte; a row's last byte may hold one."""
    if codes.shape[1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return codes[:, 0::2] << 4 | codes[:, 1::2]

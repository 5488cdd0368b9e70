"""Elements of sharded tensors in checkpoints, line by line.

Some dimensions of a tensor, `dims`, count its lines; its other dimensions lie along them. Where placements divide no
dimension but those, a line is in one process, or as much as the tensor in that: codes of 4 bits are packed so, and
scales stand in tables that have `dims` and one dimension more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.runtime.core.shards import Shard, is_dtensor, local_tensor
from optgen.runtime.states.torch_codecs import packed, unpacked
from optgen.runtime.step.find_shards import divisions_of

# Parts of tensors


def placed(own: Tensor, shard: Shard, dims: Sequence[int]) -> Tensor:
    """This process's part as a DTensor, whose first dimensions are these of the parameter and divided as they are."""
    from torch.distributed.tensor import DTensor

    assert shard.placed is not None
    shape = torch.Size((*(shard.shape[dim] for dim in dims), *own.shape[len(dims) :]))
    stride = tuple(shape[i + 1 :].numel() for i in range(len(shape)))
    placements = _placements(shard, dims)
    return DTensor.from_local(own, shard.placed[0], placements, run_check=False, shape=shape, stride=stride)


def _placements(shard: Shard, dims: Sequence[int]) -> tuple[Any, ...]:
    from torch.distributed.tensor import Replicate

    assert shard.placed is not None
    placements: tuple[Any, ...] = shard.placed[1]
    return tuple(
        p if not hasattr(p, "dim") else _moved(p, dims.index(p.dim)) if p.dim in dims else Replicate()
        for p in placements
    )


def _moved(placement: Any, dim: int) -> Any:
    """The same division of another dimension."""
    from torch.distributed.tensor import Shard

    if placement.dim == dim:
        return placement
    split = getattr(placement, "split_factor", None)
    return Shard(dim) if split is None else type(placement)(dim, split_factor=split)


def _read(value: Tensor, shard: Shard, dims: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """A tensor of a checkpoint, and the shape of the part of the parameter that it is about: this process's, or all."""
    if is_dtensor(value):
        mesh, placements = value.device_mesh, tuple(value.placements)  # type: ignore[attr-defined]
        if shard.placed is not None and (mesh, placements) == (shard.placed[0], _placements(shard, dims)):
            about = (shard.own[dim] if dim in dims else size for dim, size in enumerate(shard.shape))
            return local_tensor(value), tuple(about)
        value = value.full_tensor()  # type: ignore[attr-defined]
    return value, tuple(shard.shape)


def whole_shard(shape: torch.Size) -> Shard:
    """All of a tensor as a part of it."""
    return Shard(shape, shape, (), (0,) * len(shape), 0)


def cut(values: Tensor, shard: Shard, about: Sequence[int]) -> Tensor:
    """This process's part of values about a part of the parameter.

    Raises:
        ValueError: if that is neither a box nor a stretch of the tensor.
    """
    if tuple(about) == tuple(shard.own):
        return values.contiguous()
    if shard.offset is None and shard.placed is None and shard.start is not None:
        return values.reshape(-1)[shard.start : shard.start + shard.own.numel()]
    for dim, first in enumerate(_offset(shard)):
        if about[dim] != shard.own[dim]:
            values = values.narrow(dim, min(first, values.shape[dim]), shard.own[dim])
    return values.contiguous()


def _offset(shard: Shard) -> tuple[int, ...]:
    if shard.offset is None:
        raise ValueError("a plain tensor cannot be divided as its parameter is")
    return shard.offset


def own_values(value: Tensor, shard: Shard) -> Tensor:
    """This process's part of a tensor that has a number an element.

    Raises:
        ValueError: if it has another shape than the parameter, or is not divided as that is.
    """
    value, about = _read(value, shard, range(len(shard.shape)))
    if about == tuple(shard.shape) != tuple(value.shape):
        raise ValueError(f"a state has shape {tuple(value.shape)}, and its parameter {about}")
    return cut(value, shard, about)


def own_lines(table: Tensor, shard: Shard, dims: Sequence[int]) -> Tensor:
    """The part of a table of this process, or all of it where its part of the parameter is no box.

    Args:
        dims: What the first dimensions of the table are of the parameter; it has the others whole.

    Raises:
        ValueError: if it is not about this parameter.
    """
    table, about = _read(table, shard, dims)
    if [*table.shape[: len(dims)]] != [about[dim] for dim in dims]:
        raise ValueError(f"a tensor of shape {tuple(table.shape)} for lines of one of {tuple(shard.shape)}")
    for i, dim in enumerate(dims if shard.offset is not None else ()):
        if about[dim] != shard.own[dim]:
            table = table.narrow(i, min(_offset(shard)[dim], about[dim]), shard.own[dim])
    return table.contiguous()


# Codes of 4 bits


def bytes_of_lines(codec: Codec, shape: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
    """The last dimension of packed codes line by line: bytes.

    There is none where lines of one byte would give codes the parameter's own shape: those of 8 bits have that.
    """
    each = math.ceil(rest_of(shape, dims) / codec.packed)
    return () if (*(shape[dim] for dim in dims), each) == tuple(shape) else (each,)


def lines_shape(codec: Codec, shape: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
    """The shape of codes in a checkpoint: the parameter's, or that of packed lines."""
    return tuple(shape) if codec.packed == 1 else (*(shape[dim] for dim in dims), *bytes_of_lines(codec, shape, dims))


def packed_lines(codes: Tensor, shard: Shard, codec: Codec, dims: Sequence[int]) -> Tensor:
    """This process's codes, packed line by line."""
    own = [shard.own[dim] for dim in dims]
    values = unpacked(codes)[: shard.own.numel()].reshape(shard.own).permute(_order(shard.shape, dims))
    by_line = packed(codec, values.reshape(math.prod(own), rest_of(shard.shape, dims)))
    return by_line.reshape(*own, *bytes_of_lines(codec, shard.shape, dims))


def own_codes(codes: Tensor, shard: Shard, codec: Codec, dims: Sequence[int]) -> Tensor:
    """This process's codes, in the order of its part; those of 4 bits are packed line by line in the checkpoint.

    Raises:
        ValueError: if the part is no box.
    """
    if codec.packed == 1:
        return own_values(codes, shard)
    codes, about = _read(codes, shard, dims)
    order, rest = _order(about, dims), rest_of(about, dims)
    places = codec.packed * math.ceil(rest / codec.packed)
    lines = unpacked(codes).reshape(math.prod(about[dim] for dim in dims), places)
    values = lines[:, :rest].reshape([about[dim] for dim in order]).permute([order.index(d) for d in range(len(order))])
    return packed(codec, cut(values, shard, about).reshape(1, -1))[0]


def rest_of(shape: Sequence[int], dims: Sequence[int]) -> int:
    """Number of elements of a line."""
    return math.prod(size for dim, size in enumerate(shape) if dim not in dims)


def _order(shape: Sequence[int], dims: Sequence[int]) -> list[int]:
    """Dimensions, those that count lines first."""
    return [*dims, *(dim for dim in range(len(shape)) if dim not in dims)]


# Scales of rows: those of the blocks that each lies in


def row_scales(scales: Tensor, shard: Shard, block: int) -> tuple[Tensor, Tensor | None]:
    """(rows, pieces), and where rows are no whole blocks (rows, 2): how far into one each begins, and its elements."""
    rows, size = shard.own[0], shard.shape[1:].numel()
    first = torch.arange(rows, device=scales.device) * size
    pieces = size // block if size % block == 0 else 1 + math.ceil((size - 1) / block)
    at = (first // block)[:, None] + torch.arange(pieces, device=scales.device)
    table = scales[at.clamp(max=max(scales.numel() - 1, 0))] if rows else scales.new_empty(0, pieces)
    if size % block == 0:
        return table, None
    return table, torch.stack([first % block, torch.full_like(first, block)], dim=1).to(torch.int32)


def own_row_scales(
    table: Tensor, begins: Tensor | None, shard: Shard, codec: Codec
) -> tuple[Tensor | None, Tensor | None]:
    """This process's scales, if its blocks begin where those of the table do; else the scale of each element.

    Args:
        table: As `own_lines` has returned it, and `begins` too.
    """
    rows, size, block = table.shape[0], shard.shape[1:].numel(), codec.block
    first = torch.arange(rows, device=table.device) * size
    phase = torch.zeros_like(first) if begins is None else begins[:, 0].long()
    whole_rows = (rows, *shard.shape[1:])
    if whole_rows == tuple(shard.own) and bool((first % block == phase).all()):
        absmax = table.new_zeros(codec.scales(rows * size))
        at = (first // block)[:, None] + torch.arange(table.shape[1], device=table.device)
        inside = at * block < (first + size)[:, None]
        absmax[at[inside]] = table[inside]
        if bool((absmax[at[inside]] == table[inside]).all()):
            return absmax, None
    piece = (phase[:, None] + torch.arange(size, device=table.device)) // block
    return None, cut(table.gather(1, piece).reshape(whole_rows), shard, whole_rows)


# Scales of boxes: parts that are not divided by rows alone


def box_scales(scales: Tensor, shard: Shard, dims: Sequence[int], block: int) -> Tensor:
    """(sizes of dims..., places): a part's scales in its own places, and zeros behind them."""
    own, places = [shard.own[dim] for dim in dims], math.ceil(rest_of(shard.shape, dims) / block)
    room = scales.new_zeros(math.prod(own) * places)
    room[: scales.numel()] = scales
    return room.reshape(*own, places)


def counts_of(shard: Shard) -> list[list[int]]:
    """Among how many processes placements divide each dimension, one after the other."""
    counts: list[list[int]] = [[] for _ in shard.shape]
    for dim, count, _ in [] if shard.placed is None else divisions_of(shard.placed):
        counts[dim].append(count)
    return counts


def dims_of(counts: Sequence[Sequence[int]]) -> list[int]:
    """The dimensions that are divided."""
    return [dim for dim, own in enumerate(counts) if own]


def division(counts: Sequence[Sequence[int]], block: int) -> Tensor:
    """Counts and the elements of a block as a tensor: see checkpoints/shards.py."""
    times = max(map(len, counts))
    rows = [[own[i] if i < len(own) else 0 for own in counts] for i in range(times)]
    return torch.tensor([*rows, [block] * len(counts)], dtype=torch.int32)


def counts_in(divided: Tensor, shard: Shard) -> tuple[list[list[int]], int]:
    """The counts and the elements of a block that `division` was made of.

    Raises:
        ValueError: if they are not of this tensor.
    """
    if divided.dim() != 2 or divided.shape[1] != len(shard.shape) or not divided.shape[0]:
        raise ValueError(f"a division of shape {tuple(divided.shape)}, of a tensor of shape {tuple(shard.shape)}")
    return [[count for count in column if count] for column in divided[:-1].T.tolist()], int(divided[-1, 0])


def _spans(size: int, counts: Sequence[int]) -> list[tuple[int, int]]:
    """Beginnings and lengths of the parts of a dimension, without empty ones; each division is that of torch.chunk."""
    spans = [(0, size)]
    for count in counts:
        spans = [
            (begin + first, min(length, whole - first))
            for begin, whole in spans
            for length in (max(math.ceil(whole / count), 1),)
            for first in range(0, whole, length)
        ]
    return spans


def own_box_scales(
    places: Tensor, counts: Sequence[Sequence[int]], shard: Shard, codec: Codec
) -> tuple[Tensor | None, Tensor | None]:
    """This process's scales, if it has a box that was saved; else the scale of each element.

    Raises:
        ValueError: if the part is neither a box nor a stretch of the tensor, or scales are not of it.
    """
    dims, own = dims_of(counts), shard.own.numel()
    spans = [_spans(size, times) for size, times in zip(shard.shape, counts, strict=True)]
    present = [_spans(size, times) for size, times in zip(shard.shape, counts_of(shard), strict=True)]
    if spans == present and shard.offset is not None:
        return own_lines(places, shard, dims).reshape(-1)[: codec.scales(own)], None
    whole = whole_shard(shard.shape)
    places, part = own_lines(places, whole, dims), whole if shard.offset is None else shard
    found = places.new_empty(part.own)
    for box in itertools.product(*spans):
        both = [
            (max(begin, first), min(begin + size, first + length))
            for (begin, size), first, length in zip(box, _offset(part), part.own, strict=True)
        ]
        if any(first >= last for first, last in both):
            continue
        scales = places[tuple(slice(box[dim][0], sum(box[dim])) for dim in dims)].reshape(-1)
        rest = math.prod(size for _, size in box[1:])
        first, last = (rest * (row - box[0][0]) for row in both[0])  # of the rows that are needed of the box
        by_element = scales[first // codec.block : -(-last // codec.block)].repeat_interleave(codec.block)
        by_element = by_element[first % codec.block :][: last - first].reshape(-1, *(size for _, size in box[1:]))
        for dim, (begin, end) in list(enumerate(both))[1:]:
            by_element = by_element.narrow(dim, begin - box[dim][0], end - begin)
        at = zip(both, _offset(part), strict=True)
        found[tuple(slice(begin - before, end - before) for (begin, end), before in at)] = by_element
    return None, cut(found, shard, part.own)

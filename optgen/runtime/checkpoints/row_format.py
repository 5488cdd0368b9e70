"""States of DTensor parameters in checkpoints, in a form that does not depend on how many processes there are.

- What has a number an element becomes a DTensor placed as its parameter: torch.distributed.checkpoint saves it from any
  number of processes and loads it into any other.
- Numbers of rows, columns and the tensor are the same on all processes, and stay plain tensors; of tensors of three
  dimensions and more, whose matrices are divided, they are DTensors too.
- Blocks of a quantized state begin with a process's part, which another number of processes cuts elsewhere. So scales
  are kept row by row of the first dimension: `NAME_absmax` is (rows, pieces), the scales of the blocks that a row lies
  in. Where rows are no whole blocks, `NAME_blocks` is (rows, 2): how far into a block a row begins, and the elements of
  a block. Codes of 4 bits are packed row by row: (rows, bytes), and (rows,) for a parameter of one column, whose shape
  would be that of 8-bit codes. Whoever cuts blocks in the same places takes them over bit for bit; others decode the
  state and store it anew.
- Parts that are not divided by rows alone cannot be told so: block_format.py has the form of their quantized states.
  Checkpoints of before had them as `NAME_values`, float32, which are still read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import CODECS, COMPENSATION, WHOLE_TENSOR, Codec
from optgen.runtime.checkpoints.block_format import (
    boxed_form,
    bytes_of_lines,
    division_key,
    own_boxed_codes,
    own_boxed_scales,
    pack,
    places_key,
    unpack,
)
from optgen.runtime.core.shards import Shard, is_dtensor, local_tensor
from optgen.runtime.rule import Rule, State
from optgen.runtime.states.store import stored_shape, stored_shapes
from optgen.runtime.states.stored import recognised, scale_key
from optgen.runtime.states.torch_codecs import decode, encode


def blocks_key(name: str) -> str:
    """The key of where a state's rows begin in its blocks."""
    return f"{name}_blocks"


def values_key(name: str) -> str:
    """The key of a quantized state that is kept as float32."""
    return f"{name}_values"


# To a checkpoint


def saved_form(rule: Rule, shard: Shard, codecs: tuple[Codec, ...], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state as it is saved; memory is shared where possible.

    Args:
        codecs: Of every element state, as settings ask for them.
    """
    assert shard.placed is not None
    wanted = dict(zip((state.name for state in rule.element_states), codecs, strict=True))
    result = dict(entry)
    if isinstance(entry.get(COMPENSATION), Tensor):
        result[COMPENSATION] = _placed(entry[COMPENSATION], shard, shard.shape)
    for state in (*rule.element_states, *rule.tensor_states):
        value = entry.get(state.name)
        if not isinstance(value, Tensor):
            continue
        if state.kind != "element":
            if shard.cuts_matrices and state.window is None and state.kind != "tensor":
                result[state.name] = _placed(value, shard, torch.Size(stored_shape(state, shard.shape)))
            continue
        scales = entry.get(scale_key(state.name))
        try:
            codec = recognised(state, value, scales, shard.own, (wanted[state.name],))
        except ValueError:  # a hook has made something else of it
            continue
        result.update(_saved_elements(state, codec, shard, value, scales))
        if places_key(state.name) in result:
            del result[scale_key(state.name)]
    return result


def _saved_elements(
    state: State, codec: Codec, shard: Shard, codes: Tensor, scales: Tensor | None
) -> dict[str, Tensor]:
    name, shape = state.name, shard.shape
    if scales is None:
        return {name: _placed(codes, shard, shape)}
    if not _by_rows(shard) and (codec.block != WHOLE_TENSOR or codec.packed > 1):
        return boxed_form(name, codec, shard, codes, scales)
    rows, size = shard.own[0], shape[1:].numel()
    result = {name: _placed(codes, shard, shape)} if codec.packed == 1 else {}
    if codec.packed > 1:
        by_row = pack(unpack(codes, rows * size).reshape(rows, size))
        tail = bytes_of_lines(shape[:1], size, codec, shape)
        result[name] = _placed(by_row.reshape(rows, *tail), shard, torch.Size((shape[0], *tail)))
    if codec.block == WHOLE_TENSOR:
        return result
    first = torch.arange(rows, device=codes.device) * size
    pieces = piece_count(size, codec.block)
    at = (first // codec.block)[:, None] + torch.arange(pieces, device=codes.device)
    by_row = scales[at.clamp(max=max(scales.numel() - 1, 0))] if rows else scales.new_empty(0, pieces)
    result[scale_key(name)] = _placed(by_row, shard, torch.Size((shape[0], pieces)))
    if size % codec.block:
        begins = torch.stack([first % codec.block, torch.full_like(first, codec.block)], dim=1).to(torch.int32)
        result[blocks_key(name)] = _placed(begins, shard, torch.Size((shape[0], 2)))
    return result


def _by_rows(shard: Shard) -> bool:
    """Whether rows of the first dimension are what placements divide, among one process or many."""
    assert shard.placed is not None
    return all(getattr(placement, "dim", 0) == 0 for placement in shard.placed[1])


def piece_count(size: int, block: int) -> int:
    """How many blocks a row of `size` elements lies in at most."""
    return size // block if size % block == 0 else 1 + math.ceil((size - 1) / block)


def _placed(own: Tensor, shard: Shard, shape: torch.Size) -> Tensor:
    """A process's part as a DTensor of this shape; dimensions that it lacks, or has whole, are not divided."""
    from torch.distributed.tensor import DTensor, Replicate

    assert shard.placed is not None
    mesh, placements = shard.placed
    stride = [shape[i + 1 :].numel() for i in range(len(shape))]
    if len(shape) != len(shard.shape) or tuple(shape) != tuple(shard.shape):
        kept = {d.dim for d in shard.divisions if d.dim is not None and _is_kept(d.dim, shard, shape, own)}
        placements = tuple(p if getattr(p, "dim", None) in kept else Replicate() for p in placements)
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=shape, stride=tuple(stride))


def _is_kept(dim: int, shard: Shard, shape: torch.Size, own: Tensor) -> bool:
    return (
        dim < own.dim()
        and shape[dim] == shard.shape[dim]
        and own.shape[dim] == shard.own[dim]
        and (dim == 0 or dim < len(shard.shape) - 2)
    )


# From a checkpoint


def own_form(
    rule: Rule, param: Tensor, shard: Shard | None, codecs: tuple[Codec, ...], saved: Mapping[str, Any]
) -> Mapping[str, Any]:
    """A saved state as this process keeps it; what needs nothing is handed on as it is.

    Args:
        shard: Of a DTensor parameter.
        codecs: Of every element state, as settings ask for them.

    Raises:
        ValueError: naming what does not fit.
    """
    own_keys = (blocks_key, values_key, division_key, places_key)
    keys = {key(state.name) for state in rule.element_states for key in own_keys}
    if shard is None:
        scales = [saved.get(scale_key(state.name)) for state in rule.element_states]
        by_row = any(isinstance(value, Tensor) and value.dim() > 1 for value in scales)
        by_row = by_row or any(_is_packed_by_rows(saved.get(state.name), param.shape) for state in rule.element_states)
        if not by_row and not any(key in keys or is_dtensor(value) for key, value in saved.items()):
            return saved
        shard = Shard(param.shape, param.shape, (), (0,) * param.dim(), 0)
    elif shard.placed is None and _is_of_flat(rule, shard, saved):
        return saved
    result = {key: value for key, value in saved.items() if key not in keys}
    if isinstance(saved.get(COMPENSATION), Tensor):
        result[COMPENSATION] = _own(saved[COMPENSATION], shard)
    for state, codec in zip(rule.element_states, codecs, strict=True):
        if isinstance(saved.get(values_key(state.name)), Tensor):
            result.update(_stored_anew(state, codec, shard, "fp32", _own(saved[values_key(state.name)], shard)))
        elif isinstance(saved.get(state.name), Tensor):
            result.update(_own_elements(state, codec, shard, saved))
    for state in rule.tensor_states:
        value = saved.get(state.name)
        if isinstance(value, Tensor):
            result[state.name] = _own_lines(state, value, shard)
    return result


def _is_of_flat(rule: Rule, shard: Shard, saved: Mapping[str, Any]) -> bool:
    """Whether states are of the same stretch of a tensor that a flat shard of FSDP1 is, not of the whole tensor."""
    shapes = {state.name: stored_shapes(state, shard.own) for state in rule.element_states}
    values = {name: saved[name] for name in shapes if isinstance(saved.get(name), Tensor)}
    return all(tuple(value.shape) in shapes[name] for name, value in values.items())


def _own(value: Tensor, shard: Shard) -> Tensor:
    """This process's part of a tensor that has the parameter's first dimension, or all of its shape."""
    if is_dtensor(value):
        if shard.placed is None:
            return value.full_tensor()  # type: ignore[attr-defined,no-any-return]
        mesh, placements = shard.placed
        if value.device_mesh != mesh or tuple(value.placements) != placements:  # type: ignore[attr-defined]
            value = value.redistribute(mesh, placements)  # type: ignore[attr-defined]
        return local_tensor(value)
    if shard.offset is None:
        if shard.placed is None and shard.start is not None and tuple(value.shape) == tuple(shard.shape):
            return value.reshape(-1)[shard.start : shard.start + shard.own.numel()]
        raise ValueError("a plain tensor cannot be divided as its parameter is")
    by_rows = value.dim() > 0 and value.shape[0] == shard.shape[0] and shard.start is not None
    if by_rows and tuple(value.shape) != tuple(shard.shape):
        return value.narrow(0, min(shard.offset[0], shard.shape[0]), shard.own[0])
    if tuple(value.shape) != tuple(shard.shape):
        raise ValueError(f"a state has shape {tuple(value.shape)}, and its parameter {tuple(shard.shape)}")
    for dim, (first, length) in enumerate(zip(shard.offset, shard.own, strict=True)):
        value = value.narrow(dim, min(first, value.shape[dim]), length)
    return value.contiguous()


def _own_lines(state: State, value: Tensor, shard: Shard) -> Tensor:
    if is_dtensor(value):
        value = value.full_tensor()  # type: ignore[attr-defined]
    if not shard.cuts_matrices or state.window is not None or state.kind == "tensor" or shard.offset is None:
        return value
    for dim in range(len(shard.shape) - 2):
        if dim < value.dim() and value.shape[dim] == shard.shape[dim]:
            value = value.narrow(dim, min(shard.offset[dim], shard.shape[dim]), shard.own[dim])
    return value.contiguous()


def _own_elements(state: State, wanted: Codec, shard: Shard, saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state with a number an element, in the codec that is wanted if it is quantized.

    Raises:
        ValueError: for what only all processes together could store.
    """
    name = state.name
    codes, scales = saved[name], saved.get(scale_key(name))
    division = saved.get(division_key(name))
    if isinstance(division, Tensor):
        form = _from_boxes(state, shard, codes, scales, saved.get(places_key(name)), division)
    elif not isinstance(scales, Tensor):
        return {name: _own(codes, shard)}
    elif scales.dim() > 1:
        begins = saved.get(blocks_key(name))
        by_row = _own(scales, shard)
        form = _from_rows(shard, codes, by_row, None if begins is None else _own(begins, shard), wanted, state.signed)
    else:
        form = _from_whole(state, shard, codes, local_tensor(scales).reshape(-1), wanted)
    present, own, absmax, values = form
    if absmax is not None and present == wanted:
        return {name: own, scale_key(name): absmax}
    if values is None:
        values = decode(present, own, absmax, state.signed, shard.own)
    return _stored_anew(state, wanted, shard, str(present), values)


def _stored_anew(state: State, wanted: Codec, shard: Shard, present: str, values: Tensor) -> dict[str, Tensor]:
    if wanted.block == WHOLE_TENSOR and shard.divisions:
        raise ValueError(f"{state.name} is stored as {present}, which one process alone cannot convert to {wanted}")
    if not wanted.scaled:
        return {state.name: values}
    codes, absmax = encode(wanted, values, state.signed)
    assert absmax is not None
    return {state.name: codes, scale_key(state.name): absmax}


def _is_packed_by_rows(codes: Any, shape: torch.Size) -> bool:
    """Whether a plain tensor is a whole state's codes of 4 bits as they are saved, row by row."""
    if not isinstance(codes, Tensor) or is_dtensor(codes) or not shape or codes.dtype is not torch.uint8:
        return False
    four = CODECS["int4"]
    return tuple(codes.shape) == (shape[0], *bytes_of_lines(shape[:1], shape[1:].numel(), four, shape))


# A codec, codes and scales of a part; the scales are missing, and values given, where blocks lie elsewhere.
_Form = tuple[Codec, Tensor, Tensor | None, Tensor | None]


def _from_whole(state: State, shard: Shard, codes: Tensor, scales: Tensor, wanted: Codec) -> _Form:
    """Out of a state that is whole, as one process keeps it, or that has one scale."""
    if is_dtensor(codes):
        present = _codec_of(codes, shard, WHOLE_TENSOR)
        return present, _own_codes(codes, shard, present), scales, None
    if _is_packed_by_rows(codes, shard.shape):
        rows = unpack(codes, 2 * codes.numel()).reshape(shard.shape[0], -1)[:, : shard.shape[1:].numel()]
        codes = pack(rows.reshape(1, -1))[0]
    present = recognised(state, codes, scales, shard.shape, (wanted,))
    if tuple(shard.own) == tuple(shard.shape):
        return present, codes, scales, None
    if present.block == WHOLE_TENSOR:
        flat = codes.reshape(-1) if present.packed == 1 else unpack(codes, shard.shape.numel())
        own = _own(flat.reshape(shard.shape), shard)
        return present, own if present.packed == 1 else pack(own.reshape(1, -1))[0], scales, None
    return present, codes, None, _own(decode(present, codes, scales, state.signed, shard.shape), shard)


def _from_rows(
    shard: Shard, codes: Tensor, by_row: Tensor, begins: Tensor | None, wanted: Codec, signed: bool
) -> _Form:
    """Out of a state with scales row by row."""
    size, rows = shard.shape[1:].numel(), shard.own[0]
    block = size // by_row.shape[1] if begins is None else int(begins[0, 1]) if rows else wanted.block
    present = _codec_of(codes, shard, block)
    own = _own_codes(codes, shard, present)
    first = torch.arange(rows, device=own.device) * size
    phase = torch.zeros_like(first) if begins is None else begins[:, 0].long()
    if bool((first % block == phase).all()):
        absmax = by_row.new_zeros(present.scales(rows * size))
        at = (first // block)[:, None] + torch.arange(by_row.shape[1], device=own.device)
        inside = at * block < (first + size)[:, None]
        absmax[at[inside]] = by_row[inside]
        if bool((absmax[at[inside]] == by_row[inside]).all()):
            return present, own, absmax, None
    # Blocks lie elsewhere: every element by the scale it had.
    piece = (phase[:, None] + torch.arange(size, device=own.device)) // block
    unit = decode(present.with_block(WHOLE_TENSOR), own, by_row.new_ones(1), signed, (rows, size))
    return present, own, None, (unit * by_row.gather(1, piece)).reshape(shard.own)


def _from_boxes(
    state: State, shard: Shard, codes: Tensor, scale: Tensor | None, places: Tensor | None, division: Tensor
) -> _Form:
    """Out of a state of boxes; `scale` is the one for the whole tensor, if there is one."""
    present = _codec_of(codes, shard, int(division[-1, 0]))
    own = _own(codes, shard).contiguous() if present.packed == 1 else own_boxed_codes(codes, shard, present, division)
    if places is None:
        return present, own, scale, None
    absmax, by_element = own_boxed_scales(places, shard, present, division)
    if by_element is None:
        return present, own, absmax, None
    unit = decode(present.with_block(WHOLE_TENSOR), own, by_element.new_ones(1), state.signed, shard.own)
    return present, own, None, unit * by_element


def _codec_of(codes: Tensor, shard: Shard, block: int) -> Codec:
    """The codec that codes row by row are of."""
    for codec in CODECS.values():
        packed = tuple(codes.shape) != tuple(shard.shape)
        if codec.scaled and codes.dtype is getattr(torch, codec.storage) and (codec.packed > 1) == packed:
            return codec.with_block(block)
    raise ValueError(f"no codec stores {codes.dtype} of shape {tuple(codes.shape)}")


def _own_codes(codes: Tensor, shard: Shard, codec: Codec) -> Tensor:
    own = _own(codes, shard)
    if codec.packed == 1:
        return own.contiguous()
    rows, size = shard.own[0], shard.shape[1:].numel()
    by_row = unpack(own, codec.packed * own.numel()).reshape(rows, codec.packed * math.ceil(size / codec.packed))
    by_row = by_row[:, :size]
    return pack(by_row.reshape(1, -1))[0]

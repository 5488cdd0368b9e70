"""States of sharded parameters in checkpoints, in a form that does not depend on how many processes there are.

- What has a number an element, and no scales, becomes a DTensor placed as its parameter: torch.distributed.checkpoint
  saves it from any number of processes and loads it into any other.
- Numbers of rows, columns and the tensor are the same on all processes, and stay plain tensors; of tensors of three
  dimensions and more, whose matrices are divided, they are DTensors too.
- Quantized states are kept line by line (shard_lines.py); `dims`, the dimensions that count lines, are those that
  placements divide, and the first one where they divide no other. `NAME` has the codes, placed as the parameter; of 4
  bits they are packed: (sizes of dims..., bytes), and (sizes of dims...) where that would be the parameter's own shape.
- Their blocks begin with a process's part, which another number of processes cuts elsewhere, and so a checkpoint says
  where. Of parts that are rows, `NAME_absmax` is (rows, pieces): the scales of the blocks that a row lies in; where
  rows are no whole blocks, `NAME_blocks` is (rows, 2): how far into a block a row begins, and the elements of a block.
  Of others, `NAME_scales` is (sizes of dims..., places): a part's scales in its own places, one after the other; there
  is room for them however the tensor is divided. `NAME_division`, int32 (times + 1, dimensions), says among how many
  processes each dimension was divided, time after time (0: it was not), and the elements of a block.
- Matrices of their own dimensions, which an owner has, are DTensors of their own (owned_matrices.py).

torch.distributed.checkpoint asks a checkpoint for every key that the optimizer has now, and for no other: there can be
no key more, nor one of the two tables of scales for all parts, or checkpoints of today would not load.

Whoever cuts blocks in the same places takes codes and scales as they are. Others find for every element the scale that
it had, decode the state and re-encode it. Checkpoints of before had states of parts that are no rows as `NAME_values`,
float32, which are still read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, COMPENSATION, WHOLE_TENSOR, Codec
from optgen.runtime.checkpoints.misfits import read_elements
from optgen.runtime.checkpoints.owned_matrices import own_matrix
from optgen.runtime.checkpoints.places import Place
from optgen.runtime.checkpoints.shard_lines import (
    box_scales,
    counts_in,
    counts_of,
    cut,
    dims_of,
    division,
    lines_shape,
    own_box_scales,
    own_codes,
    own_lines,
    own_row_scales,
    own_values,
    packed_lines,
    placed,
    row_scales,
    whole_shard,
)
from optgen.runtime.core.shards import Shard, is_dtensor, local_tensor
from optgen.runtime.dimensions import kind_dims
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.states.store import stored_shapes
from optgen.runtime.states.stored import Stored, recognised_codes, scale_key, store

BLOCKS, VALUES, DIVISION, SCALES = "_blocks", "_values", "_division", "_scales"  # ends of keys
FLATTENED = ": torch leaves it out of states that it flattens (flatten_optimizer_state_dict=True); save them nested"
PACKED = [codec for codec in CODECS.values() if codec.packed > 1]


# To a checkpoint


def saved_form(rule: Rule, shard: Shard, entry: Mapping[str, Any], stored: Mapping[str, Stored]) -> dict[str, Any]:
    """The state of a DTensor parameter as it is saved; memory is shared where possible.

    Args:
        stored: Its states with a number an element; those that are not among them stay as they are.
    """
    result, dims = dict(entry), range(len(shard.shape))
    if isinstance(entry.get(COMPENSATION), Tensor):
        result[COMPENSATION] = placed(entry[COMPENSATION], shard, dims)
    for state in rule.tensor_states:
        value = entry.get(state.name)
        divided = _divided_dims(state, shard)
        if isinstance(value, Tensor) and divided:
            result[state.name] = placed(value, shard, divided)
    for name, found in stored.items():
        if found.codec.scaled and not by_rows(shard):
            result.pop(scale_key(name), None)
        result |= _saved_elements(name, found, shard)
    return result


def _divided_dims(state: State, shard: Shard) -> tuple[int, ...]:
    """The first dimensions of a state with fewer numbers than elements that may be divided as the parameter's are."""
    if not shard.cuts_matrices or state.window is not None:
        return ()
    rank = len(shard.shape)
    return tuple(dim for dim in kind_dims(state.kind, rank) if dim < rank - 2)


def by_rows(shard: Shard) -> bool:
    """Check whether placements divide only rows of the first dimension, among one process or many."""
    assert shard.placed is not None
    return all(getattr(placement, "dim", 0) == 0 for placement in shard.placed[1])


def _saved_elements(name: str, found: Stored, shard: Shard) -> dict[str, Tensor]:
    codec, codes, scales = found.codec, found.codes, found.scales
    counts = counts_of(shard)
    dims = [0] if by_rows(shard) else dims_of(counts)
    if codec.packed == 1:
        result = {name: placed(codes, shard, range(len(shard.shape)))}
    else:
        result = {name: placed(packed_lines(codes, shard, codec, dims), shard, dims)}
    if scales is None:
        return result
    if not by_rows(shard) and (codec.packed > 1 or codec.block != WHOLE_TENSOR):
        result[name + DIVISION] = division(counts, codec.block)
    if codec.block == WHOLE_TENSOR or not shard.shape:
        result[scale_key(name)] = scales
    elif by_rows(shard):
        table, begins = row_scales(scales, shard, codec.block)
        result[scale_key(name)] = placed(table, shard, dims)
        if begins is not None:
            result[name + BLOCKS] = placed(begins, shard, dims)
    else:
        result[name + SCALES] = placed(box_scales(scales, shard, dims, codec.block), shard, dims)
    return result


# From a checkpoint


def own_form(
    rule: Rule, place: Place, saved: Mapping[str, Any], said: Mapping[str, Sequence[Codec]]
) -> Mapping[str, Any]:
    """A saved state as this process keeps it; what needs nothing is handed on as it is.

    Args:
        said: The codecs that the checkpoint says it has, by state.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    shard = place.shard
    keys = _keys_of_parts(rule)
    if shard is None:
        if not _is_of_shards(rule, keys, place.own.shape, saved, said):
            return saved
        shard = whole_shard(place.own.shape)
    elif shard.offset is None and _is_of_flat(rule, shard, saved):
        return saved
    result = {key: value for key, value in saved.items() if key not in keys}
    if isinstance(saved.get(COMPENSATION), Tensor):
        result[COMPENSATION] = own_values(saved[COMPENSATION], shard)
    for state, wanted in zip(rule.element_states, place.codecs, strict=False):
        value = saved.get(state.name + VALUES)
        if isinstance(value, Tensor):
            result[state.name] = _wanted(state, Stored(CODECS["fp32"], own_values(value, shard)), wanted, shard)
        elif isinstance(saved.get(state.name), Tensor | Stored):
            result[state.name] = _own_elements(state, wanted, shard, saved, said.get(state.name, ()))
        if isinstance(result.get(state.name), Stored):
            result.pop(scale_key(state.name), None)
    for state, wanted in zip(rule.matrix_states, place.codecs[len(rule.element_states) :], strict=True):
        if isinstance(saved.get(state.name), Tensor | Stored):
            result[state.name] = own_matrix(state, place, saved, said.get(state.name, ()), wanted)
            result.pop(scale_key(state.name), None)
    for state in rule.tensor_states:
        value = saved.get(state.name)
        if isinstance(value, Tensor):
            result[state.name] = own_lines(value, shard, _divided_dims(state, shard))
    return result


@lru_cache
def _keys_of_parts(rule: Rule) -> frozenset[str]:
    """The keys that states have in checkpoints of parts alone."""
    return frozenset(state.name + end for state in rule.element_states for end in (BLOCKS, VALUES, DIVISION, SCALES))


def _is_of_shards(
    rule: Rule, keys: frozenset[str], shape: torch.Size, saved: Mapping[str, Any], said: Mapping[str, Sequence[Codec]]
) -> bool:
    """Check whether the state of a whole parameter was saved in parts, in any of its tensors.

    Args:
        said: The codecs that the checkpoint says it has: only those of parameters that are not divided.
    """
    if not keys.isdisjoint(saved) or any(map(is_dtensor, saved.values())):
        return True
    for state in rule.element_states:
        if state.name in said:
            continue
        codes, scales = saved.get(state.name), saved.get(scale_key(state.name))
        by_row = isinstance(scales, Tensor) and scales.dim() > 1
        if by_row or (isinstance(codes, Tensor) and _is_packed_by_rows(codes, shape)):
            return True
    return False


def _is_of_flat(rule: Rule, shard: Shard, saved: Mapping[str, Any]) -> bool:
    """Check whether states are of the same part of a tensor as a flat shard of FSDP1, not of the whole tensor."""
    shapes = {state.name: stored_shapes(state, shard.own) for state in rule.element_states}
    values = {name: saved[name] for name in shapes if isinstance(saved.get(name), Tensor)}
    return all(tuple(value.shape) in shapes[name] for name, value in values.items())


def _is_packed_by_rows(codes: Tensor, shape: torch.Size) -> bool:
    """Check whether a plain tensor is a whole state's codes as they are saved where they are packed row by row."""
    dtype = dtype_name(codes.dtype)
    for codec in PACKED if shape else ():
        if codec.storage == dtype and lines_shape(codec, shape, (0,)) == codes.shape:
            return True
    return False


def _own_elements(
    state: State, wanted: Codec, shard: Shard, saved: Mapping[str, Any], said: Sequence[Codec]
) -> Stored | Tensor:
    """This process's part of a state with a number an element; without scales it is to be read yet.

    Raises:
        TypeError, ValueError: for what does not fit, and what only all processes together could store.
    """
    codes, scales, divided = saved[state.name], saved.get(scale_key(state.name)), saved.get(state.name + DIVISION)
    if isinstance(codes, Stored):
        return _own_of_whole(state, codes, wanted, shard)
    by_element = None
    if isinstance(divided, Tensor):
        counts, block = counts_in(divided, shard)
        dims, places = dims_of(counts), saved.get(state.name + SCALES)
        codec = _codec_of(state, codes, shard, dims, block)
        if isinstance(places, Tensor):
            scales, by_element = own_box_scales(places, counts, shard, codec)
    elif not isinstance(scales, Tensor):
        return own_values(codes, shard)
    elif scales.dim() > 1:
        table, begins, dims = own_lines(scales, shard, [0]), saved.get(state.name + BLOCKS), [0]
        begins = own_lines(begins, shard, dims) if isinstance(begins, Tensor) else None
        block = wanted.block  # where there are no elements
        if begins is None and table.shape[1]:
            block = shard.shape[1:].numel() // table.shape[1]
            if block not in BLOCK_SIZES:
                raise ValueError(f"{state.name}{BLOCKS} is missing{FLATTENED}")
        elif begins is not None and begins.shape[0]:
            block = int(begins[0, 1])
        codec = _codec_of(state, codes, shard, dims, block)
        scales, by_element = own_row_scales(table, begins, shard, codec)
    elif is_dtensor(codes) or _is_packed_by_rows(codes, shard.shape):
        codec, dims = _codec_of(state, codes, shard, [0], WHOLE_TENSOR), [0]
    else:
        whole = read_elements(state, shard.shape, codes, local_tensor(scales).reshape(-1), said, (wanted,))
        return _own_of_whole(state, whole, wanted, shard)
    own = own_codes(codes, shard, codec, dims)
    if by_element is None:
        return _wanted(state, Stored(codec, own, scales), wanted, shard)
    unit = Stored(codec.with_block(WHOLE_TENSOR), own, by_element.new_ones(1)).values(state.signed, shard.own)
    return _wanted(state, Stored(CODECS["fp32"], unit * by_element, was=str(codec)), wanted, shard)


def _codec_of(state: State, codes: Tensor, shard: Shard, dims: Sequence[int], block: int) -> Codec:
    """The codec of codes that are as the parameter is, or packed line by line.

    Raises:
        ValueError: if there is none.
    """
    if block not in (*BLOCK_SIZES, WHOLE_TENSOR):
        raise ValueError(f"{state.name} is said to be in blocks of {block}, not of {', '.join(map(str, BLOCK_SIZES))}")
    return recognised_codes(codes, lambda codec: lines_shape(codec, shard.shape, dims), block)


def _own_of_whole(state: State, whole: Stored, wanted: Codec, shard: Shard) -> Stored:
    """This process's part of a state that is whole, as one process keeps it."""
    codec = whole.codec
    if not codec.scaled:
        return whole._replace(codes=own_values(whole.codes, shard))
    if tuple(shard.own) == tuple(shard.shape):
        return _wanted(state, whole, wanted, shard)
    if codec.block == WHOLE_TENSOR:
        return _wanted(state, whole._replace(codes=own_codes(whole.codes, shard, codec, ())), wanted, shard)
    values = cut(whole.values(state.signed, shard.shape), shard, shard.shape)
    return _wanted(state, Stored(CODECS["fp32"], values, was=str(codec)), wanted, shard)


def _wanted(state: State, found: Stored, wanted: Codec, shard: Shard) -> Stored:
    """A state of this process's part in the codec that is wanted, or in float32 if that has no scales.

    Raises:
        ValueError: for what only all processes together could store.
    """
    if found.codec == wanted or (not shard.divisions and found.codec.is_like(wanted, shard.own.numel())):
        return found._replace(codec=wanted)
    if wanted.block == WHOLE_TENSOR and shard.divisions:
        raise ValueError(f"{state.name} is stored as {found}, which one process alone cannot convert to {wanted}")
    values = found.values(state.signed, shard.own)
    return store(wanted, values, state.signed) if wanted.scaled else Stored(CODECS["fp32"], values, was=str(found))

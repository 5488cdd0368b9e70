"""Stored states and their codecs, which an optimizer records: no tensor says what its numbers stand for.

A state with a number an element is a tensor of codes, `optimizer.state[p][NAME]`, and, in codecs that have them, one
of scales, `NAME_absmax`. The codec stands beside them, in `optimizer._codecs`, as exact counts of steps do: a step that
stores states writes it there, and so does a load. Copies and pickles have it too, and checkpoints say which codecs they
have.

`recognised` alone goes by dtypes and shapes. It reads what has no record: states that somebody has put in their place,
and checkpoints of earlier versions, of other libraries and of torch.distributed, which has no place for more keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from optgen.codecs import BLOCK_SIZES, CODECS, WHOLE_TENSOR, Codec
from optgen.runtime.rule import State
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.states.torch_codecs import decode, encode


@cache
def scale_key(name: str) -> str:
    """The key of a state's scales in `optimizer.state[p]`."""
    return f"{name}_absmax"


def exchange_states(entry: MutableMapping[str, Any], first: str, second: str) -> None:
    """Let two states of elements that are stored alike change places, with their scales."""
    for one, other in ((first, second), (scale_key(first), scale_key(second))):
        if one in entry:
            entry[one], entry[other] = entry[other], entry[one]


class Stored(NamedTuple):
    """A state with a number an element, as it is stored.

    Attributes:
        scales: As many as the codec has of a tensor; None if it has none.
        was: Text of the codec before it was decoded, if it was.
    """

    codec: Codec
    codes: Tensor
    scales: Tensor | None = None
    was: str = ""

    def __str__(self) -> str:
        """Text of the codec as messages show it: the present one, or the one that it was."""
        return self.was or str(self.codec)

    def values(self, signed: bool, shape: Sequence[int]) -> Tensor:
        """The float32 tensor of this shape that it stands for."""
        return decode(self.codec, self.codes, self.scales, signed, shape)


def store(codec: Codec, values: Tensor, signed: bool) -> Stored:
    """Encode values."""
    return Stored(codec, *encode(codec, values, signed))


@dataclass(frozen=True, eq=False)
class CodecRecord:
    """The codecs of a parameter's states, by name.

    Attributes:
        entry: Its dict in `optimizer.state`. Of another one in its place this says nothing.
    """

    entry: Mapping[str, Any]
    codecs: Mapping[str, Codec]


def stored_states(
    states: Iterable[tuple[State, Codec]],
    entry: Mapping[str, Any],
    shapes: Iterable[torch.Size],
    record: CodecRecord | None,
) -> dict[str, Stored]:
    """States among these that a parameter has, by name, with the codecs that they shall have, and each its shape.

    Raises:
        ValueError: as `stored_in` does.
    """
    pairs = zip(states, shapes, strict=True)
    found = ((state.name, stored_in(state, entry, shape, record, wanted)) for (state, wanted), shape in pairs)
    return {name: stored for name, stored in found if stored is not None}


def stored_in(
    state: State, entry: Mapping[str, Any], shape: torch.Size, record: CodecRecord | None, wanted: Codec | None = None
) -> Stored | None:
    """A parameter's state, by its record or, where it has none, by its form; None where there is none.

    Args:
        wanted: The codec to call it by where it is in that one as well as in another: one block is one scale.

    Raises:
        ValueError: if the scales are not those of the codes, or no codec stores such tensors.
    """
    codes, scales = entry.get(state.name), entry.get(scale_key(state.name))
    if codes is None:
        return None
    codec = record.codecs.get(state.name) if record is not None and record.entry is entry else None
    count = 0 if scales is None else scales.numel()
    if codec is None or not has_codes(codec, codes, shape) or codec.scaled != (scales is not None):
        return Stored(recognised(state, codes, scales, shape, () if wanted is None else (wanted,)), codes, scales)
    if count != codec.scales(shape.numel()):
        raise ValueError(
            f"state {scale_key(state.name)!r} has {count} scales, and the codes of {state.name!r}, {codec}, have "
            f"{codec.scales(shape.numel())}"
        )
    alike = wanted is not None and wanted.is_like(codec, shape.numel())
    return Stored(wanted if wanted is not None and alike else codec, codes, scales)


def recognised(
    state: State, codes: Tensor, scales: Tensor | None, shape: torch.Size, first: Sequence[Codec] = ()
) -> Codec:
    """The codec of a state without a record, from dtypes and shapes.

    Args:
        shape: Of the state.
        first: Codecs that come before the others.

    Raises:
        ValueError: if no codec stores such tensors.
    """
    count = 0 if scales is None else scales.numel()
    for codec in first:
        if has_form(codec, codes, shape, count):
            return codec
    found = _of_form(codes.dtype, codes.shape, count, shape)
    if found is not None:
        return found
    right = _would_fit(state, codes, shape)
    raise ValueError(f"state {state.name!r} is {stored_shown(codes, scales)}, which no codec stores: {right}")


def recognised_codes(codes: Tensor, shape_in: Callable[[Codec], tuple[int, ...]], block: int) -> Codec:
    """The codec of quantized codes whose block size is known.

    Args:
        shape_in: The shape that they have in a codec.

    Raises:
        ValueError: if no codec stores such tensors.
    """
    for codec in CODECS.values():
        if codec.scaled and dtype_name(codes.dtype) == codec.storage and tuple(codes.shape) == shape_in(codec):
            return codec.with_block(block)
    raise ValueError(f"no codec stores {codes.dtype} of shape {tuple(codes.shape)}")


@cache
def _blocks_of(name: str) -> tuple[Codec, ...]:
    """A codec in its own blocks, and then in others."""
    codec = CODECS[name]
    return tuple(map(codec.with_block, (codec.block, *BLOCK_SIZES, WHOLE_TENSOR) if codec.scaled else (0,)))


def first_alike(codec: Codec, numel: int) -> Codec:
    """The block size that stands for all that store so many elements alike."""
    return next(each for each in _blocks_of(codec.name) if each.is_like(codec, numel))


@lru_cache(maxsize=1024)  # models have many parameters of few shapes
def _of_form(dtype: torch.dtype, codes: torch.Size, scales: int, shape: torch.Size) -> Codec | None:
    """The first codec that stores a state of this shape in such codes and so many scales."""
    numel, name = shape.numel(), dtype_name(dtype)
    for codec in CODECS.values():
        if codec.storage == name and codec.takes(numel) and codec.codes_shape(shape) == tuple(codes):
            for each in _blocks_of(codec.name):
                if each.scales(numel) == scales:
                    return each
    return None


def has_codes(codec: Codec, codes: Tensor, shape: torch.Size) -> bool:
    """Check whether codes look as this codec stores a state of this shape."""
    if dtype_name(codes.dtype) != codec.storage:
        return False
    return codes.shape == (shape if codec.packed == 1 else codec.codes_shape(shape))


def has_form(codec: Codec, codes: Tensor, shape: torch.Size, scales: int) -> bool:
    """Check whether codes, with this number of scales, look as this codec stores a state of this shape."""
    return has_codes(codec, codes, shape) and codec.scales(shape.numel()) == scales


def stored_shown(codes: Tensor, scales: Tensor | None) -> str:
    """Describe in words how a state is stored."""
    count = "no scales" if scales is None else f"{scales.numel()} scales"
    return f"{dtype_name(codes.dtype)} of shape {tuple(codes.shape)} with {count}"


def _would_fit(state: State, codes: Tensor, shape: torch.Size) -> str:
    """Describe what would fit: scales of codecs that have such codes, or codes of those that the state takes."""
    numel = shape.numel()
    alike = [codec for codec in CODECS.values() if has_codes(codec, codes, shape)]
    if not alike:
        return f"it is {' or '.join(CODECS[name].storage + f' ({name})' for name in state.codecs)}"
    forms = []
    for codec in alike:
        counts = [f"{codec.with_block(block).scales(numel)} in blocks of {block}" for block in reversed(BLOCK_SIZES)]
        forms.append(f"{codec.name} has {', '.join(counts)}, or 1" if codec.scaled else f"{codec.name} has none")
    return "; ".join(forms)

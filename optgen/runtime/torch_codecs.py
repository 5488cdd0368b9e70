"""The codecs in plain torch operations, on any device: the reference for every other target.

The exact rule of the 8-bit codecs, which all targets follow bit for bit:

- the scale of a block is the largest magnitude of its finite elements, or 0 if that is below float32's smallest normal;
- y = |x| * (1 / absmax) in float32, the reciprocal rounded first;
- the code is that of the nearest magnitude: k = how many midpoints are below y (ties go toward zero); code k of an
  unsigned book; 127 + k of the signed one, 127 - min(k, 127) where x is negative (its last value is about -0.993);
- elements that are not finite, and negative elements of an unsigned book, get the code of zero;
- decoding: the book's value times absmax, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from optgen.codecs import SMALLEST_ABSMAX, ZERO_CODE, Codec, code_book, midpoints
from optgen.codecs import codec as codec_named


def encode(codec: Codec | str, x: Tensor, signed: bool) -> tuple[Tensor, Tensor | None]:
    """What is stored for `x`: (codes of x's shape, absmax) with absmax None for codecs without scales.

    x: a floating-point tensor of any shape; read in row-major order, computed in float32.
    signed: whether elements can be negative (chooses the book of 8-bit codecs).
    absmax: float32 of shape (codec.scales(numel),).
    """
    codec = codec_named(codec) if isinstance(codec, str) else codec
    x = x.detach().to(torch.float32)
    if not codec.scaled:
        return x.to(_storage(codec), copy=True, memory_format=torch.contiguous_format), None
    blocks = _blocks(codec, x.reshape(-1))
    magnitude = torch.where(torch.isfinite(blocks), blocks.abs(), 0.0)
    absmax = magnitude.amax(dim=1) if blocks.shape[1] else magnitude.new_zeros(blocks.shape[0])
    absmax = torch.where(absmax < SMALLEST_ABSMAX, 0.0, absmax)
    reciprocal = torch.where(absmax > 0.0, absmax.reciprocal(), 0.0)
    k = torch.bucketize(magnitude * reciprocal[:, None], _midpoints(signed, x.device), out_int32=True)
    negative = blocks < 0.0
    codes = torch.where(negative, 127 - k.clamp(max=127), 127 + k) if signed else torch.where(negative, 0, k)
    return codes.to(torch.uint8).reshape(-1)[: x.numel()].reshape(x.shape), absmax


def decode(codec: Codec | str, codes: Tensor, absmax: Tensor | None, signed: bool, shape: Sequence[int]) -> Tensor:
    """The float32 tensor of shape `shape` that `codes` and `absmax` (as `encode` returns them) stand for."""
    codec = codec_named(codec) if isinstance(codec, str) else codec
    if not codec.scaled:
        return codes.to(torch.float32, copy=True, memory_format=torch.contiguous_format).reshape(tuple(shape))
    if absmax is None:
        raise ValueError(f"codec {codec.name!r} needs the absmax that belongs to the codes")
    values = _book(signed, codes.device)[codes.reshape(-1).to(torch.int64)]
    blocks = _blocks(codec, values) * absmax.reshape(-1, 1)
    return blocks.reshape(-1)[: codes.numel()].reshape(tuple(shape))


def zeros(
    codec: Codec | str, shape: Sequence[int], signed: bool, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor | None]:
    """(codes, absmax) of a state of shape `shape` that is zero everywhere, as `encode` would return them."""
    codec = codec_named(codec) if isinstance(codec, str) else codec
    shape = tuple(shape)
    if not codec.scaled:
        return torch.zeros(shape, dtype=_storage(codec), device=device), None
    codes = torch.full(shape, ZERO_CODE[signed], dtype=torch.uint8, device=device)
    return codes, torch.zeros(codec.scales(codes.numel()), dtype=torch.float32, device=device)


def _storage(codec: Codec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, codec.storage)
    return dtype


def _blocks(codec: Codec, flat: Tensor) -> Tensor:
    """`flat` as a matrix with one block of the codec a row; the last row filled up with zeros."""
    rows = codec.scales(flat.numel())
    width = codec.block if codec.block > 0 else flat.numel()
    missing = rows * width - flat.numel()
    if missing:
        flat = torch.nn.functional.pad(flat, (0, missing))
    return flat.reshape(rows, width)


@cache
def _book(signed: bool, device: torch.device) -> Tensor:
    return torch.tensor(code_book(signed), dtype=torch.float32, device=device)


@cache
def _midpoints(signed: bool, device: torch.device) -> Tensor:
    return torch.tensor(midpoints(signed), dtype=torch.float32, device=device)

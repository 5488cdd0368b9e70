"""The codecs of states in plain torch operations, on any device: the reference for every other target.

The exact rule of the quantized codecs, which all targets follow bit for bit, every operation rounded to float32:

- the scale of a block is the largest magnitude of its finite elements, or 0 if that is below float32's smallest normal;
- y = |x| * (1 / absmax), the reciprocal rounded first, at most 1; y = 0 for elements that are not finite and for
  negative elements of a state without a sign;
- the code is that of y with the sign of x, as told at each of the codings below; zero has no sign;
- decoding: the number that the code stands for, times absmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from optgen.codecs import FP8_LARGEST, Codec, code_book, float32, midpoints
from optgen.codecs import codec as codec_named
from optgen.runtime.sums import has_float64
from optgen.runtime.torch_math import scale_of


def encode(codec: Codec | str, x: Tensor, signed: bool) -> tuple[Tensor, Tensor | None]:
    """Encode `x`: (codes, absmax) with absmax None for codecs without scales.

    x: a floating-point tensor of any shape; read in row-major order, computed in float32.
    signed: whether elements can be negative (chooses the book of the codec).
    codes: of shape codec.codes_shape(x.shape).
    absmax: float32 of shape (codec.scales(numel),).
    """
    codec = codec_named(codec) if isinstance(codec, str) else codec
    x = x.detach().to(torch.float32)
    if not codec.scaled:
        return x.to(_storage(codec), copy=True, memory_format=torch.contiguous_format), None
    blocks = _blocks(codec, x.reshape(-1))
    magnitude = torch.where(torch.isfinite(blocks), blocks.abs(), 0.0)
    absmax = magnitude.amax(dim=1) if blocks.shape[1] else magnitude.new_zeros(blocks.shape[0])
    absmax = scale_of(absmax)
    reciprocal = torch.where(absmax > 0.0, absmax.reciprocal(), 0.0)
    y = (magnitude * reciprocal[:, None]).clamp(max=1.0)
    negative = blocks < 0.0
    if not signed:
        y = torch.where(negative, 0.0, y)
    codes = _CODINGS[codec.name].encode(y, negative, signed).reshape(-1)[: x.numel()]
    return codes.reshape(codec.codes_shape(x.shape)) if codec.packed == 1 else packed(codec, codes), absmax


def decode(codec: Codec | str, codes: Tensor, absmax: Tensor | None, signed: bool, shape: Sequence[int]) -> Tensor:
    """Decode `codes` and `absmax`, as `encode` returns them, to a float32 tensor of shape `shape`.

    Raises:
        ValueError: if a codec with scales is given no `absmax`.
    """
    codec = codec_named(codec) if isinstance(codec, str) else codec
    shape = tuple(shape)
    if not codec.scaled:
        return codes.to(torch.float32, copy=True, memory_format=torch.contiguous_format).reshape(shape)
    if absmax is None:
        raise ValueError(f"codec {codec.name!r} needs the absmax that belongs to the codes")
    flat = codes.reshape(-1)
    if codec.packed > 1:
        flat = unpacked(flat)[: torch.Size(shape).numel()]
    blocks = _blocks(codec, _CODINGS[codec.name].decode(flat, signed)) * absmax.reshape(-1, 1)
    return blocks.reshape(-1)[: flat.numel()].reshape(shape)


def zeros(
    codec: Codec | str, shape: Sequence[int], signed: bool, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor | None]:
    """(codes, absmax) of a state of shape `shape` that is zero everywhere: all blocks have the scale 0."""
    codec = codec_named(codec) if isinstance(codec, str) else codec
    if not codec.scaled:
        return torch.zeros(tuple(shape), dtype=_storage(codec), device=device), None
    codes = torch.full(codec.codes_shape(shape), codec.zero[signed], dtype=_bytes(codec), device=device)
    scales = torch.zeros(codec.scales(torch.Size(shape).numel()), dtype=torch.float32, device=device)
    return codes.view(_storage(codec)), scales


RANGE_BITS = 16  # of a float32's bits, those that ranges do not look at
FIRST_RANGE = (127 - 24) << (23 - RANGE_BITS)  # that of 2^-24, below all midpoints


class Coding(Protocol):
    """Conversion between numbers and the codes of a codec."""

    def encode(self, y: Tensor, negative: Tensor, signed: bool) -> Tensor:
        """The codes of magnitudes 0 <= y <= 1, as they are stored (several to a byte: one each)."""

    def decode(self, codes: Tensor, signed: bool) -> Tensor:
        """The numbers from -1 to 1 that codes stand for, in float32."""


class _Book:
    """The nearest entry of a code book.

    Code k of an unsigned book, where k midpoints are below y (ties go toward zero); zero + k of a signed one, and
    zero - k, but at least 0, where x is negative: its largest magnitude, 1.0, has no negative.
    """

    def __init__(self, name: str) -> None:
        self.name, self.zero = name, 2 ** (codec_named(name).bits - 1) - 1

    def encode(self, y: Tensor, negative: Tensor, signed: bool) -> Tensor:
        # In each of the ranges that the first bits of a float tell apart there is one midpoint at most.
        starts, bounds = _ranges(signed, self.name, y.device)
        place = ((y.view(torch.int32) >> RANGE_BITS) - FIRST_RANGE).clamp(min=0)
        k = starts[place]
        k = k + (y > bounds[k]).to(torch.int32)
        if signed:
            k = torch.where(negative, self.zero - k.clamp(max=self.zero), self.zero + k)
        return k.to(torch.uint8)

    def decode(self, codes: Tensor, signed: bool) -> Tensor:
        return _book(signed, self.name, codes.device)[codes.to(torch.int64)]


class _Fp8:
    """y * 448 as an 8-bit float e4m3fn, to nearest, ties to even; decoded, that float times float32's 1/448."""

    def encode(self, y: Tensor, negative: Tensor, signed: bool) -> Tensor:
        codes = (y * FP8_LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)
        codes = torch.where(negative & (codes > 0), codes | 0x80, codes)
        return codes.view(torch.float8_e4m3fn)

    def decode(self, codes: Tensor, signed: bool) -> Tensor:
        return codes.to(torch.float32) * float32(1.0 / FP8_LARGEST)


class _Companded:
    """The whole part of 127 * (y + y) / (1 + y) + 0.5 with the sign of x, or of 255 * sqrt(y) + 0.5, less 128.

    Decoded: v = code * (1/127), v / (2 - |v|); or the square of (code + 128) * (1/255).
    """

    def encode(self, y: Tensor, negative: Tensor, signed: bool) -> Tensor:
        if signed:
            q = ((y + y) / (1.0 + y) * 127.0 + 0.5).floor()
            return torch.where(negative, -q, q).to(torch.int8)
        # torch's float32 root is not correctly rounded everywhere; that of float64 is exact enough to round once more.
        root = y.double().sqrt().float() if has_float64(y.device) else y.sqrt()
        return ((root * 255.0 + 0.5).floor() - 128.0).to(torch.int8)

    def decode(self, codes: Tensor, signed: bool) -> Tensor:
        if signed:
            v = codes.to(torch.float32) * float32(1.0 / 127.0)
            return v / (2.0 - v.abs())
        root = (codes.to(torch.float32) + 128.0) * float32(1.0 / 255.0)
        return root * root


_CODINGS: dict[str, Coding] = {
    **{name: _Book(name) for name in ("int8", "int4", "normal4")},
    "fp8": _Fp8(),
    "companded8": _Companded(),
}


def packed(codec: Codec, codes: Tensor) -> Tensor:
    """Rows of 4-bit codes as a codec stores them, two to a byte, the first in the upper half; one that is missing is
    0."""
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    return (codes[..., 0::2] << 4 | codes[..., 1::2]).view(_storage(codec))


def unpacked(codes: Tensor) -> Tensor:
    """4-bit codes, one to a number."""
    codes = codes.view(torch.uint8)
    return torch.stack((codes >> 4, codes & 15), dim=-1).reshape(-1)


def _storage(codec: Codec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, codec.storage)
    return dtype


def _bytes(codec: Codec) -> torch.dtype:
    """The dtype of whole numbers that a codec's codes can be filled in with."""
    return torch.uint8 if codec.storage == "float8_e4m3fn" else _storage(codec)


def _blocks(codec: Codec, flat: Tensor) -> Tensor:
    """`flat` as a matrix with one block of the codec a row; the last row filled up with zeros."""
    rows = codec.scales(flat.numel())
    width = codec.block if codec.block > 0 else flat.numel()
    missing = rows * width - flat.numel()
    if missing:
        flat = torch.nn.functional.pad(flat, (0, missing))
    return flat.reshape(rows, width)


@cache
def _book(signed: bool, name: str, device: torch.device) -> Tensor:
    return torch.tensor(code_book(signed, name), dtype=torch.float32, device=device)


@cache
def _ranges(signed: bool, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of every range of numbers up to 1, how many midpoints lie below it; and all midpoints, with infinity behind."""
    bounds = torch.tensor(midpoints(signed, name), dtype=torch.float32, device="cpu")
    last = int(torch.ones(()).view(torch.int32)) >> RANGE_BITS
    begins = (torch.arange(FIRST_RANGE, last + 2, dtype=torch.int32, device="cpu") << RANGE_BITS).view(torch.float32)
    starts = torch.bucketize(begins, bounds, out_int32=True)
    assert bool((starts.diff() <= 1).all())
    assert int(starts[1]) == 0
    return starts.to(device), torch.cat([bounds, bounds.new_tensor([torch.inf])]).to(device)

"""Storage of values, written again by other means than the package's: dtypes, and codes with scales.

A codec with scales stores each value over the scale of its block as one of a few levels. All are monotone in the value,
so that what is stored for a ball lies between the levels of its two ends (`Quantized`). Code books are written from
their definitions (a line a decade, or a decade's midpoints scaled by powers of ten, in float32 as documented, since
codes are compared bit for bit); levels are found by searching all midpoints in float64, or by the codec's formula.

A further codec is a row of CODECS. How parameters are rounded stands in oracles/rounding.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch

from oracles.ball import Array, Ball, monotone, multiplied

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NORMAL = 2.0**-126  # a scale below float32's normal numbers counts as 0
UNIT = 2.0**-24  # float32's unit roundoff
Codes = np.ndarray


def to_dtype(values: Array, dtype: torch.dtype) -> Array:
    """Rounded to float32, then to `dtype`, each to nearest, ties to even."""
    if dtype is torch.float32:
        return np.asarray(values, dtype=np.float64).astype(np.float32).astype(np.float64)
    tensor = torch.from_numpy(np.array(values, dtype=np.float64, copy=True))  # from_numpy keeps 0-dim arrays
    return tensor.to(torch.float32).to(dtype).to(torch.float64).numpy()


def store(x: Ball, dtype: torch.dtype) -> Ball:
    """`x` as it reads back from a tensor of `dtype`."""
    return monotone(lambda values: to_dtype(values, dtype), x)


# Levels: what a value over its scale is stored as; `way` -1 and 1 are the least and the greatest that rounding allows.

Level = Callable[[Array, bool, int], Array]


@cache
def code_book(signed: bool) -> Array:
    """The values of a dynamic map, ascending: seven decades below 1 with 2^i (signed) or 2^(i+1) steps each.

    A decade's values are those of a line, whose slope and offset are the float32 numbers, at most five places from the
    nominal ones, with which the largest relative error to the middles of the steps is least.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        steps = 2**decade if signed else 2 ** (decade + 1)
        first = steps if signed else steps - 1
        x = np.arange(first, first + steps) + (41 / 64 if signed else 1.0)
        top = 10.0 ** (decade - 6)
        middles = top * (0.1 + 0.9 * (np.arange(steps) + 0.5) / steps)
        slope = 0.9 * top / steps
        pairs = product(_near(slope), _near(middles[0] - slope * x[0]))
        lines = [(a * x + b).astype(np.float32).astype(np.float64) for a, b in pairs]
        best = min(lines, key=lambda line: np.abs(line / middles - 1).max())
        values += [*best, *(-best if signed else [])]
    return np.sort(np.array(values))


def _near(x: float) -> Array:
    """The eleven float32 numbers around this one."""
    nearest = np.float32(x).view(np.int32)
    return (nearest + np.arange(-5, 6, dtype=np.int32)).view(np.float32).astype(np.float64)


@cache
def four_bit_book(signed: bool) -> Array:
    """16 values: a dynamic map of three decades, or the sixteenths from 1/16 to 1."""
    return published_book(True, 3) if signed else np.arange(1, 17) / 16


def normal_book(signed: bool) -> Array:
    """16 values: 0, 1, and seven magnitudes with both signs; or sixteenths."""
    magnitudes = np.array([0.0969, 0.1963, 0.301, 0.4152, 0.5447, 0.7003, 0.907], dtype=np.float32).astype(np.float64)
    return np.concatenate([-magnitudes[::-1], [0.0], magnitudes, [1.0]]) if signed else four_bit_book(False)


def published_book(signed: bool, decades: int = 7) -> Array:
    """A dynamic map as bitsandbytes and torchao make it, whose last bits are those of linspace."""
    values = [0.0, 1.0]
    for decade in range(decades):
        steps = 2**decade if signed else 2 ** (decade + 1)
        ends = torch.linspace(0.1, 1, steps + 1, device="cpu")
        middles = (ends[:-1] + ends[1:]) / 2 * 10.0 ** (decade - decades + 1)
        values += [*middles.tolist(), *((-middles).tolist() if signed else [])]
    return np.sort(np.array(values))


def thresholds(book: Array) -> Array:
    """Midpoints between neighbouring magnitudes."""
    magnitudes = book[book >= 0]
    return ((magnitudes[:-1] + magnitudes[1:]) / 2).astype(np.float32).astype(np.float64)


def nearest(ratio: Array, book: Array) -> Codes:
    """Codes of the nearest entries, ties to the smaller magnitude."""
    signed = bool(book[0] < 0)
    zero = int((book < 0).sum())
    steps = np.searchsorted(thresholds(book), np.abs(ratio), side="left")
    if not signed:
        return np.where(ratio > 0, steps, 0)
    return np.where(ratio < 0, zero - np.minimum(steps, zero), zero + steps)


def encode(values: Array, absmax: Array, signed: bool, book: Callable[[bool], Array] = code_book) -> Codes:
    """Codes of the nearest entries for `values` over `absmax`; not finite is 0."""
    return nearest(_ratio(values, absmax), book(signed))


def _ratio(values: Array, scale: Array) -> Array:
    ratio = np.where(scale > 0, values / np.where(scale > 0, scale, 1), 0)
    return np.where(np.isfinite(ratio), ratio, 0)


def _dynamic(ratio: Array, signed: bool, way: int) -> Array:
    return nearest(ratio, code_book(signed)).astype(np.float64)


def _e4m3(ratio: Array, signed: bool, way: int) -> Array:
    """The nearest float8 of four exponent and three mantissa bits to 448 times the ratio, one more product; ties
    to even, 448 where it is more, 0 for what is below a state without a sign."""
    product = 448 * (ratio if signed else np.maximum(ratio, 0))
    clipped = torch.from_numpy(np.clip(product + way * 2 * UNIT * np.abs(product), -448.0, 448.0))
    return clipped.to(torch.float32).to(torch.float8_e4m3fn).to(torch.float64).numpy()


def _companded(ratio: Array, signed: bool, way: int) -> Array:
    """The whole part of 127 y + 1/2 with y = 2n / (1 + n) and the sign of the ratio, or of 255 times its root.

    Between the ratio and the whole part stand four float32 roundings at most: 1 + n, the quotient, the product, the
    sum; each is off by UNIT of a number that is no larger than the product and one half.
    """
    size = np.abs(ratio)
    product = 127 * (2 * size / (1 + size)) if signed else 255 * np.sqrt(np.maximum(ratio, 0))
    slack = np.where(signed & (ratio < 0), -way, way) * 4 * UNIT * (product + 0.5)
    level = np.minimum(np.floor(product + 0.5 + slack), 127 if signed else 255)
    return np.where(signed & (ratio < 0), -level, level)


# What a level is worth, times the scale: each operation of the codec rounded to float32, as it is published.

Worth = Callable[[Array, bool], Array]


def _single(values: Array | float) -> Array:
    return to_dtype(np.asarray(values), torch.float32)


def _expanded(level: Array, signed: bool) -> Array:
    """v / (2 - |v|) with v = level / 127, or the square of level / 255; divisors are multiplied by as reciprocals."""
    y = _single(level * _single(1 / (127 if signed else 255)))
    return _single(y / _single(2 - np.abs(y))) if signed else _single(y * y)


def _eighths(level: Array, signed: bool) -> Array:
    return _single(level * _single(1 / 448))


# Levels as they lie in memory.

Unpack = Callable[[torch.Tensor, int, bool], Array]


def _plain_codes(codes: torch.Tensor, numel: int, signed: bool) -> Array:
    return codes.detach().cpu().reshape(-1).to(torch.float64).numpy()


def _nibbles(codes: torch.Tensor, numel: int, signed: bool) -> Array:
    """Two codes a byte, the first of each pair in the high half."""
    packed = codes.detach().cpu().reshape(-1).view(torch.uint8).numpy().astype(np.int64)
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:numel].astype(np.float64)


def _float8(codes: torch.Tensor, numel: int, signed: bool) -> Array:
    return codes.detach().cpu().reshape(-1).view(torch.float8_e4m3fn).to(torch.float64).numpy()


def _offset(codes: torch.Tensor, numel: int, signed: bool) -> Array:
    """Bytes with a sign; levels without one, 0 to 255, begin at -128."""
    return _plain_codes(codes, numel, signed) + (0 if signed else 128)


@dataclass(frozen=True)
class Codec:
    """Codec that stores values over scales.

    Attributes:
        dtype: Of the codes.
        block: Elements that share a scale, where nothing else is asked for.
        level, worth, unpack: See above.
        least: Elements that a parameter must have.
    """

    dtype: torch.dtype
    block: int
    level: Level
    worth: Worth
    unpack: Unpack = _plain_codes
    least: int = 1


def _of_four_bits(dtype: torch.dtype, block: int, book: Callable[[bool], Array]) -> Codec:
    return Codec(
        dtype,
        block,
        lambda ratio, signed, way: nearest(ratio, book(signed)).astype(np.float64),
        lambda level, signed: book(signed)[level.astype(np.int64)],
        unpack=_nibbles,
        least=2,
    )


CODECS: Mapping[str, Codec] = {
    "int8": Codec(torch.uint8, 256, _dynamic, lambda level, signed: code_book(signed)[level.astype(np.int64)]),
    "int4": _of_four_bits(torch.uint8, 128, four_bit_book),
    "normal4": _of_four_bits(torch.int8, 64, normal_book),
    "fp8": Codec(torch.float8_e4m3fn, 256, _e4m3, _eighths, unpack=_float8),
    "companded8": Codec(torch.int8, 32, _companded, _expanded, unpack=_offset),
}
BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4, "normal4": 4, "fp8": 8, "companded8": 8}
OF_BITS = {32: "fp32", 16: "bf16", 8: "int8", 4: "int4"}
WHOLE = 0  # as a block: the whole tensor


def block_of(codec: str, block: int | None, numel: int) -> int:
    """Elements that share a scale: the codec's own number, another one, or all of the tensor."""
    return max(numel, 1) if block == WHOLE else block or CODECS[codec].block


class Quantized:
    """A state in codes: `codes` are the levels as float64 would choose them, between the `lowest` and the `highest`
    that float32 may choose; and the scales."""

    def __init__(self, x: Ball, signed: bool, codec: str = "int8", block: int | None = None) -> None:
        self.signed, self.shape, self.name = signed, x.shape, codec
        self.codec = CODECS[codec]
        self.block = block_of(codec, block, x.mid.size)
        values = Ball(x.mid.reshape(-1), x.rad.reshape(-1))
        self.absmax = self._scales(values)
        scale = spread_scales(self.absmax, self.block, values.mid.size)
        # Two roundings between a value and its ratio: the scale's reciprocal, which has fewer places where it is not
        # normal, and the product.
        ratio_error = 4 * UNIT + 2.0**-150 * scale.high
        low_scale, high_scale = scale.low * (1 - ratio_error), scale.high * (1 + ratio_error)
        with np.errstate(invalid="ignore"):
            low, high = values.low, values.high
        self.codes = self._levels(values.mid, scale.mid, 0)
        self.lowest = self._levels(*_end(low, low_scale, high_scale), -1)
        self.highest = self._levels(*_end(high, high_scale, low_scale), 1)
        anything = np.isinf(values.rad) | np.isinf(scale.rad)
        self.lowest = np.where(anything, -np.inf, self.lowest)
        self.highest = np.where(anything, np.inf, self.highest)

    def _levels(self, values: Array, scale: Array, way: int) -> Array:
        return self.codec.level(_ratio(values, scale), self.signed, way)

    def _scales(self, x: Ball) -> Ball:
        pad = -x.mid.size % self.block
        finite = np.isfinite(x.mid)
        magnitude = np.pad(np.where(finite, np.abs(x.mid), 0), (0, pad)).reshape(-1, self.block)
        radius = np.pad(np.where(finite, x.rad, 0), (0, pad)).reshape(-1, self.block)
        top = magnitude.max(axis=1)
        with np.errstate(invalid="ignore"):
            spread = np.maximum((magnitude + radius).max(axis=1) - top, top - (magnitude - radius).max(axis=1))
        vanishing = (top < NORMAL) & np.isfinite(spread)
        largest_ = Ball(np.where(vanishing, 0, top), np.where(vanishing, 0, spread))
        return store(largest_, torch.float32)

    def decoded(self) -> Ball:
        """The values as the next step reads them."""
        scale = spread_scales(self.absmax, self.block, self.codes.size)
        mid = decode_levels(self.codec, self.codes, scale, self.signed)
        ends = [
            decode_levels(self.codec, np.where(np.isinf(level), self.codes, level), scale, self.signed)
            for level in (self.lowest, self.highest)
        ]
        rad = np.maximum(ends[1].high - mid.mid, mid.mid - ends[0].low)
        anything = np.isinf(self.lowest)
        return Ball(mid.mid.reshape(self.shape), np.where(anything, np.inf, rad).reshape(self.shape))


def _end(values: Array, of_negative: Array, of_positive: Array) -> tuple[Array, Array]:
    """Values and scales of an end of a ball; where the scale may be as small as 0, the value may be all of it."""
    scale = np.where(values < 0, of_negative, of_positive)
    all_of_it = (scale <= 0) & (np.maximum(of_negative, of_positive) > 0)
    return np.where(all_of_it, np.sign(values), values), np.where(all_of_it, 1.0, scale)


def spread_scales(scales: Ball, block: int, numel: int) -> Ball:
    """A scale for each element."""
    return Ball(*(np.repeat(part.reshape(-1), block)[:numel] for part in (scales.mid, scales.rad)))


def decode_levels(codec: Codec, levels: Array, scale: Ball, signed: bool) -> Ball:
    """Values of levels: one float32 product each."""
    return store(multiplied(Ball(codec.worth(levels, signed)), scale), torch.float32)


def decode(
    codes: torch.Tensor,
    scales: torch.Tensor,
    signed: bool,
    codec: str = "int8",
    block: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Ball:
    """Values of an optimizer's own codes and scales."""
    shape = tuple(codes.shape) if shape is None else shape
    numel = int(np.prod(shape))
    held = Ball(scales.detach().cpu().reshape(-1).to(torch.float64).numpy())
    levels = CODECS[codec].unpack(codes, numel, signed)
    size = block_of(codec, WHOLE if held.mid.size == 1 else block, numel)
    found = decode_levels(CODECS[codec], levels, spread_scales(held, size, numel), signed)
    return Ball(found.mid.reshape(shape), found.rad.reshape(shape))

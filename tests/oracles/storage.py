"""How values are stored, once more and by other means than the package's: dtypes and 8-bit dynamic maps.

The code books are written from the maps' definition (a decade's midpoints, scaled by powers of ten, in float32 as
published, since codes are compared bit for bit); codes are found by searching all midpoints in float64.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from oracles.ball import Array, Ball, monotone

BLOCK = 256
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NORMAL = 2.0**-126  # a scale below float32's normal numbers counts as 0


def to_dtype(values: Array, dtype: torch.dtype) -> Array:
    """Rounded to float32, then to `dtype`, each to nearest, ties to even."""
    tensor = torch.from_numpy(np.array(values, dtype=np.float64, copy=True))  # from_numpy keeps 0-dim arrays
    return tensor.to(torch.float32).to(dtype).to(torch.float64).numpy()


def store(x: Ball, dtype: torch.dtype) -> Ball:
    """`x` as it reads back from a tensor of `dtype`."""
    return monotone(lambda values: to_dtype(values, dtype), x)


@cache
def code_book(signed: bool) -> Array:
    """The 256 values of a dynamic map, ascending: seven decades below 1 with 2^i (signed) or 2^(i+1) steps each."""
    values = [0.0, 1.0]
    for decade in range(7):
        steps = 2**decade if signed else 2 ** (decade + 1)
        ends = torch.linspace(0.1, 1, steps + 1, device="cpu")
        middles = (ends[:-1] + ends[1:]) / 2 * 10.0 ** (decade - 6)
        values += [*middles.tolist(), *((-middles).tolist() if signed else [])]
    return np.sort(np.array(values))


@cache
def thresholds(signed: bool) -> Array:
    """Midpoints between neighbouring magnitudes."""
    magnitudes = code_book(signed)[127 if signed else 0 :]
    return ((magnitudes[:-1] + magnitudes[1:]) / 2).astype(np.float32).astype(np.float64)


def encode(values: Array, absmax: Array, signed: bool) -> np.ndarray:
    """Codes of the nearest entries for `values` over `absmax`; ties toward zero; not finite is 0."""
    ratio = np.where(absmax > 0, values / np.where(absmax > 0, absmax, 1), 0)
    ratio = np.where(np.isfinite(ratio), ratio, 0)
    steps = np.searchsorted(thresholds(signed), np.abs(ratio), side="left")
    if not signed:
        return np.where(ratio > 0, steps, 0)
    return np.where(ratio < 0, 127 - np.minimum(steps, 127), 127 + steps)


class Quantized:
    """A state in 8 bits: `codes` as float64 would choose them, the `lowest` and `highest` that float32 may choose,
    and the scales. Block-wise, or one block for the whole tensor."""

    def __init__(self, x: Ball, signed: bool, block_wise: bool) -> None:
        self.signed, self.shape = signed, x.shape
        self.block = BLOCK if block_wise else max(x.mid.size, 1)
        mid, rad = x.mid.reshape(-1), x.rad.reshape(-1)
        self.absmax = self._scales(mid, rad)
        scale = self._spread(self.absmax)
        # Two roundings between a value and the ratio that is compared: the scale's reciprocal, and the product.
        ratio_error = 2.0**-22
        low_scale, high_scale = scale.low * (1 - ratio_error), scale.high * (1 + ratio_error)
        low, high = mid - rad, mid + rad
        self.codes = encode(mid, scale.mid, signed)
        self.lowest = encode(low, np.where(low < 0, low_scale, high_scale), signed)
        self.highest = encode(high, np.where(high < 0, high_scale, low_scale), signed)

    def _scales(self, mid: Array, rad: Array) -> Ball:
        pad = -mid.size % self.block
        finite = np.isfinite(mid)
        magnitude = np.pad(np.where(finite, np.abs(mid), 0), (0, pad)).reshape(-1, self.block)
        radius = np.pad(np.where(finite, rad, 0), (0, pad)).reshape(-1, self.block)
        top = magnitude.max(axis=1)
        spread = np.maximum((magnitude + radius).max(axis=1) - top, top - (magnitude - radius).max(axis=1))
        vanishing = top < NORMAL
        return store(Ball(np.where(vanishing, 0, top), np.where(vanishing, 0, spread)), torch.float32)

    def _spread(self, scales: Ball) -> Ball:
        size = int(np.prod(self.shape))
        return Ball(*(np.repeat(part, self.block)[:size] for part in (scales.mid, scales.rad)))

    def decoded(self) -> Ball:
        """The values as the next step reads them: one float32 product each."""
        scale = self._spread(self.absmax)
        book = code_book(self.signed)
        mid, low, high = (to_dtype(book[codes] * scale.mid, torch.float32) for codes in self._codes())
        rad = np.maximum(high - mid, mid - low) + np.abs(book[self.codes]) * scale.rad
        return Ball(mid.reshape(self.shape), rad.reshape(self.shape))

    def _codes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.codes, self.lowest, self.highest


def decode(codes: np.ndarray, absmax: np.ndarray, signed: bool) -> Array:
    """What an optimizer's own codes and scales stand for."""
    flat = codes.reshape(-1).astype(np.int64)
    block = BLOCK if absmax.size > 1 or flat.size <= BLOCK else flat.size
    scale = np.repeat(absmax.reshape(-1).astype(np.float64), block)[: flat.size]
    return to_dtype(code_book(signed)[flat] * scale, torch.float32).reshape(codes.shape)

"""Rounding of parameters, written again by other means than the package's: float64 on the grid of a dtype.

All roundings are monotone in the value (numerics/bounds.py derives it), so that what is stored for a ball lies between
what is stored for its two ends: the tensor's numbers, and what they stand for with what is kept beside them.

A further rounding is a row of ROUNDINGS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from oracles.ball import Array, Ball, monotone
from oracles.storage import to_dtype

Bits = npt.NDArray[np.int64]  # 16 random bits for each element
HALVES = (torch.bfloat16, torch.float16)
KEPT = "param_compensation"  # where an optimizer has what is kept beside a parameter, among its states


def _grid(values: Array, places: int, least: int) -> tuple[Array, Array]:
    """Magnitudes in steps of their last place, and these steps, of floats with so many places after the first.

    `least` is the least exponent of normal numbers; below it the steps stay as they are.
    """
    size = np.abs(values)
    step = np.ldexp(1.0, np.maximum(np.frexp(size)[1] - 1, least) - places)
    return size / step, step


def _from_grid(steps: Array, step: Array, values: Array, largest: float) -> Array:
    """Whole steps as numbers with their values' signs: infinite beyond the largest; others as they are."""
    size = steps * step
    found = np.copysign(np.where(size > largest, np.inf, size), values)
    return np.where(np.isfinite(values), found, values)


def _form(dtype: torch.dtype) -> tuple[int, int, float]:
    """Places after the first, the least exponent, the largest number."""
    info = torch.finfo(dtype)
    return round(-np.log2(info.eps)), round(np.log2(info.smallest_normal)), info.max


def _finite(values: Array) -> Array:
    return np.where(np.isfinite(values), values, 0.0)


# What the tensor holds for float64 values, which become float32 first; and what that stands for.


def _nearest(values: Array, dtype: torch.dtype, bits: Bits | None) -> Array:
    return to_dtype(values, dtype)


def _stochastic(values: Array, dtype: torch.dtype, bits: Bits | None) -> Array:
    """Away from zero where the float32 bits below the last place, and as many random ones, make a carry.

    Below fp16's normal numbers float32 has other places than fp16: there it is away where the random bits are below
    2^16 times the fraction.
    """
    assert bits is not None
    values = to_dtype(values, torch.float32)
    places, least, largest = _form(dtype)
    steps, step = _grid(_finite(values), places, least)
    whole = np.floor(steps)
    lost = 23 - places  # bits of float32 below the last place
    below, random = (steps - whole) * 2**lost, bits.reshape(values.shape) >> 16 - lost
    away = np.floor(below) + random >= 2**lost
    if dtype is torch.float16:
        subnormal = np.abs(values) < 2.0**least
        away = np.where(subnormal, bits.reshape(values.shape) < (steps - whole) * 2**16, away)
    return _from_grid(whole + away, step, values, largest)


def _kahan_value(values: Array, dtype: torch.dtype, bits: Bits | None) -> Array:
    """The nearest number, and the nearest one to what it lacks."""
    values = to_dtype(values, torch.float32)
    held = to_dtype(values, dtype)
    finite = np.isfinite(held)
    rest = to_dtype(np.where(finite, _finite(values) - _finite(held), 0.0), dtype)
    return to_dtype(held + rest, torch.float32)


def _cut(places: int) -> Callable[[Array], Array]:
    """Float32 to nearest even with so many places after the first."""

    def function(values: Array) -> Array:
        values = to_dtype(values, torch.float32)
        steps, step = _grid(_finite(values), places, -126)
        return _from_grid(np.round(steps), step, values, torch.finfo(torch.float32).max)

    return function


def _upper(values: Array) -> Array:
    """The nearest bfloat16, half a step up."""
    places, least, largest = _form(torch.bfloat16)
    steps, step = _grid(_finite(values), places, least)
    return _from_grid(np.floor(steps + 0.5), step, values, largest)


Stored = Callable[[Array, torch.dtype, "Bits | None"], Array]
Decode = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Rounding:
    """Rounding of parameters.

    Attributes:
        tensor: New values as the tensor holds them.
        value: New values as they read back.
        dtypes: The parameters it acts on; others are stored to nearest.
        kept: The dtype of what is kept beside a parameter, "same" as its own, or None.
        decode: Value of a tensor and of what is kept beside it.
        places: After the first place of a value, where they are not the dtype's own.
        draws: Whether it needs random bits.
    """

    tensor: Stored
    value: Stored
    dtypes: tuple[torch.dtype, ...] = HALVES
    kept: torch.dtype | str | None = None
    decode: Decode = lambda tensor, kept: tensor
    places: Callable[[int], int] = lambda own: own
    draws: bool = False

    def stored(self, x: Ball, dtype: torch.dtype, bits: Bits | None = None) -> tuple[Ball, Ball]:
        """The tensor, and its value with what is kept beside it."""
        held = monotone(lambda values: self.tensor(values, dtype, bits), x)
        if self.value is self.tensor:
            return held, held
        return held, monotone(lambda values: self.value(values, dtype, bits), x)

    def kept_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        return dtype if self.kept == "same" else self.kept  # type: ignore[return-value]

    def spacing(self, dtype: torch.dtype) -> float:
        """The largest distance between neighbouring values, of their size."""
        return float(2.0 ** -self.places(_form(dtype)[0]))


def _split(dtype: torch.dtype) -> Rounding:
    """A float32 in two: the upper half, and the difference in as many bits below it as `dtype` has."""
    lower = torch.iinfo(dtype).bits
    cut = _cut(7 + lower)

    def tensor(values: Array, dtype: torch.dtype, bits: Bits | None) -> Array:
        return _upper(cut(values))

    def value(values: Array, dtype: torch.dtype, bits: Bits | None) -> Array:
        whole = cut(values)
        held = _upper(whole)
        return np.where(np.isfinite(held), whole, held)

    def decode(tensor: Array, kept: Array) -> Array:
        upper = tensor.astype(np.float32).view(np.int32).astype(np.int64)
        whole = upper + kept.astype(np.int64) * 2 ** (16 - lower)
        return whole.astype(np.int32).view(np.float32).astype(np.float64)

    return Rounding(tensor, value, (torch.bfloat16,), dtype, decode, lambda own: own + lower)


def _sum(tensor: Array, kept: Array) -> Array:
    return to_dtype(tensor + kept, torch.float32)


ROUNDINGS: Mapping[str, Rounding] = {
    "nearest": Rounding(_nearest, _nearest, (torch.float32, *HALVES)),
    "stochastic": Rounding(_stochastic, _stochastic, draws=True),
    # What is lacking is half a place at most, which is rounded to as many places.
    "kahan": Rounding(_nearest, _kahan_value, kept="same", decode=_sum, places=lambda own: 2 * own + 1),
    "split8": _split(torch.int8),
    "split16": _split(torch.int16),
}


def rounding_of(name: str, dtype: torch.dtype) -> Rounding:
    """Rounding that a parameter of this dtype gets where this rounding is asked for."""
    asked = ROUNDINGS[name]
    return asked if dtype in asked.dtypes else ROUNDINGS["nearest"]


def decoded(rounding: Rounding, param: Array, kept: Any) -> Array:
    """Value of a parameter; nothing is kept beside it before its first step."""
    if rounding.kept is None or kept is None:
        return param
    with np.errstate(invalid="ignore"):
        return rounding.decode(param, kept)

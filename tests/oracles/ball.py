"""Numbers with a proven error radius: float64 formulas that know how far float32 may be from them.

A `Ball` is a float64 value `mid` and a radius `rad`: whatever float32 evaluation of the same formula gave lies within
`rad` of `mid`. Every operation passes on the radii of what it reads and adds its own rounding; the rules are derived
in numerics/bounds.py. Plain Python floats are host scalars, exact here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

ULP = 2.0**-23  # what one float32 operation is charged: two unit roundoffs (numerics/bounds.py says why two)
TINY = 2.0**-149  # float32's smallest step near zero
HOST = 2.0**-50  # a float64 operation of the host, and each term of a float64 sum: charged generously


class Ball:
    """All numbers within `rad` of `mid`, elementwise."""

    __slots__ = ("mid", "rad")
    __array_ufunc__ = None  # numpy arrays and scalars leave mixed operations to us

    def __init__(self, mid: Any, rad: Any = 0.0) -> None:
        self.mid: Array = np.asarray(mid, dtype=np.float64)
        self.rad: Array = np.broadcast_to(np.asarray(rad, dtype=np.float64), self.mid.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mid.shape

    @property
    def low(self) -> Array:
        return self.mid - self.rad

    @property
    def high(self) -> Array:
        return self.mid + self.rad

    def __repr__(self) -> str:
        return f"Ball({self.mid!r}, {self.rad!r})"

    def __getitem__(self, key: Any) -> Ball:
        return Ball(self.mid[key], self.rad[key])

    def __add__(self, other: Any) -> Ball:
        other = ball(other)
        return rounded(self.mid + other.mid, self.rad + other.rad)

    def __sub__(self, other: Any) -> Ball:
        return self + -ball(other)

    def __mul__(self, other: Any) -> Ball:
        other = ball(other)
        rad = np.abs(self.mid) * other.rad + np.abs(other.mid) * self.rad + self.rad * other.rad
        return rounded(self.mid * other.mid, rad)

    def __truediv__(self, other: Any) -> Ball:
        other = ball(other)
        mid = self.mid / other.mid
        room = np.abs(other.mid) - other.rad
        rad = np.where(room > 0, (self.rad + np.abs(mid) * other.rad) / np.where(room > 0, room, 1), np.inf)
        exact_zero = (self.mid == 0) & (self.rad == 0) & (other.mid != 0)
        return rounded(mid, np.where(exact_zero, 0, rad))

    def __radd__(self, other: Any) -> Ball:
        return ball(other) + self

    def __rsub__(self, other: Any) -> Ball:
        return ball(other) - self

    def __rmul__(self, other: Any) -> Ball:
        return ball(other) * self

    def __rtruediv__(self, other: Any) -> Ball:
        return ball(other) / self

    def __neg__(self) -> Ball:
        return Ball(-self.mid, self.rad)

    def __abs__(self) -> Ball:
        return Ball(np.abs(self.mid), self.rad)


def ball(x: Any) -> Ball:
    """`x` itself, or an exact number as a ball of radius 0."""
    return x if isinstance(x, Ball) else Ball(x)


def rounded(mid: Any, rad: Any, charge: float = ULP) -> Ball:
    """The result of an operation: its propagated radius and its own rounding. NaN and Inf have no radius."""
    mid = np.asarray(mid, dtype=np.float64)
    nonzero = (mid != 0) | (rad > 0)  # an exact 0 stays one
    rad = rad + charge * (np.abs(mid) + rad) + TINY * nonzero
    return Ball(mid, np.where(np.isfinite(mid), rad, 0))


def sqrt(x: Ball) -> Ball:
    mid = np.sqrt(x.mid)
    # |sqrt(a) - sqrt(b)| = |a - b| / (sqrt(a) + sqrt(b)), worst at the ball's lower end (cut off at 0), and it is never
    # more than sqrt(|a - b|).
    both = mid + np.sqrt(np.maximum(x.low, 0))
    rad = np.minimum(x.rad / np.where(both > 0, both, 1), np.sqrt(x.rad))
    return rounded(mid, np.where(both > 0, rad, np.sqrt(x.rad)))


def rsqrt(x: Ball) -> Ball:
    return 1.0 / sqrt(x)


def maximum(a: Any, b: Any) -> Ball:
    a, b = ball(a), ball(b)
    return Ball(np.maximum(a.mid, b.mid), np.maximum(a.rad, b.rad))


def minimum(a: Any, b: Any) -> Ball:
    return -maximum(-ball(a), -ball(b))


def positive(x: Ball) -> tuple[Array, Array]:
    """Where x > 0, and where that is not certain."""
    return x.mid > 0, (np.abs(x.mid) <= x.rad) & (x.rad > 0)


def where(condition: Any, a: Any, b: Any, unsure: Any = False) -> Ball:
    """a where the condition holds, else b; where the condition is unsure, a ball that holds both."""
    a, b = ball(a), ball(b)
    mid = np.where(condition, a.mid, b.mid)
    rad = np.where(condition, a.rad, b.rad)
    other_mid, other_rad = np.where(condition, b.mid, a.mid), np.where(condition, b.rad, a.rad)
    return Ball(mid, np.where(unsure, np.maximum(rad, np.abs(other_mid - mid) + other_rad), rad))


def total(x: Ball, axis: int | None = None, keepdims: bool = False) -> Ball:
    """Sum in float64: nothing but the radii of the terms, and float64's own rounding."""
    size = x.mid.size if axis is None else x.shape[axis]
    magnitude = np.abs(x.mid).sum(axis=axis, keepdims=keepdims)
    rad = x.rad.sum(axis=axis, keepdims=keepdims) + size * HOST * magnitude
    return Ball(x.mid.sum(axis=axis, keepdims=keepdims), rad)


def mean(x: Ball, axis: int | None = None, keepdims: bool = False) -> Ball:
    size = x.mid.size if axis is None else x.shape[axis]
    return total(x, axis, keepdims) / float(size)


def norm(x: Ball) -> Ball:
    """Root of the sum of squares; the squares are float32 products, the sum is float64."""
    return sqrt(total(x * x))


def rms(x: Ball) -> Ball:
    return sqrt(mean(x * x))


def ordered(x: Ball, index: int) -> Ball:
    """The `index`-th smallest: an order statistic is monotone in every entry."""
    low, mid, high = (np.sort(part)[index] for part in (x.low, x.mid, x.high))
    return Ball(mid, max(high - mid, mid - low))


def monotone(function: Callable[[Array], Array], x: Ball) -> Ball:
    """A monotone exact function (a rounding to storage) of a ball: what lies between its two ends."""
    mid = function(x.mid)
    rad = np.maximum(function(x.high) - mid, mid - function(x.low))
    return Ball(mid, np.where(np.isfinite(mid), rad, 0))

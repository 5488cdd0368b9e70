"""Numbers with a proven error radius: float64 formulas that know how far float32 may be from them.

A `Ball` is a float64 value `mid` and a radius `rad`: whatever float32 evaluation of the same formula gave lies within
`rad` of `mid`. Every operation passes on the radii of what it reads and adds its own rounding; the rules are derived
in numerics/bounds.py. Plain Python floats are host scalars, exact here.

NaN and Inf have no radius: they are expected as they are. An infinite radius says that nothing is known of a number
(a quotient whose divisor may be 0): it may be anything, NaN and Inf included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

ULP = 2.0**-23  # what one float32 operation is charged: two unit roundoffs (numerics/bounds.py says why two)
TINY = 2.0**-149  # float32's smallest step near zero
HOST = 2.0**-50  # a float64 operation of the host, and each term of a float64 sum: charged generously
HOST_TINY = 2.0**-1074


class Ball:
    """All numbers within `rad` of `mid`, elementwise."""

    __slots__ = ("_finite", "mid", "rad")
    __array_ufunc__ = None  # numpy arrays and scalars leave mixed operations to us

    def __init__(self, mid: Any, rad: Any = 0.0) -> None:
        self.mid: Array = np.asarray(mid, dtype=np.float64)
        radius = np.asarray(rad, dtype=np.float64)
        self.rad: Array = radius if radius.shape == self.mid.shape else np.broadcast_to(radius, self.mid.shape)
        self._finite: bool | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mid.shape

    @property
    def low(self) -> Array:
        return self.mid - self.rad

    @property
    def high(self) -> Array:
        return self.mid + self.rad

    def is_finite(self) -> bool:
        """Tell if no number is NaN, Inf or anything."""
        if self._finite is None:
            self._finite = all_finite(self.mid) and all_finite(self.rad)
        return self._finite

    def __repr__(self) -> str:
        return f"Ball({self.mid!r}, {self.rad!r})"

    def __getitem__(self, key: Any) -> Ball:
        return Ball(self.mid[key], self.rad[key])

    def __add__(self, other: Any) -> Ball:
        return rounded(added(self, ball(other)))

    def __sub__(self, other: Any) -> Ball:
        return self + -ball(other)

    def __mul__(self, other: Any) -> Ball:
        return rounded(multiplied(self, ball(other)))

    def __truediv__(self, other: Any) -> Ball:
        return rounded(divided(self, ball(other)))

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


def all_finite(x: Any) -> bool:
    """Tell if no number is NaN or Inf, at the price of a sum (one that overflows is said to be not finite)."""
    return math.isfinite(x if x.ndim == 0 else np.add.reduce(x, axis=None))


def _finite(mid: Any, rad: Any) -> Ball:
    """A ball that is known to be finite."""
    result = Ball(mid, rad)
    result._finite = True
    return result


def ball(x: Any) -> Ball:
    """`x` itself, or an exact number as a ball of radius 0."""
    return x if isinstance(x, Ball) else Ball(x)


# Results before they are rounded: what the radii of the operands make of the exact result.


def spread(mid: Any, rad: Any, *operands: Ball) -> Ball:
    """A result with the radius that its operands give it: exact where they are NaN or Inf, anything where they are."""
    if all_finite(mid) and all_finite(rad) and all(operand.is_finite() for operand in operands):
        return _finite(mid, rad)
    special, anything = np.False_, np.False_
    for operand in operands:
        special = special | ~np.isfinite(operand.mid)
        anything = anything | np.isinf(operand.rad)
    rad = np.where(special, 0, rad)
    unknown = np.isnan(rad) | np.isinf(rad) | anything
    mid = np.where(unknown & ~np.isfinite(mid), 0, mid)
    return Ball(mid, np.where(unknown, np.inf, rad))


def added(a: Ball, b: Ball) -> Ball:
    return spread(a.mid + b.mid, a.rad + b.rad, a, b)


def multiplied(a: Ball, b: Ball) -> Ball:
    return spread(a.mid * b.mid, np.abs(a.mid) * b.rad + np.abs(b.mid) * a.rad + a.rad * b.rad, a, b)


def divided(a: Ball, b: Ball) -> Ball:
    with np.errstate(divide="ignore", invalid="ignore"):
        mid = a.mid / b.mid
        room = np.abs(b.mid) - b.rad
        rad = np.where(room > 0, (a.rad + np.abs(mid) * b.rad) / np.where(room > 0, room, 1), np.inf)
    exact_zero = (a.mid == 0) & (a.rad == 0) & (b.mid != 0)
    exact = (a.rad == 0) & (b.rad == 0) & (b.mid == 0)  # x / 0 is Inf, 0 / 0 is NaN
    return spread(mid, np.where(exact_zero | exact, 0, rad), a, b)


def remainder(a: Ball, b: Ball) -> Ball:
    """a % b, of the sign of b: as wide as `a` where no multiple of b lies in it, and b is exact; else anything to b."""
    with np.errstate(all="ignore"):
        mid = np.mod(a.mid, b.mid)
        apart = (np.floor(a.low / b.mid) == np.floor(a.high / b.mid)) & (b.rad == 0)
        rad = np.where(apart | ((a.rad == 0) & (b.rad == 0)), a.rad, np.abs(b.mid) + b.rad)
    return spread(mid, rad, a, b)


def power(a: Ball, b: Ball) -> Ball:
    """a ** b: monotone in both for a > 0; a base that may be negative needs a whole exponent."""
    mid = np.power(a.mid, b.mid)
    whole = (b.rad == 0) & (b.mid == np.floor(b.mid))
    corners = [np.power(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    corners.append(np.where((a.low < 0) & (a.high > 0) & (b.mid > 0), 0, mid))
    highest, lowest = np.max(corners, axis=0), np.min(corners, axis=0)
    unsafe = ((a.low < 0) & ~whole) | ((a.low <= 0) & (a.high >= 0) & (b.low < 0))
    exact = (a.rad == 0) & (b.rad == 0)
    rad = np.where(unsafe, np.inf, np.maximum(highest - mid, mid - lowest))
    return spread(mid, np.where(exact, 0, rad), a, b)


def root(x: Ball) -> Ball:
    mid = np.sqrt(x.mid)
    # |sqrt(a) - sqrt(b)| = |a - b| / (sqrt(a) + sqrt(b)), worst at the ball's lower end (cut off at 0), and it is never
    # more than sqrt(|a - b|).
    both = mid + np.sqrt(np.maximum(x.low, 0))
    rad = np.where(both > 0, np.minimum(x.rad / np.where(both > 0, both, 1), np.sqrt(x.rad)), np.sqrt(x.rad))
    rad = np.where((x.mid < 0) & (x.rad == 0), 0, np.where(x.mid < 0, np.inf, rad))
    return spread(mid, rad, x)


def monotone(function: Callable[[Array], Array], x: Ball) -> Ball:
    """A monotone exact function (a rounding to storage) of a ball: what lies between its two ends."""
    low, mid, high = function(x.low), function(x.mid), function(x.high)
    same = (low == high) | (x.rad == 0)
    return spread(mid, np.where(same, 0, np.maximum(high - mid, mid - low)), x)


def rounded(x: Ball, charge: float = ULP, tiny: float = TINY) -> Ball:
    """The result of an operation: its propagated radius and its own rounding. NaN and Inf have no radius."""
    size = np.abs(x.mid) + x.rad
    rad = x.rad + charge * size + tiny * (size > 0)  # an exact 0 stays one
    if all_finite(rad):
        return _finite(x.mid, rad) if x.is_finite() else Ball(x.mid, rad)
    return Ball(x.mid, np.where(np.isfinite(x.mid), rad, 0))


def sqrt(x: Ball) -> Ball:
    return rounded(root(x))


def rsqrt(x: Ball) -> Ball:
    return 1.0 / sqrt(x)


def maximum(a: Any, b: Any) -> Ball:
    a, b = ball(a), ball(b)
    mid, low, high = np.maximum(a.mid, b.mid), np.maximum(a.low, b.low), np.maximum(a.high, b.high)
    return spread(mid, np.maximum(high - mid, mid - low), a, b)  # monotone in both: a limit that holds is exact


def minimum(a: Any, b: Any) -> Ball:
    return -maximum(-ball(a), -ball(b))


def sign(x: Ball) -> Ball:
    """-1, 0 or 1; 0 for NaN."""
    mid = np.nan_to_num(np.sign(x.mid))
    rad = np.maximum(np.sign(x.high) - mid, mid - np.sign(x.low))
    return Ball(mid, np.where(x.rad > 0, np.nan_to_num(rad), 0))


def positive(x: Ball) -> tuple[Array, Array]:
    """Masks of x > 0, and of elements for which that is not certain."""
    return x.mid > 0, (np.abs(x.mid) <= x.rad) & (x.rad > 0)


def where(condition: Any, a: Any, b: Any, unsure: Any = False) -> Ball:
    """a where the condition holds, else b; where the condition is unsure, a ball that holds both."""
    a, b = ball(a), ball(b)
    mid = np.where(condition, a.mid, b.mid)
    rad = np.where(condition, a.rad, b.rad)
    other_mid, other_rad = np.where(condition, b.mid, a.mid), np.where(condition, b.rad, a.rad)
    either = np.maximum(rad, np.abs(other_mid - mid) + other_rad)
    either = np.where((mid == other_mid) | (np.isnan(mid) & np.isnan(other_mid)), np.maximum(rad, other_rad), either)
    unknown = unsure & ~np.isfinite(either)  # one of them NaN or Inf: nothing is known
    rad = np.where(unsure, np.where(unknown, np.inf, either), rad)
    return Ball(np.where(unknown & ~np.isfinite(mid), 0, mid), rad)


def total(x: Ball, axis: Any = None, keepdims: bool = False) -> Ball:
    """Sum in float64: nothing but the radii of the terms, and float64's own rounding."""
    size = x.mid.size if axis is None else np.prod([x.shape[i] for i in np.atleast_1d(axis)])
    mid = x.mid.sum(axis=axis, keepdims=keepdims)
    magnitude = np.abs(x.mid).sum(axis=axis, keepdims=keepdims)
    rad = x.rad.sum(axis=axis, keepdims=keepdims) + size * HOST * magnitude
    special = (~np.isfinite(x.mid)).any(axis=axis, keepdims=keepdims)
    anything = np.isinf(x.rad).any(axis=axis, keepdims=keepdims)
    return Ball(mid, np.where(anything, np.inf, np.where(special, 0, rad)))


def mean(x: Ball, axis: int | None = None, keepdims: bool = False) -> Ball:
    size = x.mid.size if axis is None else x.shape[axis]
    return total(x, axis, keepdims) / float(size)


def largest(x: Ball) -> Ball:
    """The largest of numbers that are not negative; 0 of none."""
    if not x.mid.size:
        return Ball(0.0)
    top = x.mid.max()
    rad = max(x.high.max() - top, top - x.low.max())
    return spread(top, np.float64(np.inf if np.isinf(x.rad).any() else rad), Ball(top))


def greatest(x: Ball, axis: Any = None) -> Ball:
    """The greatest along axes, which are kept unless all are meant: monotone in every number."""
    if not x.mid.size:
        return Ball(np.full(x.mid.max(axis=axis, keepdims=axis is not None, initial=0).shape, -np.inf))
    low, mid, high = (part.max(axis=axis, keepdims=axis is not None) for part in (x.low, x.mid, x.high))
    return Ball(mid, np.maximum(high - mid, mid - low))


def norm(x: Ball) -> Ball:
    """Root of the sum of squares; the squares are float32 products, the sum is float64."""
    return sqrt(total(x * x))


def rms(x: Ball) -> Ball:
    return sqrt(mean(x * x))


def ordered(x: Ball, index: int) -> Ball:
    """The `index`-th smallest: an order statistic is monotone in every entry."""
    low, mid, high = (np.sort(part)[index] for part in (x.low, x.mid, x.high))
    return Ball(mid, max(high - mid, mid - low))

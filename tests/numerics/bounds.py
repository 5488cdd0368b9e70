"""Error bounds of a step, derived, and the checks that hold an optimizer against them.

**What is bounded.** A generated optimizer evaluates a rule's formula in float32 (u = 2^-24, the unit roundoff) and
rounds once when it stores a result. The oracle evaluates the same formula in float64 on balls (oracles/ball.py): a
value and a radius that holds every admissible float32 evaluation. Nothing here is fitted to what an optimizer does.

**One operation.** For float32 operands â = a + δa, b̂ = b + δb with |δa| <= ra, |δb| <= rb, and fl(x) = x(1 + ε) + η
with |ε| <= u, |η| <= 2^-150 (gradual underflow):

    a ± b      |error| <= ra + rb
    a · b      |error| <= |a| rb + |b| ra + ra rb
    a / b      |error| <= (ra + |a/b| rb) / (|b| - rb)
    sqrt a     |error| <= min(ra / (sqrt a + sqrt(a - ra)), sqrt ra)
    max(a, b)  between max(a - ra, b - rb) and max(a + ra, b + rb), no rounding

plus the rounding of the result. Each operation is charged ULP = 2^-23 = 2u of its result (|value| + radius), that is
two roundings, and one step of the subnormals, because a float32 evaluation may round twice where the formula has one
operation: a host scalar (lr, 1 - beta2, computed in float64) is converted to float32 before it is multiplied, a
division by a scalar is a multiplication by its rounded reciprocal, 1/sqrt is a root and a division. Contracting a
multiplication and an addition, or leaving out an operation, only removes roundings.

**Reductions.** Squares are float32 products (charged above), sums are float64: N terms lose at most N 2^-53 of the sum
of magnitudes, charged as N 2^-50.

**Conditioning.** m / (sqrt v + eps) needs no special case: the quotient rule carries v's radius into the root
(relative error halves, except near 0, where sqrt(rv) takes over and eps bounds the quotient) and m's absolute radius,
which stays where beta1 m and (1 - beta1) g cancel. Where a denominator may be 0 within its radius, the radius is
infinite; `assert_meaningful` keeps such elements rare.

**Branches.** A comparison of balls that overlap is unsure; the result then holds both branches (percentile clipping).

**Storage.** Rounding to fp32, bf16, fp16 and quantizing with the nearest entry of a code book are monotone. What is
stored therefore lies between what the two ends of the ball are stored as: `store` for dtypes; for 8 bits the ratio y =
x / absmax is charged two more roundings (the reciprocal of the scale, the product), and codes lie between those of
the ends. A code may thus differ from the float64 one only where a midpoint lies within the ball.

**Roundings of parameters** (oracles/rounding.py) are monotone too. The parameter's tensor and its value, which is what
the next step reads, are each judged by what the two ends of the ball are rounded to; nothing is charged besides.

- stochastic: the random bits r of an element are known. For a magnitude n + f in steps of the last place the result
  is n, or n + 1 for all f above a threshold that r gives; it grows with f, and from n + 1 to the next n it cannot fall.
- kahan: for a float32 v, p = nearest(v), d = v - p, which is exact (v lies within a factor 2 of p, or p is 0), and
  c = nearest(d); the value is p + c. While p is the same, p + nearest(v - p) grows with v. Where p changes, v passes
  the middle of two neighbours p < p', of which c cannot be on the wrong side: the middle minus p is a power of two
  times a step, which the dtype holds, so that nearest(d) <= middle - p and p + c <= middle <= p' + c'. With w the
  dtype's unit roundoff, |d| <= w |v| and |p + c - v| <= w |d| <= w^2 |v|: two roundings of the dtype, not one; below
  the dtype's normal numbers |c - d| is half a smallest step. p + c is a float32 again, since c has its last place at
  or above that of v.
- split8, split16: the value is v to nearest even at 16 or 24 places, the tensor that value's upper half, rounded half
  up; where this overflows, both are infinite.

An element that takes no part in a step has a ball of radius 0 around the value it had, and each of these gives that
value back, so that it must be kept exactly.

**Steps.** One step is judged alone: before it the oracle adopts the very values that the optimizer holds, radius 0, so
that no error is hidden in an accumulated bound, and by induction ten steps are right if each is. Where an optimizer
cannot be adopted from (torch.optim parity over many steps) balls are carried on, and radii grow by the rules above.
"""

from __future__ import annotations

import numpy as np
import torch
from oracles.ball import Ball
from oracles.base import array
from oracles.storage import Quantized


def assert_within(actual: torch.Tensor | np.ndarray | float, expected: Ball, what: str) -> None:
    """Every element of `actual` lies within its ball; NaN and Inf are where the oracle has them."""
    values = array(actual)
    assert values.shape == expected.shape, f"{what}: shape {values.shape}, expected {expected.shape}"
    same = (values == expected.mid) | (np.isnan(values) & np.isnan(expected.mid))
    with np.errstate(invalid="ignore"):
        error = np.abs(values - expected.mid)
    wrong = ~(same | (error <= expected.rad) | np.isinf(expected.rad))
    if wrong.any():
        worst = np.unravel_index(np.argmax(np.where(wrong, np.nan_to_num(error, nan=np.inf), -1)), values.shape)
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {values.size} elements out of bounds; at {tuple(map(int, worst))} it is "
            f"{values[worst]!r}, expected {expected.mid[worst]!r} within {expected.rad[worst]:.3e}"
        )


def assert_codes(codes: torch.Tensor, absmax: torch.Tensor, expected: Quantized, what: str) -> None:
    """Every code lies between those of the two ends of its ball, every scale within its own."""
    assert codes.dtype == expected.codec.dtype, f"{what}: dtype {codes.dtype}"
    assert absmax.dtype == torch.float32, f"{what}: scales of dtype {absmax.dtype}"
    assert_within(absmax.reshape(-1), expected.absmax, f"{what}: scales")
    actual = expected.codec.unpack(codes, expected.codes.size, expected.signed)
    assert actual.shape == expected.codes.shape, f"{what}: {actual.size} codes for {expected.codes.size} elements"
    wrong = (actual < expected.lowest) | (actual > expected.highest)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {actual.size} codes out of bounds; at {at} it is {actual[at]}, "
            f"expected {expected.codes[at]} ({expected.lowest[at]} to {expected.highest[at]})"
        )


def assert_meaningful(
    before: np.ndarray,
    expected: Ball,
    dtype: torch.dtype,
    what: str,
    spacing: float | None = None,
    together: bool = False,
) -> None:
    """The bound is far below what a step changes: for 99 of 100 elements that moved, 1 % of the move plus the storage
    steps that rounding may skip. A bound that admits everything tests nothing.

    spacing: Between what can be stored, of its size: the dtype's own unless something is kept beside it.
    together: Whether elements move as one matrix, so that errors are of the size of all their moves.
    """
    spacing = torch.finfo(dtype).eps if spacing is None else spacing
    magnitude = np.maximum(np.abs(expected.mid), np.abs(before))
    with np.errstate(invalid="ignore"):
        move = np.abs(expected.mid - before)
        move = np.maximum(move, np.sqrt(np.mean(move**2))) if together and move.size else move
        room = 0.01 * move + 4 * spacing * magnitude + 1e-30
        tight = (expected.rad <= room) | ~np.isfinite(expected.mid)
    assert tight.mean() >= 0.99, f"{what}: the bound says nothing for {1 - tight.mean():.0%} of the elements"


CHAIN = 10  # operations between a gradient and the step: averages 6, root, bias corrections 2, quotient


def assert_few_ulps(a: torch.Tensor, b: torch.Tensor, before: torch.Tensor, rate: float, what: str) -> None:
    """Two float32 results of an elementwise rule from the same values `before` differ by a contraction at most.

    That is 2 ulp, measured at the larger of the result and the value before: a sum of terms of that size is rounded at
    their size, however small what remains of them. To a parameter (`rate` is lr, else 0) comes the step: terms of
    size lr (Adam's m / sqrt v is of size 1), after CHAIN operations, each off by at most half an ulp in either result.
    """
    x, y, old = (torch.nan_to_num(tensor.double(), nan=0.0) for tensor in (a, b, before))
    assert torch.equal(torch.isnan(a), torch.isnan(b)), f"{what}: NaN in one of them only"
    size = torch.maximum(torch.maximum(x.abs(), y.abs()), old.abs()).clamp(min=2.0**-126)
    ulp = torch.exp2(torch.floor(torch.log2(size)) - 23)
    room = 2 * ulp + CHAIN * 2.0**-23 * rate
    worst = float(((x - y).abs() / room).max()) if x.numel() else 0.0
    assert worst <= 1, f"{what}: {worst:.2f} times as far apart as a contraction explains"

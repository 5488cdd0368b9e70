"""Newton-Schulz in float64, with a bound on what float32 may make of its orthogonal matrices.

**The bound.** A step of the iteration is X' = aX + BX with A = XXᵀ and B = bA + cA². A bound of the worst case, where
all roundings go one way, is a thousand times what happens, and says nothing. Roundings of long sums are nearly
independent of one another (Higham and Mary 2019, https://doi.org/10.1137/18M1226312): of a sum of k products, each
product and each partial sum is rounded by at most u = 2^-24 of itself, evenly spread, and a partial sum is of the size
of the whole or of the root of the sum of its terms' squares, unless the order follows their signs. An element of a
product PQ in float32 is then off by a random number of mean 0 and a standard deviation of at most u sqrt((k + 1) / 3)
times sqrt((PQ)² + P² Q²), where P² and Q² are squares of elements. So the iteration is run DRAWS times more in float64,
with such numbers added to every product, and with the input moved to an end of its ball in each element. MARGIN times
the most that any of these runs has an element apart from the exact one bounds what float32 may do to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Coefficients = tuple[float, float, float]
U = 2.0**-24
DRAWS = 16
MARGIN = 8
LARGEST = 0.02
"""The largest difference; where there is a larger one, nothing is known."""
ORIGINAL: Coefficients = (3.4445, -4.775, 2.0315)
# Bernstein and others; Amsel and others with a safety of 2 %.
QUINTIC: Sequence[Coefficients] = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)  # fmt: skip
POLAR_EXPRESS: Sequence[Coefficients] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass
class Bounded:
    """A matrix, and the largest error that float32 may make of each of its elements."""

    value: Matrix
    errors: Matrix

    @property
    def error(self) -> float:
        """The largest of all."""
        return float(self.errors.max(initial=0))


def orthogonal(
    x: Matrix,
    table: Sequence[Coefficients],
    safety: float = 1.0,
    eps: float = 1e-7,
    radius: Matrix | float | None = None,
) -> Bounded:
    """Newton-Schulz steps of these coefficients, with the original divisor or that of Polar Express.

    Args:
        radius: What elements of `x` may be off by; by default two roundings, as of momentum and its mix with the
            gradient.
    """
    near = 2 * U * np.abs(x) if radius is None else np.broadcast_to(radius, x.shape)
    generator = np.random.default_rng(0)
    exact = _iterated(x, table, safety, eps, None)
    apart = np.zeros(x.shape)
    for _ in range(DRAWS):
        moved = x + near * generator.choice([-1.0, 1.0], x.shape)
        apart = np.maximum(apart, np.abs(_iterated(moved, table, safety, eps, generator) - exact))
    return Bounded(exact, MARGIN * apart if apart.max(initial=0) < LARGEST else np.full(x.shape, np.inf))


def _iterated(
    x: Matrix, table: Sequence[Coefficients], safety: float, eps: float, draw: np.random.Generator | None
) -> Matrix:
    norm = float(np.linalg.norm(x))
    x = _rounded(x / (max(norm, eps) if safety == 1.0 else safety * norm + eps), draw)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for a, b, c in table:
        gram = _product(x, x.T, draw)
        factor = _rounded(b * gram + _rounded(c * _product(gram, gram, draw), draw), draw)
        x = _rounded(a * x + _product(factor, x, draw), draw)
    return x.T if tall else x


def _product(p: Matrix, q: Matrix, draw: np.random.Generator | None) -> Matrix:
    if draw is None:
        return p @ q
    exact = p @ q
    size = np.sqrt(exact**2 + p**2 @ q**2)
    return exact + U * np.sqrt((p.shape[1] + 1) / 3) * size * draw.standard_normal(exact.shape)


def _rounded(x: Matrix, draw: np.random.Generator | None) -> Matrix:
    """Results of two operations."""
    return x if draw is None else x * (1 + 2 * U * draw.uniform(-1, 1, x.shape))


def first(table: Sequence[Coefficients], steps: float) -> Sequence[Coefficients]:
    """Triples of so many steps: the last again where there are more."""
    return [table[min(step, len(table) - 1)] for step in range(int(steps))]


FUNCTIONS: Mapping[str, Callable[..., Bounded]] = {
    "newton_schulz": lambda x, radius, steps, a, b, c, eps: orthogonal(x, [(a, b, c)] * int(steps), 1.0, eps, radius),
    "quintic": lambda x, radius, steps, eps: orthogonal(x, first(QUINTIC, steps), 1.0, eps, radius),
    "polar_express": lambda x, radius, steps, eps: orthogonal(x, first(POLAR_EXPRESS, steps), 1.02, eps, radius),
}
"""Functions of matrices of the equation language: of a matrix, the radius of each element, and settings."""

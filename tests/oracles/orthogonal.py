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

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    exact = _iterated(x, table, safety, eps)
    runs = [list(_noise(generator, x.shape, len(table))) for _ in range(DRAWS)]
    noise = map(np.stack, zip(*runs, strict=True))
    moved = x + near * next(noise)
    apart = np.abs(_iterated(moved, table, safety, eps, noise) - exact).max(axis=0, initial=0)
    return Bounded(exact, MARGIN * apart if apart.max(initial=0) < LARGEST else np.full(x.shape, np.inf))


def _noise(generator: np.random.Generator, shape: tuple[int, ...], steps: int) -> Iterator[Matrix]:
    """Random numbers of a run, in the order in which it takes them."""
    product, size = (min(shape), min(shape)), (min(shape), max(shape))
    yield generator.choice([-1.0, 1.0], shape)
    yield generator.uniform(-1, 1, shape)
    for _ in range(steps):
        yield generator.standard_normal(product)
        yield generator.standard_normal(product)
        yield generator.uniform(-1, 1, product)
        yield generator.uniform(-1, 1, product)
        yield generator.standard_normal(size)
        yield generator.uniform(-1, 1, size)


def _iterated(
    x: Matrix, table: Sequence[Coefficients], safety: float, eps: float, noise: Iterator[Matrix] | None = None
) -> Matrix:
    """Steps on a matrix, or on a batch of them with noise for each."""
    norm = np.linalg.norm(x, axis=(-2, -1), keepdims=True)
    x = _rounded(x / (np.maximum(norm, eps) if safety == 1.0 else safety * norm + eps), noise)
    tall = x.shape[-2] > x.shape[-1]
    x = x.swapaxes(-2, -1) if tall else x
    for a, b, c in table:
        gram = _product(x, x.swapaxes(-2, -1), noise)
        factor = _rounded(b * gram + _rounded(c * _product(gram, gram, noise), noise), noise)
        x = _rounded(a * x + _product(factor, x, noise), noise)
    return x.swapaxes(-2, -1) if tall else x


def _product(p: Matrix, q: Matrix, noise: Iterator[Matrix] | None) -> Matrix:
    if noise is None:
        return p @ q
    exact = p @ q
    size = np.sqrt(exact**2 + p**2 @ q**2)
    return exact + U * np.sqrt((p.shape[-1] + 1) / 3) * size * next(noise)


def _rounded(x: Matrix, noise: Iterator[Matrix] | None) -> Matrix:
    """Results of two operations."""
    return x if noise is None else x * (1 + 2 * U * next(noise))


def first(table: Sequence[Coefficients], steps: float) -> Sequence[Coefficients]:
    """Triples of so many steps: the last again where there are more."""
    return [table[min(step, len(table) - 1)] for step in range(int(steps))]


FUNCTIONS: Mapping[str, Callable[..., Bounded]] = {
    "newton_schulz": lambda x, radius, steps, a, b, c, eps: orthogonal(x, [(a, b, c)] * int(steps), 1.0, eps, radius),
    "quintic": lambda x, radius, steps, eps: orthogonal(x, first(QUINTIC, steps), 1.0, eps, radius),
    "polar_express": lambda x, radius, steps, eps: orthogonal(x, first(POLAR_EXPRESS, steps), 1.02, eps, radius),
}
"""Functions of matrices of the equation language: of a matrix, the radius of each element, and settings."""

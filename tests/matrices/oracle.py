"""Muon in float64, with a bound on what float32 may make of its orthogonal matrices.

**The bound.** A step of the iteration is X' = aX + BX with A = XXᵀ and B = bA + cA². A product of matrices of inner
dimension k in float32, in whatever order its sums are taken, is wrong by gamma(k) = ku / (1 - ku) times the product of
their Frobenius norms at most (u = 2^-24); scaled and added terms add a few u. So much comes anew with each step
(`_local`). What was wrong before a step is carried on by the derivative of X -> X', an odd function p of singular
values: its norm is the largest of |p'(s)|, |p(s) - p(t)| / |s - t| and |p(s) + p(t)| / (s + t) over singular values s
and t; the last with s = t is p(s) / s, for what lies outside the rows or columns of X. That is the first order; MARGIN
is for the rest, which is of the size of the errors themselves, below a percent here. Everything is a Frobenius norm,
which no element's error exceeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Coefficients = tuple[float, float, float]
U = 2.0**-24
MARGIN = 1.01
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
    """A matrix, and the largest Frobenius norm of an error of float32."""

    value: Matrix
    error: float


def orthogonal(x: Matrix, table: Sequence[Coefficients], safety: float = 1.0, eps: float = 1e-7) -> Bounded:
    """Newton-Schulz steps of these coefficients, with the original divisor or that of Polar Express."""
    norm = float(np.linalg.norm(x))
    value = x / (max(norm, eps) if safety == 1.0 else safety * norm + eps)
    error = 8 * U * float(np.linalg.norm(value))  # momentum, its mix with the gradient, norm, quotient: some roundings
    for a, b, c in table:
        error = _steepest(value, (a, b, c)) * error + _local(value, (a, b, c))
        gram = value @ value.T
        value = a * value + (b * gram + c * gram @ gram) @ value
    return Bounded(value, MARGIN * error)


def _steepest(x: Matrix, coefficients: Coefficients) -> float:
    """The norm of the derivative of a step."""
    a, b, c = coefficients
    s = np.linalg.svd(x, compute_uv=False)
    p = a * s + b * s**3 + c * s**5
    slopes = np.abs(a + 3 * b * s**2 + 5 * c * s**4)
    apart = s[:, None] != s[None, :]
    differences = np.abs(np.subtract.outer(p, p))[apart] / np.abs(np.subtract.outer(s, s))[apart]
    over = np.add.outer(s, s)
    sums = np.abs(np.add.outer(p, p))[over > 0] / over[over > 0]
    return float(max(slopes.max(), sums.max(initial=0.0), differences.max(initial=0.0)))


def _local(x: Matrix, coefficients: Coefficients) -> float:
    """The error that one step adds."""
    a, b, c = map(abs, coefficients)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    size, largest = float(np.linalg.norm(x)), float(np.linalg.norm(x, 2))
    of_gram = _gamma(max(x.shape)) * size**2
    of_square = 2 * largest**2 * of_gram + _gamma(len(gram)) * float(np.linalg.norm(gram)) ** 2
    factor = b * float(np.linalg.norm(gram)) + c * float(np.linalg.norm(gram @ gram))
    of_factor = b * of_gram + c * of_square + 4 * U * factor
    return of_factor * largest + _gamma(len(gram)) * factor * size + 4 * U * (a + factor) * size


def _gamma(k: int) -> float:
    return k * U / (1 - k * U)


class Muon:
    """One matrix under Muon, in torch.optim.Muon's order of operations."""

    def __init__(self, param: Matrix, nesterov: bool = True, table: Sequence[Coefficients] = (ORIGINAL,) * 5,
                 safety: float = 1.0, scale: str = "original") -> None:  # fmt: skip
        self.param, self.buffer, self.error = param, np.zeros_like(param), 0.0
        self.nesterov, self.table, self.safety, self.scale = nesterov, table, safety, scale

    def step(self, grad: Matrix, lr: float = 1e-3, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        self.buffer = momentum * self.buffer + (1 - momentum) * grad
        direction = (1 - momentum) * grad + momentum * self.buffer if self.nesterov else self.buffer
        rows, cols = grad.shape
        scale = {
            "original": np.sqrt(max(1.0, rows / cols)),
            "match_rms_adamw": 0.2 * np.sqrt(max(rows, cols)),
            "spectral": np.sqrt(rows / cols),
        }[self.scale]
        found = orthogonal(direction, self.table, self.safety)
        self.param = self.param * (1 - lr * weight_decay) - lr * scale * found.value
        largest = float(np.abs(self.param).max())
        self.error += lr * scale * (found.error + 4 * U * float(np.linalg.norm(found.value))) + 6 * U * largest

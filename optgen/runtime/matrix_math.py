"""Functions of matrices of the equation language, in products of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Coefficients = tuple[float, float, float]
QUINTIC: Sequence[Coefficients] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
POLAR_EXPRESS: Sequence[Coefficients] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def newton_schulz(x: Tensor, steps: float, a: float, b: float, c: float, eps: float) -> Tensor:
    """The nearest orthogonal matrix to each of x, of shape (..., rows, cols): K. Jordan's iteration.

    Args:
        steps: Number of steps X = aX + (bXXᵀ + c(XXᵀ)²)X.
        eps: The least norm that x is divided by.
    """
    return _iterated(x, [(a, b, c)] * int(steps), _norm(x).clamp(min=eps))


def quintic(x: Tensor, steps: float, eps: float) -> Tensor:
    """The same with five triples of coefficients one after the other; further steps repeat the last."""
    return _iterated(x, _first(QUINTIC, int(steps)), _norm(x).clamp(min=eps))


def polar_express(x: Tensor, steps: float, eps: float) -> Tensor:
    """The same with the coefficients of Polar Express (Amsel et al. 2025, https://arxiv.org/abs/2505.16932)."""
    return _iterated(x, _first(POLAR_EXPRESS, int(steps)), 1.02 * _norm(x) + eps)


def _first(table: Sequence[Coefficients], steps: int) -> Sequence[Coefficients]:
    return [table[min(step, len(table) - 1)] for step in range(steps)]


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    return norm


def _iterated(x: Tensor, coefficients: Sequence[Coefficients], norm: Tensor) -> Tensor:
    """Newton-Schulz steps from x / norm; the smaller product of x with itself is taken.

    One of bfloat16 is no batch: the first of its products then takes a CPU two thirds of the time.
    """
    if not x.numel():
        return x
    tall = x.shape[-2] > x.shape[-1]
    shape, x = x.shape, (x / norm).reshape(-1, *x.shape[-2:])
    alone = len(x) == 1 and x.dtype is torch.bfloat16
    x, added = (x[0], torch.addmm) if alone else (x, torch.baddbmm)
    x = x.mT.contiguous() if tall else x
    for a, b, c in coefficients:
        gram = x @ x.mT
        factor = added(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        x = added(x, factor, x, beta=a)
    return (x.mT if tall else x).reshape(shape)


MATRIX_FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "newton_schulz": newton_schulz,
    "quintic": quintic,
    "polar_express": polar_express,
}
"""Functions of matrices by name: of x, of shape (..., rows, cols), and of settings."""

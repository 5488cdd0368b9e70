"""Rules on matrices in float64, from their papers and references: gradients in, parameters out.

A rule's decompositions are of the same matrices that the tested code decomposes in float32, and those are backward
stable: their results are exact for a gradient that differs by a few units of rounding. What such differences do to a
training is found by training again with gradients that differ so (`Followed.error`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Rule = Callable[[Array, Sequence[Array]], Array]
UNIT = 2.0**-24
DRAWS = 4


@dataclass(frozen=True)
class Followed:
    """The parameter after a training, and how far rounding in float32 may take it from there."""

    param: Array
    error: float


def followed(rule: Rule, param: Array, grads: Sequence[Array], seed: int = 0) -> Followed:
    """Train in float64, and again with gradients that differ by as much as rounding makes of them.

    A sum of n products in float32 is exact for terms that differ by n units at most, and a step has a few of them, of
    no more terms than the matrix has rows and columns.
    """
    generator = np.random.default_rng(seed)
    exact = rule(param, grads)
    unit = UNIT * 4 * sum(param.shape)
    error = 0.0
    for _ in range(DRAWS):
        near = [g + unit * np.abs(g).max(initial=0.0) * generator.uniform(-1, 1, g.shape) for g in grads]
        error = max(error, float(np.abs(rule(param, near) - exact).max(initial=0.0)))
    # The parameter itself is rounded once a step.
    return Followed(exact, error + len(grads) * UNIT * float(np.abs(exact).max(initial=0.0)))


def svd_basis(x: Array, rank: int) -> Array:
    """The leading right singular vectors, one a row, the greatest component of each positive."""
    rows = np.linalg.svd(x, full_matrices=False)[2][:rank]
    greatest = np.take_along_axis(rows, np.abs(rows).argmax(1, keepdims=True), 1)
    return rows * np.where(greatest < 0, -1.0, 1.0)


def galore(
    *,
    rank: int,
    gap: int,
    scale: float = 0.25,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
) -> Rule:
    """GaLore's AdamW, with the basis on the side of the longer dimension's other."""
    beta1, beta2 = betas

    def train(param: Array, grads: Sequence[Array]) -> Array:
        p, m, v = param.copy(), 0.0, 0.0
        wide = p.shape[0] < p.shape[1]
        basis = np.zeros((0, 0))
        for t, g in enumerate(grads, 1):
            x = g.T if wide else g
            if (t - 1) % gap == 0:
                basis = svd_basis(x, rank)
            h = x @ basis.T
            m, v = beta1 * m + (1 - beta1) * h, beta2 * v + (1 - beta2) * h**2
            back = (m / (np.sqrt(v) + eps)) @ basis
            p = p - lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * scale * (back.T if wide else back)
            p = p - lr * weight_decay * p
        return p

    return train

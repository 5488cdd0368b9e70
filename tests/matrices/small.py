"""Rules on matrices in float64, from their papers and references: gradients in, parameters out.

A rule's decompositions are of the same matrices that the tested code decomposes in float32, and those are backward
stable: their results are exact for a gradient that differs by a few units of rounding. What such differences do to a
training is found by training again with gradients that differ so (`followed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from oracles.philox import words

Array = NDArray[np.float64]
Rule = Callable[[Array, Sequence[Array], int], Array]
"""Trains a parameter, at this position among those of the optimizer, on gradients."""
UNIT = 2.0**-24
DRAWS = 4


@dataclass(frozen=True)
class Followed:
    """The parameter after a training, and how far rounding in float32 may take it from there."""

    param: Array
    error: float


def followed(rule: Rule, param: Array, grads: Sequence[Array], position: int = 0) -> Followed:
    """Train in float64, and again with gradients that differ by as much as rounding makes of them.

    A sum of n products in float32 is exact for terms that differ by n units at most, and a step has a few of them, of
    no more terms than the matrix has rows and columns.
    """
    generator = np.random.default_rng(0)
    exact = rule(param, grads, position)
    unit = UNIT * 4 * sum(param.shape)
    error = 0.0
    for _ in range(DRAWS):
        near = [g + unit * np.abs(g).max(initial=0.0) * generator.uniform(-1, 1, g.shape) for g in grads]
        error = max(error, float(np.abs(rule(param, near, position) - exact).max(initial=0.0)))
    # The parameter itself is rounded once a step.
    return Followed(exact, error + len(grads) * UNIT * float(np.abs(exact).max(initial=0.0)))


def svd_basis(x: Array, rank: int) -> Array:
    """The leading right singular vectors, one a row, the greatest component of each positive."""
    rows = np.linalg.svd(x, full_matrices=False)[2][:rank]
    greatest = np.take_along_axis(rows, np.abs(rows).argmax(1, keepdims=True), 1)
    return np.asarray(rows * np.where(greatest < 0, -1.0, 1.0))


def normal(shape: tuple[int, int], position: int, draw: int) -> Array:
    """Normal numbers of a parameter's draw with the seed 0, by Box and Muller."""
    pairs = words(math.prod(shape), 0, position, 1, draw).astype(np.float64)
    length = np.sqrt(-2 * np.log((pairs[:, 0] + 1) * 2.0**-32))
    return np.asarray((length * np.cos(pairs[:, 1] * (2 * math.pi * 2.0**-32))).astype(np.float32), float).reshape(
        shape
    )


def is_turned(shape: tuple[int, ...], proj_type: str) -> bool:
    """Check whether a projection acts on the rows."""
    rows, cols = shape
    return {"std": rows < cols, "reverse_std": rows >= cols, "right": False, "left": True}[proj_type]


def galore(
    *,
    rank: int,
    gap: int,
    scale: float = 0.25,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    corrected_eps: bool = False,
    proj_type: str = "std",
) -> Rule:
    """GaLore's AdamW."""
    beta1, beta2 = betas

    def train(param: Array, grads: Sequence[Array], position: int) -> Array:
        p, wide, basis = param.copy(), is_turned(param.shape, proj_type), np.zeros((0, 0))
        m = v = np.zeros(1)
        for t, g in enumerate(grads, 1):
            x = g.T if wide else g
            if (t - 1) % gap == 0:
                basis = svd_basis(x, rank)
            h = x @ basis.T
            m, v = beta1 * m + (1 - beta1) * h, beta2 * v + (1 - beta2) * h**2
            c1, c2 = 1 - beta1**t, 1 - beta2**t
            n = (
                m / c1 / (np.sqrt(v) / np.sqrt(c2) + eps)
                if corrected_eps
                else np.sqrt(c2) / c1 * m / (np.sqrt(v) + eps)
            )
            back = n @ basis
            p = p - lr * scale * (back.T if wide else back)
            p = p - lr * weight_decay * p
        return p

    return train


def galore_adafactor(
    *,
    rank: int,
    gap: int,
    lr: float | None = None,
    scale: float = 0.25,
    beta1: float | None = None,
    weight_decay: float = 0.0,
    scale_parameter: bool = True,
    proj_type: str = "std",
) -> Rule:
    """GaLore's Adafactor."""

    def rms(x: Array) -> float:
        return float(np.sqrt(np.mean(x**2)))

    def train(param: Array, grads: Sequence[Array], position: int) -> Array:
        p, basis = param.copy(), np.zeros((0, 0))
        average, row, col = np.zeros(1), np.zeros(1), np.zeros(1)
        for t, g in enumerate(grads, 1):
            left = is_turned(p.shape, proj_type)
            if (t - 1) % gap == 0:
                basis = svd_basis(g.T if left else g, rank)
            h = basis @ g if left else g @ basis.T
            rate = (min(1e-2, 1 / math.sqrt(t)) if lr is None else lr) * (max(1e-3, rms(p)) if scale_parameter else 1)
            decay, square = 1 - t**-0.8, h**2 + 1e-30
            row, col = decay * row + (1 - decay) * square.mean(1), decay * col + (1 - decay) * square.mean(0)
            u = h / np.sqrt(row / row.mean())[:, None] / np.sqrt(col)
            u = rate * u / max(1, rms(u))
            if beta1 is not None:
                u = average = beta1 * average + (1 - beta1) * u
            p = p - weight_decay * rate * p
            p = p - scale * (basis.T @ u if left else u @ basis)
        return p

    return train


def apollo(
    *,
    rank: int,
    gap: int,
    scale: float = 1.0,
    lr: float = 1e-3,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    random: bool = True,
    channel: bool = True,
    front: bool = False,
    limited: bool = True,
    proj_type: str = "std",
) -> Rule:
    """APOLLO's AdamW; a limit begins with the first gradient that is not zero."""
    beta1, beta2 = 0.9, 0.999

    def train(param: Array, grads: Sequence[Array], position: int) -> Array:
        p, wide, basis, last = param.copy(), is_turned(param.shape, proj_type), np.zeros((0, 0)), 0.0
        m = v = np.zeros(1)
        for t, g in enumerate(grads, 1):
            x = g.T if wide else g
            own = min(rank, *x.shape)
            if (t - 1) % gap == 0:
                number = (t - 1) // gap
                drawn = normal((own, x.shape[1]), position, number) / math.sqrt(own) if random else None
                basis = svd_basis(x, rank) if drawn is None else drawn
            h = x @ basis.T
            m, v = beta1 * m + (1 - beta1) * h, beta2 * v + (1 - beta2) * h**2
            n, axis = m / (np.sqrt(v) + eps), 1 if channel else None
            f = np.linalg.norm(n, axis=axis, keepdims=True) / (np.linalg.norm(h, axis=axis, keepdims=True) + 1e-8)
            u = x * f * (math.sqrt(scale) if front else 1)
            if limited:
                size = float(np.linalg.norm(u))
                u = u / (max(size / (last + 1e-8), 1.01) / 1.01) if last > 0 else u
                last = float(np.linalg.norm(u))
            u = u * (1 if front else math.sqrt(scale))
            p = p - lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * (u.T if wide else u)
            p = p - lr * weight_decay * p
        return p

    return train


def soap(
    *, frequency: int, lr: float = 3e-3, beta: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.01
) -> Rule:
    """SOAP. The original keeps the average of gradients rotated, and rotates it again; this is the same."""

    def train(param: Array, grads: Sequence[Array], position: int) -> Array:
        p, m, v = param.copy(), np.zeros(param.shape), np.zeros(param.shape)
        factors = [np.zeros((side, side)) for side in param.shape]
        bases = list(factors)
        for k, g in enumerate(grads):
            unfolded = (g, g.T)
            if k:
                m = beta * m + (1 - beta) * g
                v = beta * v + (1 - beta) * (bases[0].T @ g @ bases[1]) ** 2
                u = bases[0] @ ((bases[0].T @ m @ bases[1]) / (np.sqrt(v) + eps)) @ bases[1].T
                p = p - lr * math.sqrt(1 - beta**k) / (1 - beta**k) * u
                p = p - lr * weight_decay * p
            factors = [beta * f + (1 - beta) * x @ x.T for f, x in zip(factors, unfolded, strict=True)]
            if k == 0:
                bases = [np.linalg.eigh(f)[1][:, ::-1] for f in factors]
            elif k % frequency == 0:
                for side, (f, q) in enumerate(zip(factors, bases, strict=True)):
                    order = np.argsort(-np.diag(q.T @ f @ q), kind="stable")
                    v = np.take(v, order, axis=side)
                    bases[side] = np.linalg.qr(f @ q[:, order])[0]
        return p

    return train


def shampoo(
    *,
    frequency: int = 1,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 1.0),
    eps: float = 1e-12,
    weight_decay: float = 0.0,
    grafting: str = "adam",
    corrected: bool = True,
) -> Rule:
    """Distributed Shampoo of one block, whose dimensions are not merged."""
    beta1, beta2 = betas

    def root(x: Array) -> Array:
        values, vectors = np.linalg.eigh(x + eps * np.eye(len(x)))
        values = values + max(0.0, eps - values.min())
        return np.asarray((vectors * values**-0.25) @ vectors.T)

    def train(param: Array, grads: Sequence[Array], position: int) -> Array:
        p, m, v = param.copy(), np.zeros(param.shape), np.zeros(param.shape)
        factors = [np.zeros((side, side)) for side in param.shape]
        roots = [np.eye(side) for side in param.shape]
        for t, g in enumerate(grads, 1):
            share = 1 if beta2 == 1 else 1 - beta2
            factors = [beta2 * f + share * x @ x.T for f, x in zip(factors, (g, g.T), strict=True)]
            c1 = 1 - beta1**t if corrected else 1.0
            c2 = 1 - beta2**t if corrected and beta2 < 1 else 1.0
            if t % frequency == 0:
                roots = [root(f / c2) for f in factors]
            m, v = beta1 * m + (1 - beta1) * g, 0.999 * v + 0.001 * g**2
            d = m / c1
            u = roots[0] @ d @ roots[1]
            if grafting == "adam":
                d = d / (np.sqrt(v / (1 - 0.999**t if corrected else 1.0)) + 1e-8)
            if grafting != "none":
                u = u * np.linalg.norm(d) / (np.linalg.norm(u) + 1e-16)
            u = u if t >= frequency else d
            p = p - lr * (u + weight_decay * p)
        return p

    return train


def dion(*, rank: int, lr: float = 0.01, mu: float = 0.95, weight_decay: float = 0.01, eps: float = 1e-8) -> Rule:
    """Dion, with one power iteration a step."""

    def train(param: Array, grads: Sequence[Array], position: int) -> Array:
        p, wide = param.copy(), param.shape[0] < param.shape[1]
        momentum = np.zeros(param.shape[::-1] if wide else param.shape)
        right = normal((momentum.shape[1], min(rank, *param.shape)), position, 0)
        for g in grads:
            momentum = momentum + (g.T if wide else g)
            left = np.zeros((len(momentum), right.shape[1]))
            if momentum.any():
                left, upper = np.linalg.qr(momentum @ right)
                left = left * np.where(np.diag(upper) < 0, -1.0, 1.0)
                product = momentum.T @ left
                momentum = momentum - (1 - mu) * left @ product.T
                right = product / (np.linalg.norm(product, axis=0) + eps)
            o = left @ right.T
            p = p * (1 - lr * weight_decay)
            p = p - lr * math.sqrt(p.shape[0] / p.shape[1]) * (o.T if wide else o)
        return p

    return train

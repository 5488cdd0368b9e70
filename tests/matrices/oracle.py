"""Muon in float64, with a bound on what float32 may make of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from oracles.orthogonal import ORIGINAL, POLAR_EXPRESS, QUINTIC, Coefficients, Matrix, U, orthogonal

__all__ = ["ORIGINAL", "POLAR_EXPRESS", "QUINTIC", "MuonOracle", "orthogonal"]


class MuonOracle:
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

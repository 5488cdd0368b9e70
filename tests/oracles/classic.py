"""The catalogue's rules: Adam and AdamW, LAMB, LARS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from oracles.ball import Ball, maximum, norm, sqrt, where
from oracles.base import Oracle


class _Moments(Oracle):
    """The two averages that Adam and LAMB share."""

    unsigned = frozenset({"exp_avg_sq", "max_exp_avg_sq"})
    quantized = frozenset({"exp_avg", "exp_avg_sq"})

    betas: tuple[float, float]
    eps: float
    amsgrad: bool

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * self.amsgrad
        return {name: np.zeros(param.shape) for name in names}

    def elementwise(self) -> frozenset[str]:
        return self.quantized | {"max_exp_avg_sq"}

    def averages(self, grad: Ball, s: dict[str, Ball]) -> tuple[Ball, Ball]:
        beta1, beta2 = self.betas
        s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * grad
        s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * grad * grad
        if not self.amsgrad:
            return s["exp_avg"], s["exp_avg_sq"]
        s["max_exp_avg_sq"] = maximum(s["max_exp_avg_sq"], s["exp_avg_sq"])
        return s["exp_avg"], s["max_exp_avg_sq"]

    def corrected(self, t: int, first: Ball, second: Ball) -> Ball:
        beta1, beta2 = self.betas
        return first / (1 - beta1**t) / (sqrt(second) / (1 - beta2**t) ** 0.5 + self.eps)


class AdamOracle(_Moments):
    """Adam (decoupled=False) and AdamW, optionally with amsgrad; eps after bias correction."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "decoupled": True,
    }
    decoupled: bool

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        if not self.decoupled and self.weight_decay:
            grad = grad + self.weight_decay * param
        return self.corrected(t, *self.averages(grad, s))

    def apply(self, param: Ball, update: Ball) -> Ball:
        if self.decoupled and self.weight_decay:
            param = param * (1 - self.lr * self.weight_decay)
        return param - self.lr * update


class LambOracle(_Moments):
    """LAMB: Adam's direction plus decay, scaled by ||param|| / ||update||. trust_ratio="none" is Adam with clipping."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "amsgrad": False,
        "bias_correction": True,
        "adam_w_mode": True,
    }
    scaling = ("lamb", 1.0)
    bias_correction: bool
    adam_w_mode: bool

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        if not self.adam_w_mode and self.weight_decay:
            grad = grad + self.weight_decay * param
        first, second = self.averages(grad, s)
        update = self.corrected(t, first, second) if self.bias_correction else first / (sqrt(second) + self.eps)
        if self.adam_w_mode and self.trust_ratio == "lamb" and self.weight_decay:
            update = update + self.weight_decay * param
        return update

    def apply(self, param: Ball, update: Ball) -> Ball:
        if self.adam_w_mode and self.trust_ratio == "none" and self.weight_decay:
            param = param * (1 - self.lr * self.weight_decay)
        return param - self.lr * update


class LarsOracle(Oracle):
    """LARS: momentum clipped to a share of ||param|| (max_unorm), or the paper's local rate (trust_ratio="lars")."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 0.01,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "trust_coefficient": 1e-3,
    }
    scaling = ("none", 0.02)
    quantized = frozenset({"momentum_buffer"})

    momentum: float
    dampening: float
    nesterov: bool
    trust_coefficient: float

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        return {"momentum_buffer": np.zeros(param.shape)} if self.momentum else {}

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        d = grad + self.weight_decay * param
        if self.trust_ratio == "lars":
            param_norm, grad_norm = norm(param), norm(grad)
            rate = self.trust_coefficient * param_norm / (grad_norm + self.weight_decay * param_norm)
            d = where((param_norm.mid > 0) & (grad_norm.mid > 0), rate, 1.0) * d
        if not self.momentum:
            return d
        buffer = d if t == 1 else self.momentum * s["momentum_buffer"] + (1 - self.dampening) * d
        s["momentum_buffer"] = buffer
        return d + self.momentum * buffer if self.nesterov else buffer

    def scaled(self, param: Ball, update: Ball) -> Ball:
        return update if self.trust_ratio == "lars" else super().scaled(param, update)

"""The rules behind tests/specs: other shapes of state, schedules, group and global values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from oracles.ball import Ball, maximum, mean, minimum, norm, rms, rsqrt, sqrt, total
from oracles.base import Oracle


def zeros(shape: tuple[int, ...], *names: str) -> dict[str, object]:
    return {name: np.zeros(shape) for name in names}


class AdEMAMixOracle(Oracle):
    """Pagliardini et al. 2024: a second, slow average, mixed in with weight alpha; both on warm-up schedules."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999, 0.9999),
        "alpha": 5.0,
        "t_alpha": None,
        "t_beta3": None,
        "eps": 1e-8,
        "weight_decay": 1e-2,
    }
    quantized = frozenset({"exp_avg", "exp_avg_slow", "exp_avg_sq"})
    unsigned = frozenset({"exp_avg_sq"})

    betas: tuple[float, float, float]
    alpha: float
    t_alpha: float | None
    t_beta3: float | None
    eps: float

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        return zeros(param.shape, "exp_avg", "exp_avg_slow", "exp_avg_sq")

    def schedule(self, t: int) -> tuple[float, float]:
        """alpha and beta3 at step t; beta3 grows so that its half-life grows linearly in time."""
        beta1, _, beta3 = self.betas
        alpha = self.alpha if self.t_alpha is None else min(t * self.alpha / self.t_alpha, self.alpha)
        if self.t_beta3 is None or t >= self.t_beta3:
            return alpha, beta3
        share = t / self.t_beta3
        inverse = (1 - share) / math.log(beta1) + share / math.log(beta3)
        return alpha, min(math.exp(1 / inverse), beta3)

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        beta1, beta2, _ = self.betas
        alpha, beta3 = self.schedule(t)
        s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * grad
        s["exp_avg_slow"] = beta3 * s["exp_avg_slow"] + (1 - beta3) * grad
        s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * grad * grad
        denom = sqrt(s["exp_avg_sq"]) / (1 - beta2**t) ** 0.5 + self.eps
        return (s["exp_avg"] / (1 - beta1**t) + alpha * s["exp_avg_slow"]) / denom

    def apply(self, param: Ball, update: Ball) -> Ball:
        return param * (1 - self.lr * self.weight_decay) - self.lr * update


class StableAdamWOracle(Oracle):
    """Wortsman et al. 2023: AdamW whose rate falls where gradients outgrow their average; debiased betas."""

    defaults: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 1e-2}
    quantized = frozenset({"exp_avg", "exp_avg_sq"})
    unsigned = frozenset({"exp_avg_sq"})

    betas: tuple[float, float]
    eps: float

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        return zeros(param.shape, "exp_avg", "exp_avg_sq")

    def advance(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        b1, b2 = (beta * (1 - beta ** (t - 1)) / (1 - beta**t) for beta in self.betas)
        s["exp_avg"] = s["exp_avg"] + (1 - b1) * (grad - s["exp_avg"])
        s["exp_avg_sq"] = b2 * s["exp_avg_sq"] + (1 - b2) * grad * grad
        ratio = sqrt(mean(grad * grad / maximum(s["exp_avg_sq"], self.eps**2)))
        rate = self.lr / maximum(1.0, ratio)
        return param * (1 - rate * self.weight_decay) - rate * (s["exp_avg"] / (sqrt(s["exp_avg_sq"]) + self.eps))


class AdafactorOracle(Oracle):
    """Shazeer and Stern 2018, as transformers has it: factored second moment, clipped update, relative steps."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": None,
        "eps": (1e-30, 1e-3),
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
        "beta1": None,
        "weight_decay": 0.0,
        "scale_parameter": True,
        "relative_step": True,
        "warmup_init": False,
    }
    quantized = frozenset({"exp_avg", "exp_avg_sq"})
    unsigned = frozenset({"exp_avg_sq"})

    eps: tuple[float, float]
    clip_threshold: float
    decay_rate: float
    beta1: float | None
    scale_parameter: bool
    relative_step: bool
    warmup_init: bool

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        shape = param.shape
        states = zeros(shape, "exp_avg") if self.beta1 is not None else {}
        if len(shape) < 2:
            return states | zeros(shape, "exp_avg_sq")
        return states | zeros(shape[:-1], "exp_avg_sq_row") | zeros(shape[:-2] + shape[-1:], "exp_avg_sq_col")

    def advance(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        eps1, eps2 = self.eps
        rate = min(1e-6 * t if self.warmup_init else 1e-2, t**-0.5) if self.relative_step else self.lr
        scale = rate * maximum(eps2, rms(param)) if self.scale_parameter else rate
        beta2 = 1 - t**self.decay_rate
        squared = grad * grad + eps1
        u = grad * self.factor(beta2, squared, s)
        u = u / maximum(1.0, rms(u) / self.clip_threshold)
        u = scale * u
        if self.beta1 is not None:
            u = s["exp_avg"] = self.beta1 * s["exp_avg"] + (1 - self.beta1) * u
        return param - self.weight_decay * scale * param - u

    @staticmethod
    def factor(beta2: float, squared: Ball, s: dict[str, Ball]) -> Ball:
        """1 over the root of the second moment, from its rows and columns where there are any."""
        if len(squared.shape) < 2:
            s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * squared
            return rsqrt(s["exp_avg_sq"])
        s["exp_avg_sq_row"] = beta2 * s["exp_avg_sq_row"] + (1 - beta2) * mean(squared, -1)
        s["exp_avg_sq_col"] = beta2 * s["exp_avg_sq_col"] + (1 - beta2) * mean(squared, -2)
        row, col = s["exp_avg_sq_row"], s["exp_avg_sq_col"]
        return rsqrt(row / mean(row, -1, keepdims=True))[..., :, None] * rsqrt(col)[..., None, :]


class ScheduleFreeAdamWOracle(Oracle):
    """Defazio et al. 2024: gradients at y (held by the parameter in training), iterates z, averages x."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 2.5e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "r": 0.0,
        "weight_lr_power": 2.0,
    }
    quantized = frozenset({"exp_avg_sq"})
    unsigned = frozenset({"exp_avg_sq"})

    betas: tuple[float, float]
    eps: float
    warmup_steps: int
    r: float
    weight_lr_power: float

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.group = {"k": 0, "weight_sum": 0.0, "lr_max": -1.0}
        self.rate, self.share = 0.0, 0.0

    def elementwise(self) -> frozenset[str]:
        return frozenset({"exp_avg_sq", "z"})

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        return zeros(param.shape, "exp_avg_sq") | {"z": param.mid}

    def before(self, grads: Mapping[int, Ball]) -> None:
        group = self.group
        group["k"] += 1
        self.rate = self.lr * (min(1.0, group["k"] / self.warmup_steps) if self.warmup_steps else 1.0)
        group["lr_max"] = max(group["lr_max"], self.rate)
        weight = group["k"] ** self.r * group["lr_max"] ** self.weight_lr_power
        group["weight_sum"] += weight
        self.share = weight / group["weight_sum"] if group["weight_sum"] else 0.0

    def advance(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        beta1, beta2 = self.betas
        s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * grad * grad
        u = grad / (sqrt(s["exp_avg_sq"]) / (1 - beta2 ** self.group["k"]) ** 0.5 + self.eps)
        u = u + self.weight_decay * param
        y = (1 - self.share) * param + self.share * s["z"]
        y = y + self.rate * (beta1 * (1 - self.share) - 1) * u
        s["z"] = s["z"] - self.rate * u
        return y

    def eval(self) -> None:
        """y -> x."""
        self._move(1 - 1 / self.betas[0])

    def train(self) -> None:
        """x -> y."""
        self._move(1 - self.betas[0])

    def _move(self, share: float) -> None:
        for i, states in enumerate(self.state_balls):
            if states:
                self.balls[i] = self.stored_param(self.balls[i] + share * (states["z"] - self.balls[i]))


class NovoGradOracle(Oracle):
    """Ginsburg et al. 2019: the second moment is one number a tensor, the first averages normalised gradients."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-2,
        "betas": (0.95, 0.98),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "grad_averaging": False,
    }
    quantized = frozenset({"exp_avg"})

    betas: tuple[float, float]
    eps: float
    grad_averaging: bool

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        return zeros(param.shape, "exp_avg") | {"exp_avg_sq": 0.0}

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        beta1, beta2 = self.betas
        squared = norm(grad) * norm(grad)
        s["exp_avg_sq"] = squared if t == 1 else beta2 * s["exp_avg_sq"] + (1 - beta2) * squared
        d = grad / (sqrt(s["exp_avg_sq"]) + self.eps) + self.weight_decay * param
        s["exp_avg"] = beta1 * s["exp_avg"] + ((1 - beta1) * d if self.grad_averaging else d)
        return s["exp_avg"]


class RAdamOracle(Oracle):
    """Liu et al. 2020: Adam whose adaptive part starts once the variance of its rate is tractable."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "decoupled_weight_decay": False,
    }
    quantized = frozenset({"exp_avg", "exp_avg_sq"})
    unsigned = frozenset({"exp_avg_sq"})

    betas: tuple[float, float]
    eps: float
    decoupled_weight_decay: bool

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        return zeros(param.shape, "exp_avg", "exp_avg_sq")

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        beta1, beta2 = self.betas
        if not self.decoupled_weight_decay:
            grad = grad + self.weight_decay * param
        s["exp_avg"] = beta1 * s["exp_avg"] + (1 - beta1) * grad
        s["exp_avg_sq"] = beta2 * s["exp_avg_sq"] + (1 - beta2) * grad * grad
        corrected = s["exp_avg"] / (1 - beta1**t)
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / (1 - beta2**t)
        if length <= 5:
            return corrected
        variance = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return corrected * (variance**0.5 * (1 - beta2**t) ** 0.5) / (sqrt(s["exp_avg_sq"]) + self.eps)

    def apply(self, param: Ball, update: Ball) -> Ball:
        if self.decoupled_weight_decay:
            param = param * (1 - self.lr * self.weight_decay)
        return param - self.lr * update


class ProdigyOracle(Oracle):
    """Mishchenko and Defazio 2023: Adam that estimates its rate, d, from sums over all parameters."""

    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1.0,
        "betas": (0.9, 0.999),
        "beta3": None,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "d0": 1e-6,
        "d_coef": 1.0,
        "growth_rate": None,
        "decouple": True,
        "use_bias_correction": False,
        "safeguard_warmup": False,
    }
    quantized = frozenset({"exp_avg", "exp_avg_sq", "s"})
    unsigned = frozenset({"exp_avg_sq"})

    betas: tuple[float, float]
    beta3: float | None
    eps: float
    d0: float
    d_coef: float
    growth_rate: float | None
    decouple: bool
    use_bias_correction: bool
    safeguard_warmup: bool

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.group = {"d": Ball(self.d0), "d_max": Ball(self.d0), "d_numerator": Ball(0.0)}
        self.fresh: dict[int, dict[str, Ball]] = {}
        self.dlr: dict[int, Ball] = {}

    def elementwise(self) -> frozenset[str]:
        return self.quantized | {"p0"}

    def new_states(self, param: Ball, grad: Ball) -> dict[str, object]:
        return zeros(param.shape, "exp_avg", "exp_avg_sq", "s") | {"p0": param.mid}

    def before(self, grads: Mapping[int, Ball]) -> None:
        """All states of the step and the two sums that d is estimated from."""
        beta1, beta2 = self.betas
        beta3 = beta2**0.5 if self.beta3 is None else self.beta3
        d = self.group["d"]
        products, magnitudes = Ball(0.0), Ball(0.0)
        for i, raw in grads.items():
            param, old, t = self.balls[i], self.state_balls[i], self.steps[i]
            grad = raw if self.decouple or not self.weight_decay else raw + self.weight_decay * param
            correction = (1 - beta2**t) ** 0.5 / (1 - beta1**t) if self.use_bias_correction else 1.0
            dlr = self.dlr[i] = d * (self.lr * correction)
            pull = d if self.safeguard_warmup else dlr
            self.fresh[i] = {
                "exp_avg": beta1 * old["exp_avg"] + d * (1 - beta1) * grad,
                "exp_avg_sq": beta2 * old["exp_avg_sq"] + d * d * (1 - beta2) * grad * grad,
                "s": beta3 * old["s"] + d / self.d0 * pull * grad,
            }
            products = products + d / self.d0 * dlr * total(grad * (old["p0"] - param))
            magnitudes = magnitudes + total(abs(self.fresh[i]["s"]))
        if magnitudes.mid > 0:
            self.estimate(beta3 * self.group["d_numerator"] + products, magnitudes)

    def estimate(self, numerator: Ball, denominator: Ball) -> None:
        group = self.group
        guess = self.d_coef * numerator / denominator
        d = group["d"]
        if d.mid == self.d0:
            d = maximum(d, guess)
        largest = maximum(group["d_max"], guess)
        if self.growth_rate is not None:
            largest_step = d * self.growth_rate
            d = minimum(largest, largest_step)
        else:
            d = largest
        group.update(d=d, d_max=largest, d_numerator=numerator)

    def advance(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        s.update(self.fresh[index])
        dlr = self.dlr[index]
        moved = param * (1 - self.weight_decay * dlr) if self.decouple and self.weight_decay else param
        return moved - dlr * (s["exp_avg"] / (sqrt(s["exp_avg_sq"]) + self.group["d"] * self.eps))

"""Shared stages around every rule: gradient options, update clipping, trust ratio, masks, storage.

An oracle keeps float64 balls of parameters and states. `step(grads)` advances all parameters whose gradient is not
None. `.params` and `.states` are float64 arrays as they read back from storage, `.balls` and `.state_balls` carry the
radii, `.codes` holds the 8-bit states. `adopt` takes over what an optimizer holds, so that one step can be judged
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from oracles.ball import Array, Ball, minimum, norm, ordered, positive, sqrt, where
from oracles.rounding import ROUNDINGS, Rounding
from oracles.storage import WHOLE, Quantized, store

WINDOW = 100


def array(tensor: Any) -> Array:
    """A tensor's (or array's) values in float64."""
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().cpu().to(torch.float64).numpy().copy()
    return np.array(tensor, dtype=np.float64)


class Oracle:
    """Base of the float64 rules. A rule gives `new_states`, and `direction` and `apply` or the whole of `advance`.

    `param_dtype` is a torch dtype or None (parameters kept in float64); `codec` is None (states kept in float64),
    "fp32", "int8" or "int8_tensor". The other keywords are the optimizer's own; hyperparameters become attributes.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    scaling: ClassVar[tuple[str, float]] = ("none", 0.0)  # the rule's trust_ratio and max_unorm
    unsigned: ClassVar[frozenset[str]] = frozenset()
    quantized: ClassVar[frozenset[str]] = frozenset()  # states of the parameter's shape that 8-bit storage takes

    lr: float
    weight_decay: float

    def __init__(
        self,
        params: Sequence[Any],
        *,
        param_dtype: torch.dtype | None = None,
        codec: str | None = None,
        min_8bit_size: int = 4096,
        percentile_clipping: float = 100,
        max_unorm: float | None = None,
        trust_ratio: str | None = None,
        skip_zeros: bool = False,
        maximize: bool = False,
        nonfinite: str = "propagate",
        **settings: Any,
    ) -> None:
        unknown = settings.keys() - self.defaults.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        for name, value in {**self.defaults, **settings}.items():
            setattr(self, name, value)
        self.param_dtype, self.codec, self.min_8bit_size = param_dtype, codec, min_8bit_size
        self.percentile_clipping = percentile_clipping
        self.trust_ratio = self.scaling[0] if trust_ratio is None else trust_ratio
        self.max_unorm = self.scaling[1] if max_unorm is None else max_unorm
        self.skip_zeros, self.maximize, self.nonfinite = skip_zeros, maximize, nonfinite
        self.balls = [Ball(array(param)) for param in params]
        self.state_balls: list[dict[str, Ball]] = [{} for _ in params]
        self.codes: list[dict[str, Quantized]] = [{} for _ in params]
        self.steps = [0] * len(params)
        self.filled: set[int] = set()  # parameters whose window of norms has a value

    @property
    def tensors(self) -> list[Ball]:
        """Values of all parameters' tensors."""
        return self.balls

    def rounding(self, index: int) -> Rounding:
        return ROUNDINGS["nearest"]

    @property
    def params(self) -> list[Array]:
        return [ball.mid for ball in self.balls]

    @property
    def states(self) -> list[dict[str, Array]]:
        return [{name: ball.mid for name, ball in states.items()} for states in self.state_balls]

    def adopt(self, index: int, param: Any, states: Mapping[str, Any], kept: None = None) -> None:
        """Go on from exactly these values (or balls); states not named stay as they are."""
        self.balls[index] = Ball(array(param))
        for name, value in states.items():
            self.state_balls[index][name] = value if isinstance(value, Ball) else Ball(array(value))

    # what a rule writes

    def new_states(self, param: Ball, grad: Ball) -> dict[str, Any]:
        """States at a parameter's first step."""
        raise NotImplementedError

    def before(self, grads: Mapping[int, Ball]) -> None:
        """Once a step, before any parameter is advanced: group and global values."""

    def direction(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        """The update's direction; new states are assigned in `s`."""
        raise NotImplementedError

    def apply(self, param: Ball, update: Ball) -> Ball:
        """The new parameter."""
        return param - self.lr * update

    def advance(self, index: int, t: int, param: Ball, grad: Ball, s: dict[str, Ball]) -> Ball:
        """The new parameter; by default direction, update stage, apply."""
        update = self.direction(index, t, param, grad, s)
        return self.apply(param, self.scaled(param, update))

    # the stages that all rules share

    def step(self, grads: Sequence[Any]) -> None:
        """One step with these gradients; None leaves a parameter out."""
        with np.errstate(all="ignore"):
            given = {i: Ball(array(grad)) for i, grad in enumerate(grads) if grad is not None}
            ready, active = {}, {}
            for i, grad in given.items():
                self.steps[i] += 1
                ready[i], active[i] = self.gradient(i, grad)
                if self.steps[i] == 1:
                    fresh = self.new_states(self.balls[i], ready[i])
                    self.state_balls[i] |= {name: Ball(array(value)) for name, value in fresh.items()}
            self.before(ready)
            for i, grad in ready.items():
                self.commit(i, grad, active[i])

    def gradient(self, index: int, grad: Ball) -> tuple[Ball, Array]:
        """maximize, skip_zeros, nonfinite, percentile_clipping; which elements take part."""
        if self.maximize:
            grad = -grad
        active = np.ones(grad.shape, dtype=bool)
        if self.skip_zeros:
            active &= grad.mid != 0
        if self.nonfinite == "skip":
            finite = np.isfinite(grad.mid)
            active &= finite
            grad = where(finite, grad, 0.0)
        if self.percentile_clipping < 100:
            grad = grad * self.clipping(index, norm(grad))
        return grad, active

    def clipping(self, index: int, gnorm: Ball) -> Ball:
        """min(1, percentile of the last 100 norms / this norm)."""
        states = self.state_balls[index]
        window = states.get("gnorm_vec", Ball(np.zeros(WINDOW)))
        squared = gnorm * gnorm
        if np.isfinite(squared.mid):
            slots = np.arange(WINDOW)
            here = slots == self.steps[index] % WINDOW if index in self.filled else slots >= 0
            self.filled.add(index)
            window = store(where(here, squared, window), torch.float32)
        states["gnorm_vec"] = window
        clip = sqrt(ordered(window, min(int(self.percentile_clipping / 100 * WINDOW), WINDOW - 1)))
        over, unsure = positive(gnorm - clip)
        return where(over, clip / gnorm, 1.0, unsure)

    def scaled(self, param: Ball, update: Ball) -> Ball:
        """trust_ratio="lamb", or max_unorm; 1 where either norm is 0."""
        if self.trust_ratio != "lamb" and self.max_unorm <= 0:
            return update
        param_norm, update_norm = norm(param), norm(update)
        usable = (param_norm.mid > 0) & (update_norm.mid > 0)
        ratio = param_norm / update_norm
        if self.trust_ratio == "lamb":
            scale = where(usable, ratio, 1.0)
            if self.max_unorm > 0:
                scale = scale * min(1.0, self.max_unorm)
        else:
            scale = where(usable, minimum(self.max_unorm * ratio, 1.0), 1.0)
        return scale * update

    def commit(self, index: int, grad: Ball, active: Array) -> None:
        """Advance one parameter and store what came out."""
        param, old = self.balls[index], self.state_balls[index]
        new = dict(old)
        stepped = self.advance(index, self.steps[index], param, grad, new)
        self.balls[index] = self.stored_param(where(active, stepped, param))
        for name, value in new.items():
            if name == "gnorm_vec" or (value is old.get(name) and not self.in_8bit(name, param)):
                continue
            if value.shape == param.shape and value.shape == active.shape and name in self.elementwise():
                value = where(active, value, old[name])
            new[name] = self.stored_state(index, name, value)
        self.state_balls[index] = new

    def elementwise(self) -> frozenset[str]:
        """States with an entry per element, which an inactive element keeps."""
        return self.quantized

    def storage_of(self, index: int, name: str) -> tuple[str, int | None]:
        """Codec of a state, and the size of its blocks if that is not the codec's own."""
        if not self.in_8bit(name, self.balls[index]):
            return "fp32", None
        return "int8", WHOLE if self.codec == "int8_tensor" else None

    def in_8bit(self, name: str, param: Ball) -> bool:
        quantizing = self.codec in ("int8", "int8_tensor")
        return quantizing and name in self.quantized and param.mid.size >= self.min_8bit_size

    def stored_param(self, value: Ball) -> Ball:
        return value if self.param_dtype is None else store(value, self.param_dtype)

    def stored_state(self, index: int, name: str, value: Ball) -> Ball:
        if self.in_8bit(name, value):
            assert self.codec is not None
            codes = Quantized(value, name not in self.unsigned, *self.storage_of(index, name))
            self.codes[index][name] = codes
            return codes.decoded()
        return value if self.codec is None else store(value, torch.float32)

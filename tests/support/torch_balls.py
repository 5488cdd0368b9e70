"""torch.optim's own classes, run in float64 on balls: where any float32 evaluation of their formulas may lie.

Under `TorchOnBalls` torch's code runs as it is, on float64 tensors. Beside every tensor that an operation makes there
is a `Ball` (oracles/ball.py), which passes on the radii of what was read and adds the roundings of float32. An
operation of torch's is charged as one of `Ball`, and then as much once more: ours may take two where torch has one (a
product with a reciprocal for a quotient, a root of each factor for the root of a product, a factor of the update for
one of the step size). `lerp` and the sum of two shares round differently, so that it is charged for both.

Tensors of another dtype are torch's counts and scalars, which its code reads as Python numbers. Where they are products
of float32 over the steps (NAdam's mu_product), `scalars` is the relative error that numbers from them may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from oracles.ball import Array, Ball, ball, maximum, minimum, rounded, sqrt
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class TorchOnBalls(TorchDispatchMode):
    """While it is active, float64 tensors carry balls; an operation that it has no rule for raises."""

    def __init__(self, scalars: float = 0.0) -> None:
        super().__init__()
        self.scalars = scalars
        self.balls: dict[int, tuple[Ball, Tensor]] = {}  # by address; the tensor is kept, so that none is used twice

    def ball(self, tensor: Tensor) -> Ball:
        """Ball of a tensor: exact, if no operation made it."""
        known = self.balls.get(tensor.untyped_storage().data_ptr())
        if known is None:
            return Ball(tensor.detach().numpy().copy())
        return Ball(known[0].mid.reshape(tensor.shape), known[0].rad.reshape(tensor.shape))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        read = [self._operand(arg) for arg in args]
        named = {key: self._operand(value) for key, value in kwargs.items() if key in ("alpha", "value")}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype is torch.float64 and name not in VIEWS:
            if name not in RULES:
                raise NotImplementedError(f"torch_balls has no rule for {func}")
            made = RULES[name](*read, **named)
            assert made.shape == tuple(result.shape), func
            difference = np.abs(made.mid - result.detach().numpy())  # the rule is torch's, to float64's own rounding
            assert (difference <= 1e-6 * made.rad).all(), func
            self.balls[result.untyped_storage().data_ptr()] = (made, result)
        return result

    def _operand(self, arg: Any) -> Any:
        if isinstance(arg, Tensor):
            return self.ball(arg) if arg.dtype is torch.float64 else arg.detach().numpy()
        if isinstance(arg, float):
            return Ball(arg, abs(arg) * self.scalars)
        return [self._operand(item) for item in arg] if isinstance(arg, list | tuple) else arg


def charged(rule: Callable[..., Ball]) -> Callable[..., Ball]:
    """The rule's ball with the roundings of its last operation once more."""

    def result(*args: Any, **kwargs: Any) -> Ball:
        made = rule(*args, **kwargs)
        return rounded(made)

    return result


def _lerp(a: Ball, b: Ball, weight: Any) -> Ball:
    one, other = a + weight * (b - a), (1.0 - ball(weight)) * a + weight * b
    return Ball(one.mid, np.maximum(one.rad, other.rad) + np.abs(one.mid - other.mid))


def _sign(a: Ball) -> Ball:
    """Only where it is certain: nothing else is smooth enough for a bound."""
    assert ((np.abs(a.mid) > a.rad) | (a.rad == 0)).all(), "a sign within rounding"
    return Ball(np.sign(a.mid))


def _index_put(a: Ball, indices: Sequence[Array], value: Any) -> Ball:
    """One number where a mask is set, or at some places."""
    chosen, one = np.zeros(a.shape, dtype=bool), ball(value)
    chosen[tuple(indices)] = True
    return Ball(np.where(chosen, one.mid.item(), a.mid), np.where(chosen, one.rad.item(), a.rad))


def _fill(a: Ball, value: Any = 0.0, *_: Any) -> Ball:
    value = ball(value)
    return Ball(np.broadcast_to(value.mid, a.shape).copy(), value.rad)


VIEWS = ("detach", "unsqueeze")  # of all of a tensor: the same numbers
RULES: dict[str, Callable[..., Ball]] = {
    "add": charged(lambda a, b, alpha=1: a + b if alpha == 1 else a + alpha * b),
    "sub": charged(lambda a, b, alpha=1: a - b if alpha == 1 else a - alpha * b),
    "mul": charged(lambda a, b: a * b),
    "div": charged(lambda a, b: a / b),
    "reciprocal": charged(lambda a: 1.0 / a),
    "sqrt": charged(sqrt),
    "addcmul": charged(lambda a, b, c, value=1: a + value * (b * c)),
    "addcdiv": charged(lambda a, b, c, value=1: a + value * (b / c)),
    "lerp": charged(_lerp),
    "maximum": maximum,
    "clamp": charged(lambda a, low, high: minimum(maximum(a, low), high)),  # limits that float32 rounds
    "abs": abs,
    "neg": lambda a: -a,
    "sign": _sign,
    "index_put": _index_put,
    "copy": lambda a, b, *_: b,
    "clone": lambda a, *_: a,
    "lift_fresh": lambda a: a,
    "zeros_like": lambda a, *_: Ball(np.zeros(a.shape)),
    "full_like": _fill,
    "fill": _fill,
}

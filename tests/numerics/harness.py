"""One optimizer beside one oracle, compared after every step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from oracles import Oracle
from oracles.ball import Ball
from oracles.base import array
from oracles.rounding import KEPT, Rounding, decoded
from oracles.spec_oracle import SpecOracle
from oracles.storage import DTYPES, decode
from support.catalogue import make_oracle, optimizer_class, shapes_of

from numerics.bounds import assert_codes, assert_meaningful, assert_within

STEPS = 6  # a rule that rectifies its rate does so from its sixth step on
FEW_STEPS = 4  # others: a first step, later ones, and gradients of each size that there is
SHAPES = {
    "one": (1,),
    "block-1": (255,),
    "block": (256,),
    "block+1": (257,),
    "min_8bit_size": (4096,),
    "partial block": (5000,),
    "matrix": (64, 80),
    "matrices": (3, 20, 50),
    "0-dim": (),
    "zeros": (300,),
}
NAMES = list(SHAPES)
FEW = ["block+1", "partial block", "matrices", "0-dim", "zeros"]  # where sizes decide nothing in the code


def make_params(
    dtype: torch.dtype = torch.float32, names: Sequence[str] = NAMES, cls: str | None = None
) -> list[torch.nn.Parameter]:
    """One parameter of every size, one of them zero; of shapes that a class takes, if one is named."""
    shapes = [SHAPES[name] for name in names]
    shapes = shapes if cls is None else shapes_of(cls, shapes)
    values = {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=True)}
    values["zeros"].zero_()
    return [torch.nn.Parameter(value.to(dtype)) for value in values.values()]


def make_grads(params: Sequence[torch.Tensor], t: int, dtype: torch.dtype, nonfinite: bool) -> list[torch.Tensor]:
    """Gradients whose size changes from step to step, a tenth of them exactly 0; some NaN and Inf where asked for."""
    grads = []
    for param in params:
        grad = torch.randn(param.shape) * (0.1 if t == 1 else 0.1 * (1 + t % 4))
        grad = torch.where(torch.rand(param.shape) < 0.1, 0.0, grad)
        if nonfinite:
            chance = torch.rand(param.shape)
            grad = torch.where(chance < 0.02, torch.nan, torch.where(chance > 0.98, torch.inf, grad))
        grads.append(grad.to(dtype))
    return grads


def set_grads(params: Sequence[torch.Tensor], grads: Sequence[torch.Tensor | None]) -> None:
    """Fresh gradients, as after `zero_grad(set_to_none=True)`, of their own dtype where it is not the parameter's.

    They are brought to where the parameter lies.
    """
    for param, grad in zip(params, grads, strict=True):
        param.grad = None
        if grad is not None:
            param.grad_dtype = grad.dtype
            param.grad = grad.to(param.device, copy=True)


def targeted(cls: Callable[..., torch.optim.Optimizer], params: Any, target: str, **settings: Any) -> Any:
    """An optimizer of `cls` that is told its target, or has but one."""
    if "target" not in inspect.signature(cls).parameters:
        assert target == "torch", f"{cls.__name__} runs on the torch target alone"
        return cls(params, **settings)
    return cls(params, **settings, target=target)


def read_state(state: dict[str, Any], oracle: Oracle | SpecOracle, index: int) -> dict[str, Ball]:
    """An optimizer's states of one parameter, codes decoded."""
    values = {}
    for name, value in state.items():
        if name in ("step", KEPT) or name.endswith("_absmax"):
            continue
        scales = state.get(f"{name}_absmax")
        if scales is None:
            values[name] = Ball(array(value))
            continue
        codec, block = oracle.storage_of(index, name)
        values[name] = decode(value, scales, name not in oracle.unsigned, codec, block, oracle.balls[index].shape)
    return values


@dataclass
class Duel:
    """An optimizer and the oracle that it is held against."""

    params: list[torch.nn.Parameter]
    opt: Any
    oracle: Oracle | SpecOracle
    names: Sequence[str]
    settled: bool = True  # compare against meaningful bounds only (see assert_meaningful)
    vague: list[str] | None = None  # where given, bounds that say nothing are noted instead (see MEANINGFUL)

    def step(self, grads: Sequence[torch.Tensor | None]) -> None:
        """One step of both from the optimizer's own values, and the comparison."""
        self.adopt()
        before = self.values()
        set_grads(self.params, grads)
        self.oracle.step(grads)
        self.opt.step()
        self.check(before)

    def call(self, method: str, grads: Sequence[torch.Tensor | None]) -> None:
        """A method of both from the optimizer's own values, and the comparison."""
        assert isinstance(self.oracle, SpecOracle)
        self.adopt()
        before = self.values()
        set_grads(self.params, grads)
        self.oracle.call(method, grads)
        getattr(self.opt, method)()
        self.check(before)

    def adopt(self) -> None:
        for i, param in enumerate(self.params):
            state = self.opt.state.get(param, {})
            kept = array(state[KEPT]) if KEPT in state else None
            self.oracle.adopt(i, param, read_state(state, self.oracle, i), kept)

    def values(self) -> list[np.ndarray]:
        """The parameters, with what is kept beside them."""
        return [self.value(i) for i in range(len(self.params))]

    def value(self, i: int) -> np.ndarray:
        kept = self.opt.state.get(self.params[i], {}).get(KEPT)
        return decoded(self.oracle.rounding(i), array(self.params[i]), None if kept is None else array(kept))

    def check(self, before: Sequence[np.ndarray]) -> None:
        for i, (name, param) in enumerate(zip(self.names, self.params, strict=True)):
            t = self.oracle.steps[i]
            where = f"{name}, step {t}"
            expected = self.oracle.balls[i]
            assert_within(param, self.oracle.tensors[i], f"{where}: param")
            assert_within(self.value(i), expected, f"{where}: param with what is kept beside it")
            if self.settled:
                self.check_meaning(before[i], expected, param.dtype, self.oracle.rounding(i), f"{where}: param")
            if t:
                self.check_kept(i, where)
                assert float(self.opt.state[param]["step"]) == t, f"{where}: state['step']"
                self.check_states(i, self.opt.state[param], where)

    def check_kept(self, i: int, where: str) -> None:
        """Compensation beside a parameter: of the dtype and shape of its rounding, 0 where that is not finite."""
        param, kept = self.params[i], self.opt.state[self.params[i]].get(KEPT)
        wanted = self.oracle.rounding(i).kept_dtype(param.dtype)
        assert (None if kept is None else kept.dtype) is wanted, f"{where}: beside the parameter is {kept}"
        if kept is not None:
            assert kept.shape == param.shape, f"{where}: beside the parameter are {tuple(kept.shape)}"
            assert not kept[~torch.isfinite(param)].any(), f"{where}: something beside a parameter that is not finite"

    def check_meaning(
        self, before: np.ndarray, expected: Ball, dtype: torch.dtype, rounding: Rounding, where: str
    ) -> None:
        try:
            together = isinstance(self.oracle, SpecOracle) and self.oracle.rule.ndim == 2
            assert_meaningful(before, expected, dtype, where, rounding.spacing(dtype), together)
        except AssertionError as error:
            if self.vague is None:
                raise
            self.vague.append(str(error))

    def check_group(self) -> None:
        """Group and global states are float64 on both sides."""
        assert isinstance(self.oracle, SpecOracle)
        held = self.opt.param_groups[0]
        for name, ball in self.oracle.group.items():
            assert isinstance(held[name], float), f"{name} is a {type(held[name]).__name__}"
            assert_within(held[name], ball, name)
            self.oracle.group[name] = Ball(held[name])

    def check_states(self, i: int, state: dict[str, Any], where: str) -> None:
        expected = self.oracle.state_balls[i]
        codes = self.oracle.codes[i]
        scales = {f"{name}_absmax" for name in codes}
        kept = set() if self.oracle.rounding(i).kept is None else {KEPT}
        assert set(state) == {"step"} | set(expected) | scales | kept, f"{where}: states {sorted(state)}"
        for name, ball in expected.items():
            if name in codes:
                assert_codes(state[name], state[f"{name}_absmax"], codes[name], f"{where}: {name}")
            else:
                dtype = DTYPES[self.oracle.storage_of(i, name)[0]]
                assert state[name].dtype == dtype, f"{where}: {name} is {state[name].dtype}"
                assert_within(state[name], ball, f"{where}: {name}")


def duel(
    name: str, target: str, dtype: torch.dtype = torch.float32, names: Sequence[str] = NAMES, **settings: Any
) -> Duel:
    """A class of the catalogue beside its oracle, on parameters of all sizes."""
    params = make_params(dtype, names, name)
    opt = targeted(optimizer_class(name), params, target, **settings)
    return Duel(params, opt, make_oracle(name, params, settings), names)

"""The step on matrices of a parameter: a function of its module, in torch, that all targets call alike.

The states that are matrices of their own dimensions are decoded for it, and stored again when all of them are there. A
matrix whose direction or states are not finite, and one of which a decomposition fails, keeps its states and gets NaN
for its direction: the equations then leave it as it was.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from optgen.runtime import torch_math as m
from optgen.runtime.block import Settings
from optgen.runtime.core.bucket import Member
from optgen.runtime.rule import Rule
from optgen.runtime.states.stored import scale_key
from optgen.runtime.states.torch_codecs import decode, encode


class Stepped(Protocol):
    """Parts of a view of a parameter that its step needs."""

    rule: Rule
    member: Member


class NotFiniteWarning(UserWarning):
    """A matrix was left as it was in a step: its gradient, or what follows from it, was not finite."""


class SettingsNow:
    """Numbers of a param group as attributes, as they are in this step."""

    def __init__(self, rule: Rule, settings: Settings) -> None:
        self._rule, self._settings = rule, settings

    def __getattr__(self, name: str) -> float:
        key, part = self._rule.sources[name.removesuffix("_value")]
        value = self._settings.get(key)
        return m.number(value if part is None or value is None else value[part])


def read_matrix(rule: Rule, member: Member, name: str) -> Tensor:
    """A state that is a matrix, in float32."""
    state = rule.states[name]
    codec = member.codecs[rule.coded_states.index(state)]
    scales = member.entry.get(scale_key(name))
    return decode(codec, member.entry[name], scales, state.signed, member.state_shape(state))


def run(view: Stepped, grad: Tensor) -> Tensor:
    """Run the step on a matrix: store its states, and return its direction.

    Args:
        grad: The gradient that the step takes, in float32.
    """
    why = "its gradient, or what follows from it, is not finite"
    try:
        results = view.rule.torch_functions.matrices(view, grad)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        results, why = {}, str(error)
    if not results or not all(_is_finite(value) for value in results.values()):
        _warn(view, why)
        return torch.full_like(grad, math.nan)
    update: Tensor = results.pop("update")
    stored = [pair for name, value in results.items() for pair in _encoded(view, name, value)]
    for target, value in stored:
        target.copy_(value)
    return update


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return math.isfinite(value)
    if not value.numel():
        return True
    least, greatest = torch.aminmax(value)  # NaN where there is any; without a copy of a large matrix
    return bool(torch.isfinite(greatest - least)) or bool(torch.isfinite(value).all())


def _encoded(view: Stepped, name: str, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    rule, member = view.rule, view.member
    state = rule.states[name]
    codec = member.codecs[rule.coded_states.index(state)]
    if not codec.scaled:
        return [(member.entry[name], value)]  # rounded as it is copied
    codes, scales = encode(codec, value.float().contiguous(), state.signed)
    pairs = [(member.entry[name], codes)]
    return pairs if scales is None else [*pairs, (member.entry[scale_key(name)], scales)]


def _warn(view: Stepped, why: str) -> None:
    member = view.member
    names = member.settings.get("param_names") or ()
    name = f" {names[member.index]!r}" if member.index < len(names) else ""
    what = f"parameter {member.number}{name} of shape {tuple(member.shape)} was left as it was in this step"
    warnings.warn(f"{view.rule.name}: {what}: {why}", NotFiniteWarning, stacklevel=2)

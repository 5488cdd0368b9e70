"""The step on matrices of a parameter: a function of its module, in torch, that all targets call alike.

The states that are matrices of their own dimensions are decoded for it, and stored again when all of them are there. A
parameter of several matrices has the step on each of them, one after the other. A matrix whose direction or states are
not finite, and one of which a decomposition fails, keeps its states and gets NaN for its direction: the equations then
leave it as it was.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, Protocol

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.runtime import torch_math as m
from optgen.runtime.block import Settings
from optgen.runtime.core.bucket import Member
from optgen.runtime.rule import Rule
from optgen.runtime.states.stored import scale_key

ALIGNED = 64
"""Bytes: bits of products depend on where in this many their operands begin."""


class Codecs(Protocol):
    """Decoder and encoder of states: `torch_codecs`, or what computes the same."""

    @property
    def decode(self) -> Callable[[Codec, Tensor, Tensor | None, bool, Sequence[int]], Tensor]:
        """The numbers of codes and scales."""

    @property
    def encode(self) -> Callable[[Codec, Tensor, bool], tuple[Tensor, Tensor | None]]:
        """Codes and scales of numbers."""


class Stepped(Protocol):
    """Parts of a view of a parameter that its step needs.

    Attributes:
        out: Memory that the step may leave its direction in, from where on it reads the gradient no more.
    """

    rule: Rule
    member: Member
    codecs: Codecs
    out: Tensor

    @property
    def states(self) -> Any:
        """Its states as attributes, decoded when they are asked for."""

    @property
    def param(self) -> Tensor:
        """Its elements in float32."""

    def normal_matrix(self, rows: int, cols: int, draw: float, like: Tensor, number: int = 0) -> Tensor:
        """Random numbers of a matrix of it."""


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


def read_matrix(rule: Rule, member: Member, name: str, codecs: Codecs) -> Tensor:
    """A state that is a matrix, in float32: its own memory if it lies as products want it."""
    stored: Tensor = member.entry[name]
    state = rule.states[name]
    codec, shape = member.codecs[rule.coded_states.index(state)], member.state_shape(state)
    if stored.dtype is torch.float32 and stored.is_contiguous() and _is_aligned(stored):
        return stored.view(shape)
    return codecs.decode(codec, stored, member.entry.get(scale_key(name)), state.signed, shape)


class OneMatrix:
    """One of several matrices of a parameter, as the function of its step sees a parameter.

    Args:
        place: Its place among the others.
        number: The same, counted.
        out: Memory for its direction.
    """

    def __init__(self, view: Stepped, place: tuple[int, ...], number: int, out: Tensor) -> None:
        self._view, self._place, self._number, self.out = view, place, number, out
        self.states = _Places(view.states, place)

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute that all matrices of the parameter share."""
        return getattr(self._view, name)

    @property
    def param(self) -> Tensor:
        """Its elements in float32."""
        return self._view.param[self._place]

    def normal_matrix(self, rows: int, cols: int, draw: float, like: Tensor) -> Tensor:
        """Random numbers of it, which are its own."""
        return self._view.normal_matrix(rows, cols, draw, like, self._number)


class _Places:
    """Of every state of a parameter that of one matrix, in memory of its own: bits of products depend on addresses."""

    def __init__(self, states: Any, place: tuple[int, ...]) -> None:
        self._states, self._place = states, place

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._states, name)
        value = value[self._place].clone() if isinstance(value, Tensor) else value
        setattr(self, name, value)
        return value


def run(view: Stepped, grad: Tensor, out: Tensor | None = None) -> Tensor:
    """Run the step on each matrix of a parameter: store their states, and return their directions.

    Args:
        grad: The gradient that the step takes, in float32, (..., rows, cols).
        out: Memory for the directions, of the gradient's shape; it may be the gradient's own.
    """
    out = torch.empty_like(grad) if out is None else out
    if grad.dim() == 2:
        grad = grad if _is_aligned(grad) else grad.clone()
        view.out = out if _is_aligned(out) else torch.empty_like(out)
        results = _stepped(view, view, grad)
        update = results.pop("update", None)
        _store(view, results)  # which may be of the gradient, in whose place the direction comes
        _put(out, update)
        return out
    new: dict[str, Tensor] = {}
    for number, place in enumerate(product(*map(range, grad.shape[:-2]))):
        matrix = grad[place].clone()
        results = _stepped(view, OneMatrix(view, place, number, torch.empty_like(matrix)), matrix, place)
        _put(out[place], results.pop("update", None))
        for name, value in results.items():
            if name not in new:
                new[name] = getattr(view.states, name).clone()
            new[name][place] = value
    _store(view, new)
    return out


def _is_aligned(x: Tensor) -> bool:
    return x.data_ptr() % ALIGNED == 0


def _put(out: Tensor, update: Tensor | None) -> None:
    """Put a direction in its place; without one NaN."""
    if update is None:
        out.fill_(math.nan)
    elif update.data_ptr() != out.data_ptr():
        out.copy_(update)


def _stepped(view: Stepped, matrix: Any, grad: Tensor, place: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """The direction of a matrix, `update`, and its new states; nothing where these are not finite."""
    why = "its gradient, or what follows from it, is not finite"
    try:
        results: dict[str, Tensor] = view.rule.torch_functions.matrices(matrix, grad) if _is_finite(grad) else {}
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        results, why = {}, str(error)
    if results and all(_is_finite(value) for value in results.values()):
        return results
    if view.member.settings.get("nonfinite") != "skip" or _is_finite(grad):
        _warn(view, why, place)
    return {}


def _store(view: Stepped, results: Mapping[str, Tensor]) -> None:
    states = {
        tensor.untyped_storage().data_ptr() for tensor in view.member.entry.values() if isinstance(tensor, Tensor)
    }
    stored = [pair for name, value in results.items() for pair in _encoded(view, name, value)]
    stored = [(t, x.clone() if x.untyped_storage().data_ptr() in states else x) for t, x in stored]
    for target, value in stored:
        target.copy_(value)


def _is_finite(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return math.isfinite(value)
    if not value.numel():
        return True
    # A sum is not finite if a number is not; it takes no copy of a large matrix, and seldom goes too far itself.
    return math.isfinite(value.sum()) or bool(torch.isfinite(value).all())


def _encoded(view: Stepped, name: str, value: Tensor) -> list[tuple[Tensor, Tensor]]:
    rule, member = view.rule, view.member
    state = rule.states[name]
    codec = member.codecs[rule.coded_states.index(state)]
    if not codec.scaled:
        return [(member.entry[name], value)]  # rounded as it is copied
    codes, scales = view.codecs.encode(codec, value.float().contiguous(), state.signed)
    pairs = [(member.entry[name], codes)]
    return pairs if scales is None else [*pairs, (member.entry[scale_key(name)], scales)]


def _warn(view: Stepped, why: str, place: tuple[int, ...]) -> None:
    member = view.member
    names = member.settings.get("param_names") or ()
    name = f" {names[member.index]!r}" if member.index < len(names) else ""
    of = f"matrix {', '.join(map(str, place))} of " if place else ""
    what = f"{of}parameter {member.number}{name} of shape {tuple(member.shape)} was left as it was in this step"
    warnings.warn(f"{view.rule.name}: {what}: {why}", NotFiniteWarning, stacklevel=2)

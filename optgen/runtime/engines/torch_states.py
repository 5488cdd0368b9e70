"""States and sums of a parameter as generated functions of torch see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.core.bucket import Member
from optgen.runtime.dimensions import spread_shape
from optgen.runtime.engines import matrix_stage
from optgen.runtime.engines.matrix_stage import Codecs
from optgen.runtime.rule import Rule
from optgen.runtime.states import torch_codecs
from optgen.runtime.states.store import in_equations
from optgen.runtime.states.stored import scale_key
from optgen.runtime.states.torch_codecs import decode
from optgen.runtime.sums import wide
from optgen.runtime.torch_math import NAN


class States:
    """The states of a parameter as attributes, decoded when they are first asked for.

    Elements come in the parameter's shape, what has fewer dimensions with 1 for the others (dimensions.py). One that
    does not exist under these settings is NaN: nothing that is kept follows from it.
    """

    def __init__(self, rule: Rule, member: Member, codecs: Codecs = torch_codecs) -> None:
        self._rule, self._member, self._codecs = rule, member, codecs

    def __getattr__(self, name: str) -> Any:
        member = self._member
        value = _state(self._rule, member, name, self._codecs) if self._rule.states[name].exists(member.flags) else NAN
        setattr(self, name, value)
        return value


class Sums:
    """The sums over a parameter as attributes; NaN for one that a later pass takes."""

    def __init__(self, member: Member, found: Mapping[str, Any], lines: Mapping[str, str]) -> None:
        self._member, self._found, self._lines = member, found, lines

    def __getattr__(self, name: str) -> Any:
        if name in self._found:
            return self._found[name]
        unknown = torch.tensor(NAN, dtype=torch.float64, device="cpu")
        return spread(self._member, unknown, self._lines[name]) if name in self._lines else unknown


def _state(rule: Rule, member: Member, name: str, codecs: Codecs) -> Tensor:
    entry, state = member.entry, rule.states[name]
    if state.kind == "shaped":
        return matrix_stage.read_matrix(rule, member, name, codecs)
    if state.kind == "element":
        codec = member.codecs[rule.element_states.index(state)]
        return seen(member, decode(codec, entry[name], entry.get(scale_key(name)), state.signed, member.param.shape))
    value = in_equations(state.kind, entry[name], member.line_shape)
    return wide(value) if state.kind == "tensor" and state.window is None else value


def spread(member: Member, x: Any, kind: str) -> Tensor:
    """Numbers of a smaller kind, one for each of this kind."""
    shape = spread_shape(kind, member.seen if kind == "element" else member.line_shape) or (1,)
    return torch.as_tensor(x, device=member.param.device).to(torch.float32).expand(shape)


def seen(member: Member, x: Tensor) -> Tensor:
    """Elements in float32, in the shape that equations see them in."""
    x = x.to(torch.float32)
    return x.reshape(member.seen) if member.form is not None else x.reshape(1) if x.dim() == 0 else x

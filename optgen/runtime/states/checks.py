"""Checks that kernels can read the states of a parameter: a user may replace them between two steps.

They run when a step is prepared, and again as soon as a state lies elsewhere or has another form than before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optgen.codecs import COMPENSATION
from optgen.runtime.core.bucket import Member
from optgen.runtime.core.shards import is_dtensor, local_tensor
from optgen.runtime.rule import Rule
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.states.store import KEPT_DTYPES, Placement, stored_shape, stored_shapes
from optgen.runtime.states.stored import scale_key

_OF_OWNER = (
    ": of a parameter that is divided among processes its owner has all of it and the others no rows, and which "
    "process is the owner follows from all parameters of the optimizer; load a checkpoint after taking any away"
)


def why_unreadable(value: Tensor) -> str:
    """Reason why no kernel can read a tensor, in words that follow "is"; "" if it can."""
    if is_dtensor(value):
        value = local_tensor(value)
    if value.layout is not torch.strided or value.is_nested:
        return f"{'nested' if value.is_nested else value.layout}, not dense"
    if value.is_meta:
        return "on the device meta, without values"
    if value.numel() and (value.is_cpu or value.is_cuda) and not _address(value):
        return f"a {type(value).__name__} without memory of its own"
    return ""


def _address(value: Tensor) -> int:
    try:
        return value.data_ptr()
    except RuntimeError:  # it has no storage
        return 0


def check_states(rule: Rule, member: Member, placement: Placement) -> None:
    """Raise for a state that was replaced by what does not fit. One that is None is not there.

    Raises:
        TypeError, ValueError: naming the state and what is wrong.
    """
    entry, param = member.entry, member.param
    for state in (*rule.coded_states, *rule.tensor_states):
        value = entry.get(state.name)
        if value is None:
            continue
        _check_readable(state.name, value)
        has_codecs = state in rule.coded_states
        shape = member.state_shape(state) if has_codecs else member.line_shape
        if tuple(value.shape) not in stored_shapes(state, shape):
            wrong = f"state {state.name!r} has shape {tuple(value.shape)}, not {stored_shape(state, shape)}"
            raise ValueError(wrong + (_OF_OWNER if state.dims and member.owner and not member.owner.replicated else ""))
        if not placement.takes(state, value):
            raise ValueError(f"state {state.name!r} is on {value.device}, its parameter on {param.device}")
        if not has_codecs and value.dtype is not torch.float32:
            raise ValueError(f"state {state.name!r} is {value.dtype}, not torch.float32")
        if has_codecs and entry.get(scale_key(state.name)) is not None:
            check_scales(state.name, entry[scale_key(state.name)])
            if entry[scale_key(state.name)].device != param.device:
                where = f"on {entry[scale_key(state.name)].device}, its parameter on {param.device}"
                raise ValueError(f"state {scale_key(state.name)!r} is {where}")
    kept = entry.get(COMPENSATION)
    if kept is not None:
        check_compensation(kept, param)
        if kept.device != param.device:
            raise ValueError(f"state {COMPENSATION!r} is on {kept.device}, its parameter on {param.device}")


def _check_readable(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"state {name!r} is a {type(value).__name__}, not a tensor")
    wrong = why_unreadable(value)
    if wrong:
        raise ValueError(f"state {name!r} is {wrong}")


def check_scales(name: str, scales: Any) -> None:
    """Raise for what are no scales of a state, however many it needs.

    Raises:
        TypeError, ValueError: naming what is wrong.
    """
    _check_readable(scale_key(name), scales)
    if scales.dtype is not torch.float32:
        raise ValueError(f"state {scale_key(name)!r} is {scales.dtype}, not torch.float32")


def check_compensation(kept: Any, param: Tensor) -> None:
    """Raise for what no parameter keeps beside it.

    Raises:
        TypeError, ValueError: naming what is wrong.
    """
    _check_readable(COMPENSATION, kept)
    if kept.shape != param.shape:
        raise ValueError(f"state {COMPENSATION!r} has shape {tuple(kept.shape)}, not {tuple(param.shape)}")
    if kept.dtype not in KEPT_DTYPES:
        allowed = ", ".join(sorted(map(dtype_name, KEPT_DTYPES)))
        raise ValueError(f"state {COMPENSATION!r} is {kept.dtype}, not one of {allowed}")

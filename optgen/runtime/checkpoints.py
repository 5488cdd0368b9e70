"""Taking over a saved state: dtypes and codecs stay as the rule stores them, whatever the parameter's dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.rule import Rule
from optgen.runtime.states import line_shape, scale_key

KEPT = ("target", "overrides")


def adopt_entry(rule: Rule, param: Tensor, saved: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state as saved, copied to the parameter's device without a change of dtype."""
    result: dict[str, Any] = {}
    for key, value in saved.items():
        if key == "step":
            result[key] = torch.tensor(float(value), dtype=torch.float32)
        elif isinstance(value, Tensor):
            dtype = torch.float32 if value.dtype is torch.float64 else value.dtype
            result[key] = value.detach().to(device=param.device, dtype=dtype, copy=True).contiguous()
        else:
            result[key] = value
    return result


def misfits(rule: Rule, label: str, param: Tensor, saved: Mapping[str, Any]) -> list[str]:
    """What of a saved state does not fit a parameter, in words."""
    found = []
    for state in (*rule.element_states, *rule.tensor_states):
        value = saved.get(state.name)
        if value is None:
            continue
        if not isinstance(value, Tensor):
            found.append(f"{label}: {state.name} is a {type(value).__name__}, not a tensor")
            continue
        wanted = tuple(param.shape) if state.kind == "element" else line_shape(state.kind, param.shape)
        if state.window is not None:
            wanted = (state.window,)
        if tuple(value.shape) != wanted:
            found.append(f"{label}: {state.name} has shape {tuple(value.shape)}, not {wanted}")
        elif state.kind == "element" and value.dtype is torch.uint8:
            scales = saved.get(scale_key(state.name))
            count = -(-value.numel() // 256)
            if not isinstance(scales, Tensor) or scales.numel() not in (1, count):
                found.append(f"{label}: {state.name} is in 8 bits, but {scale_key(state.name)} does not belong to it")
    return found


def keep_placement(rule: Rule, group: dict[str, Any], loaded: dict[str, Any]) -> None:
    """How states are stored is this optimizer's own; everything else comes from the checkpoint."""
    for key in (*rule.storage, *KEPT):
        if key in group:
            loaded[key] = group[key]

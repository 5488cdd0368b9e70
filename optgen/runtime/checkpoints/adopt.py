"""Taking over a saved state: dtypes and codecs stay as the rule stores them, whatever the parameter's dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optgen.runtime.checkpoints.validate import lacks_count
from optgen.runtime.cuda.graph_capture import adopted_lr
from optgen.runtime.cuda.paged_memory import asks_for_paging, wait_for_host
from optgen.runtime.rule import Rule
from optgen.runtime.states.step_counts import as_state
from optgen.runtime.states.store import room_for
from optgen.runtime.step.optimizer_like import OptimizerLike
from optgen.runtime.step.target_choice import choose_target

if TYPE_CHECKING:
    from optgen.runtime.cuda.paging import Pager

APART = ("capturable", "fused_backward")  # what an optimizer decides for itself, in overrides too


def adopt_group(
    rule: Rule, fixed: Mapping[str, Any], own: Mapping[str, Any], saved: Mapping[str, Any]
) -> dict[str, Any]:
    """A saved group; how states are stored, what the class fixes and `capturable` are this optimizer's own.

    Args:
        own: The optimizer's group. Its overrides stand before the saved ones, setting by setting.
    """
    kept = {key: own[key] for key in (*rule.storage, "target", *fixed) if key in own}
    result = {**saved, **kept}
    if "lr" in result:
        result["lr"] = adopted_lr(own, result["lr"])
    mine = own.get("overrides", {})
    theirs = {
        index: {key: value for key, value in settings.items() if key not in APART}
        for index, settings in saved.get("overrides", {}).items()
    }
    if mine or theirs:
        result["overrides"] = {i: {**theirs.get(i, {}), **mine.get(i, {})} for i in sorted({*theirs, *mine})}
    return result


def adopted_states(optimizer: OptimizerLike, loading: Mapping[str, Any]) -> dict[Tensor, dict[str, Any]]:
    """The states of a checkpoint, which `fitting` has returned, where this optimizer keeps them.

    Raises:
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.
    """
    states = {}
    for own, group in zip(optimizer.param_groups, loading["param_groups"], strict=True):
        overrides = group.get("overrides", {})
        for index, (param, key) in enumerate(zip(own["params"], group["params"], strict=True)):
            if key in loading["state"]:
                settings = {**group, **overrides.get(index, {})}
                pager = find_pager(optimizer._policy.name, param, settings)
                states[param] = adopt_entry(optimizer._policy.rule, param, loading["state"][key], pager)
    return states


def find_pager(name: str, param: Tensor, settings: Mapping[str, Any]) -> Pager | None:
    """Where the element states of a parameter go when they are loaded, if they are paged."""
    if not asks_for_paging(settings, param.numel()):
        return None
    try:
        target = choose_target(name, param.device, settings.get("target"))
    except RuntimeError:
        return None  # the step will say it
    if target != "cuda":
        return None
    from optgen.runtime.engines.cuda_factory import pager_on

    return pager_on(param.device)


def adopt_entry(rule: Rule, param: Tensor, saved: Mapping[str, Any], pager: Pager | None) -> dict[str, Any]:
    """A parameter's state as saved, on the parameter's device or in paged memory, without a change of dtype.

    What is None is left out, and where no count of steps was saved, it is 1.

    Raises:
        torch.cuda.OutOfMemoryError: naming the state that there is no room for.

    Args:
        pager: Where element states go, if they are paged.
    """
    saved = {key: value for key, value in saved.items() if value is not None}
    if lacks_count(rule, saved):
        saved["step"] = 1.0
    elements = {state.name for state in rule.element_states}
    wait_for_host(saved.values())
    result: dict[str, Any] = {}
    for key, value in saved.items():
        if key == "step":
            result[key] = as_state(float(value))
        elif isinstance(value, Tensor):
            line = key in rule.states and key not in elements and value.is_floating_point()
            dtype = torch.float32 if line or value.dtype is torch.float64 else value.dtype
            with room_for(key, param):
                if pager is not None and key in elements:
                    result[key] = pager.copy(value.detach().to(dtype).contiguous())
                else:
                    result[key] = value.detach().to(device=param.device, dtype=dtype, copy=True).contiguous()
        else:
            result[key] = value
    return result

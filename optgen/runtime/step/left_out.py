"""Matrices that a step leaves out: with `nonfinite="skip"` those whose gradient has a NaN or Inf anywhere.

A parameter that is one matrix then has no step, as one without a gradient, and the host knows it before. Of several
matrices of a parameter each is left out by itself, in the kernels (optgen/ir/whole_matrices.py). A rule whose states
are matrices of other shapes begins some of them on its first step, under any setting: where that has a NaN or Inf, it
has not been.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.block import Settings
from optgen.runtime.core.shards import is_dtensor, local_tensor
from optgen.runtime.core.step_inputs import Inputs
from optgen.runtime.engines.matrix_stage import NotFiniteWarning
from optgen.runtime.settings.matrix_form import matrix_form
from optgen.runtime.step.find_shards import find_shards
from optgen.runtime.step.optimizer_like import OptimizerLike


def without_left_out(
    optimizer: OptimizerLike, params: list[Tensor], grads: list[Any], numbers: list[int], inputs: Inputs
) -> tuple[list[Tensor], list[Any], list[int]]:
    """The parameters that have a step, their gradients and numbers; processes that have parts of a matrix agree on it.

    Args:
        grads: Of each parameter, or empty.
        numbers: The number that the step has for each; empty where nothing follows from it.
    """
    asked = _asked(optimizer, params, numbers) if grads else []
    if not asked:
        return params, grads, numbers
    scale = inputs.values.get("grad_scale")
    unscale = 1.0 if scale is None else 1.0 / float(scale)
    found = [_ends(local_tensor(grads[at])) * unscale for at in asked]
    bad = torch.zeros(len(asked), device="cpu")
    for device in dict.fromkeys(ends.device for ends in found):
        own = [place for place, ends in enumerate(found) if ends.device == device]
        bad[own] = (~torch.isfinite(torch.stack([found[place] for place in own])).all(1)).float().cpu()
    if any(is_dtensor(params[at]) for at in asked):
        _agree(optimizer._policy.name, [params[at] for at in asked], bad)
    left = [at for at, is_bad in zip(asked, bad.tolist(), strict=True) if is_bad]
    _warn(optimizer, [params[at] for at in left])
    on = [at for at in range(len(params)) if at not in left]
    return [params[at] for at in on], [grads[at] for at in on], [numbers[at] for at in on] if numbers else []


def _asked(optimizer: OptimizerLike, params: Sequence[Tensor], numbers: Sequence[int]) -> list[int]:
    """The positions of the parameters that one number that is not finite leaves out."""
    rule = optimizer._policy.rule
    begin = bool(rule.matrix_states) and 1 in numbers
    if not any(block.matrices for block in rule.blocks.values()):
        return []
    if not begin and not any(_may_skip(group) for group in optimizer.param_groups):
        return []
    settings: dict[int, Settings] = {}
    for group in optimizer.param_groups:
        settings |= {id(param): group for param in group["params"]}
        for index, override in group.get("overrides", {}).items():
            settings[id(group["params"][index])] = {**group, **override}
    found = []
    for at, param in enumerate(params):
        own = settings[id(param)]
        is_one = own.get("nonfinite") == "skip" and len(matrix_form(rule, param.shape, own)) == 2
        if is_one or (begin and numbers[at] == 1):
            found.append(at)
    return found


def _warn(optimizer: OptimizerLike, params: Sequence[Tensor]) -> None:
    """Name the parameters whose first step has not been, unless that is what the settings ask for."""
    number = 0
    for group in optimizer.param_groups:
        for index, param in enumerate(group["params"]):
            own = {**group, **group.get("overrides", {}).get(index, {})}
            if own.get("nonfinite") != "skip" and any(param is other for other in params):
                what = f"parameter {number} of shape {tuple(param.shape)} has not begun in this step"
                message = f"{optimizer._policy.name}: {what}: its gradient is not finite"
                warnings.warn(message, NotFiniteWarning, stacklevel=2)
            number += 1


def _may_skip(group: Settings) -> bool:
    return any(own.get("nonfinite") == "skip" for own in (group, *group.get("overrides", {}).values()))


def _ends(grad: Tensor) -> Tensor:
    """The least and the greatest number, NaN where there is any; 0 of what will be refused."""
    if not grad.numel() or grad.layout is not torch.strided or not grad.is_floating_point():
        return torch.zeros(2, device=grad.device)
    return torch.stack(torch.aminmax(grad.detach())).float()


def _agree(name: str, params: Sequence[Tensor], bad: Tensor) -> None:
    """Spread what a process has found to all that have parts of the same matrices, in an all-reduce a group."""
    import torch.distributed as dist

    shards = find_shards(name, params)
    groups = [[d.group for d in shards[id(p)].divisions] if id(p) in shards else [] for p in params]
    for group in {id(group): group for own in groups for group in own}.values():
        over = [place for place, own in enumerate(groups) if any(each is group for each in own)]
        flags = bad[over].to(local_tensor(params[over[0]]).device)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=group)
        bad[over] = flags.cpu()

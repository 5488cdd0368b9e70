"""Steps that torch.cuda.graph records: `lr` lies on the GPU, and nothing is read by the host.

A group with `capturable=True` whose parameters are on a GPU keeps its `lr` there, as a tensor of float64 without
dimensions: what a replay reads is what a scheduler wrote with `fill_`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.settings.validation import on_device


def is_capturing() -> bool:
    """Whether the current CUDA stream is recording a graph."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]


def check_capture(name: str, groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise, while the current stream is recording, for groups whose step cannot be recorded.

    Raises:
        RuntimeError: naming the group and what would be right.
    """
    if not is_capturing():
        return
    for number, group in enumerate(groups):
        parts = (group, *group.get("overrides", {}).values())
        if not all(part.get("capturable", part is not group) for part in parts):
            raise RuntimeError(
                f"{name}: a CUDA graph is being captured, and param group {number} has capturable=False: a replay "
                "would repeat this step's lr and count; pass capturable=True to the constructor"
            )
        if _on_gpu(group) and not on_device(group.get("lr", 0.0)) and "lr" in group:
            raise RuntimeError(
                f"{name}: lr of param group {number} was set to {group['lr']!r} while a CUDA graph is being captured; "
                "set it before the capture, and change it later with group['lr'].fill_()"
            )


def check_warm(name: str) -> None:
    """Raise, while the current stream is recording, if a step is to be prepared: that cannot be recorded.

    Raises:
        RuntimeError: saying what to do first.
    """
    if is_capturing():
        raise RuntimeError(
            f"{name}: a CUDA graph is being captured, and this step is the first with these parameters and settings: "
            "take one like it before the capture"
        )


def place_lr(name: str, group: dict[str, Any]) -> None:
    """Bring `lr` of a capturable group, and of its overrides, to the GPU of its first parameter; others keep theirs.

    Raises:
        ValueError: for a tensor on the CPU, which whoever holds it would go on changing in vain.
    """
    if not _on_gpu(group):
        return
    for part in (group, *group.get("overrides", {}).values()):
        if not part.get("capturable", group.get("capturable")) or on_device(part.get("lr", 0.0)) or "lr" not in part:
            continue
        lr, device = part["lr"], group["params"][0].device
        if isinstance(lr, Tensor):
            raise ValueError(
                f"{name}: capturable=True reads lr on the GPU, and it is a tensor on the CPU: pass a number, or a "
                f"tensor on {device}"
            )
        part["lr"] = torch.tensor(lr, dtype=torch.float64, device=device)


def adopted_lr(own: Mapping[str, Any], saved: Any) -> Any:
    """A saved `lr` in the form that a group has at present: on its GPU, or a number where it is read by the host."""
    if not isinstance(saved, Tensor):
        return saved  # brought to the GPU with the group's parameters
    if own.get("capturable") and _on_gpu(own):
        return float(saved)
    return saved if isinstance(own.get("lr"), Tensor) or not on_device(saved) else float(saved)


def _on_gpu(group: Mapping[str, Any]) -> bool:
    params = group["params"]
    return bool(params) and params[0].device.type == "cuda"

"""capturable: steps that torch.cuda.graph records, whose `lr` lies on the GPU, and of which the host reads nothing.

A group with `capturable=True` whose parameters are on a GPU keeps its `lr` there, as a tensor of float64 without
dimensions: what a replay reads is what a scheduler wrote with `fill_`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.block import Settings
from optgen.runtime.cuda.paged_memory import asks_for_paging
from optgen.runtime.rule import Rule
from optgen.runtime.settings.validation import on_device

SPARES = 8  # steps that graphs can record between two that are not recorded
NOT_WARM = (
    f"a CUDA graph is being captured, and something has moved since the last step, or it is more than the {SPARES}th "
    "since then: take a step with the same parameters before the capture"
)


def asks_for_capture(settings: Settings) -> bool:
    """Check whether steps of a group or a parameter are to be recorded."""
    return bool(settings.get("capturable"))


def is_capturing() -> bool:
    """Check whether the current CUDA stream is recording a graph."""
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


def check_member(name: str, settings: Settings, param: Tensor, target: str, on_host: bool, rule: Rule) -> None:
    """Raise for a parameter whose steps are to be recorded and cannot be.

    Args:
        on_host: Whether the host keeps states of its group.

    Raises:
        RuntimeError: with the reason, and what would be right.
    """
    if not asks_for_capture(settings):
        return
    if target != "cuda":
        gpu = param.device.type == "cuda"
        way = "see what `optgen doctor` says of the cuda target" if gpu else "move the parameter to an NVIDIA GPU"
        raise RuntimeError(
            f"{name}: capturable=True needs the cuda target, and the {target} target serves a parameter on "
            f"{param.device}; leave capturable out, or {way}"
        )
    if on_host:
        raise RuntimeError(
            f"{name}: capturable=True is not for rules with states of a group, which the host keeps: leave it out"
        )
    if rule.matrix_states:
        raise RuntimeError(
            f"{name}: capturable=True is not for rules whose states are matrices of shapes of their own, which the "
            "host computes with torch: leave it out"
        )
    if any(block.matrices for block in rule.blocks.values()):
        raise RuntimeError(
            f"{name}: capturable=True is not for functions of matrices, whose settings the host reads in every step: "
            "leave it out"
        )
    if asks_for_paging(settings, param.numel()):
        raise RuntimeError(
            f"{name}: capturable=True is not for paged states, which a CUDA graph cannot bring to the GPU: "
            f"leave one out, or override(param, is_paged=False) for this parameter of {param.numel()} elements"
        )


def check_whole(name: str, settings: Settings, what: str) -> None:
    """Raise for a parameter whose steps are to be recorded, if it is divided.

    Args:
        what: The parameter, in words.

    Raises:
        RuntimeError: saying so.
    """
    if asks_for_capture(settings):
        raise RuntimeError(f"{name}: capturable=True is not for {what} that is divided among processes; leave it out")


def place_lr(name: str, group: dict[str, Any]) -> None:
    """Bring `lr` of a capturable group, and of its overrides, to the GPU of its first parameter; others keep theirs.

    Raises:
        ValueError: if it is a tensor on the CPU, whose later changes would have no effect.
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


def place_every_lr(name: str, groups: Iterable[dict[str, Any]]) -> None:
    """Bring `lr` of all capturable groups to their GPUs: it may have been set to a number since the last step."""
    for group in groups:
        if asks_for_capture(group):
            place_lr(name, group)


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


class Recording:
    """The tables of steps that graphs record, one for each: later steps and other graphs have other gradients.

    Args:
        wanted: Whether any step is to be recorded.
        pinned: Makes so many int64 of pinned memory.
        device: Device of the tables.
    """

    def __init__(self, wanted: bool, pinned: Callable[[int], Tensor], device: torch.device) -> None:
        self._wanted, self._pinned, self._device = wanted, pinned, device
        self._spares: list[Tensor] = []  # memory of the host for copies that graphs will record
        self._recorded: list[Tensor] = []  # what graphs have recorded: every replay reads it

    def make_ready(self, length: int) -> None:
        """Make room for steps that may be recorded after one that is not: while a graph is recorded, nothing can."""
        while self._wanted and len(self._spares) < SPARES:
            self._spares.append(self._pinned(length))

    def table(self, numbers: array[int]) -> Tensor:
        """A table for one recorded step alone.

        Raises:
            RuntimeError: if no room was made for it.
        """
        if not self._spares or len(self._spares[-1]) < len(numbers):
            raise RuntimeError(NOT_WARM)
        memory = self._spares.pop()
        table = torch.empty(max(len(numbers), 1), dtype=torch.int64, device=self._device)
        copy_numbers(numbers, memory, table)
        self.hold((memory, table))
        return table

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Keep what a recorded step reads."""
        self._recorded += tensors


def copy_numbers(numbers: array[int], memory: Tensor, table: Tensor) -> None:
    """Copy numbers to the GPU through pinned memory."""
    memory[: len(numbers)].copy_(torch.frombuffer(numbers, dtype=torch.int64))
    table[: len(numbers)].copy_(memory[: len(numbers)], non_blocking=True)

"""Detection of backward passes of a loss scaled by torch.amp.GradScaler: updates within them would be scaled too.

Nothing in autograd tells it. So `GradScaler.scale` is wrapped once, when the first optimizer that updates within
backward asks for it: what it returns calls back as its gradient comes, before those of parameters, and the pass that
does so is remembered by the number that autograd gives it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

_passes: deque[int] = deque(maxlen=64)  # the last ones; those in progress at once are few


def watch() -> None:
    """Watch losses that are scaled from now on; a second call does nothing."""
    scaler = torch.amp.GradScaler
    if not hasattr(scaler.scale, "_optgen_original"):
        scaler.scale = _watched(scaler.scale)  # type: ignore[method-assign]


def is_scaled() -> bool:
    """Check whether the backward pass that has called is one of a scaled loss.

    A pass within a pass, as checkpoints with use_reentrant=True start them, is one of its own and is not known.
    """
    return torch._C._current_graph_task_id() in _passes


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def scale(self: Any, outputs: Any) -> Any:
        result = original(self, outputs)
        if result is not outputs and not is_compiling():  # one that is disabled hands on what it is given
            _look_at(result)
        return result

    scale._optgen_original = original  # type: ignore[attr-defined]
    return scale


def _look_at(scaled: Any) -> None:
    if isinstance(scaled, Tensor):
        if scaled.requires_grad:
            scaled.register_hook(_remember)  # type: ignore[no-untyped-call]
    elif isinstance(scaled, list | tuple):  # an iterator would be used up by looking
        for part in scaled:
            _look_at(part)


def _remember(_: Tensor) -> None:
    number = torch._C._current_graph_task_id()
    if number not in _passes:
        _passes.append(number)

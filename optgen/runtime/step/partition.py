"""Optimizers that have a part of the parameters: those that ZeroRedundancyOptimizer makes, one in each process.

It tells them nothing. torch calls global hooks before the step of every optimizer, its own too, and these note whose
step that takes.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

_PARTS: weakref.WeakSet[Any] = weakref.WeakSet()
_watching = False


def watch_partitions() -> None:
    """Have steps of ZeroRedundancyOptimizer noted, where anything has imported it: whoever makes an optimizer calls."""
    global _watching
    if not _watching and _zero() is not None:
        register_optimizer_step_pre_hook(_note)
        _watching = True


def is_part(optimizer: object) -> bool:
    """Check whether an optimizer is one that ZeroRedundancyOptimizer steps."""
    return optimizer in _PARTS


def _note(optimizer: torch.optim.Optimizer, *_: object) -> None:
    zero = _zero()
    if zero is not None and isinstance(optimizer, zero):
        _PARTS.add(optimizer.optim)


def _zero() -> Any:
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    return None if module is None else module.ZeroRedundancyOptimizer

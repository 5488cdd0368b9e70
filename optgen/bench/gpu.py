"""Timing on a GPU: events around a step, and a copy that empties the L2 cache before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

DEVICE = torch.device("cuda")
COPIED_BYTES = 2**30  # beyond every L2 cache


def why_no_gpu() -> str:
    """Reason in one line why nothing can be measured on a GPU; "" if it can."""
    if torch.cuda.is_available():
        return ""
    built = torch.version.cuda
    reason = "is built without CUDA" if built is None else f"for CUDA {built} finds no NVIDIA GPU"
    return f"--device cuda needs an NVIDIA GPU, and torch {torch.__version__} {reason}"


def event_seconds(run: Callable[[], object]) -> float:
    """The seconds that a GPU takes for what `run` puts on its current stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


class CopyBandwidth:
    """torch's copy of a large buffer: it measures the memory, read and written, and empties the L2 cache."""

    how = "torch.copy_"

    def __init__(self) -> None:
        self.bytes = 2 * COPIED_BYTES
        self.to, self.source = (torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=DEVICE) for _ in range(2))

    def seconds(self) -> float:
        """Run it once; return how long it took."""
        return event_seconds(lambda: self.to.copy_(self.source))


def machine() -> dict[str, Any]:
    """Description of the GPU and of the software that figures depend on."""
    properties = torch.cuda.get_device_properties(DEVICE)
    return {
        "processor": properties.name,
        "memory": properties.total_memory,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
    }

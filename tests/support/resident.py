"""Measures, in a process of its own, how much memory an optimizer's first step makes resident; prints JSON.

    python resident.py CLASS BITS [CLASS BITS ...]

Linux only. Every tensor beyond 64 KiB is to be a mapping of its own, which freeing gives back: the caller sets
MALLOC_MMAP_THRESHOLD_.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from pathlib import Path

import optgen_optim
import torch

from optgen.bench.driving import arguments, begin_training, starting_settings

SHAPE = (2048, 4096)


def resident(field: str) -> int:
    """Bytes of this process in memory: RssAnon now, or VmHWM, the most since it was last reset."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return 1024 * int(found[1])


def give_back() -> None:
    """Return to the system what was freed, which a new tensor would take up again without becoming resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measure(name: str, bits: int) -> dict[str, int]:
    """Bytes that a first step of one parameter makes resident, and the most meanwhile."""
    made = optgen_optim.CLASSES[name]
    target = {"target": "cpu"} if "target" in arguments(made) else {}

    def new(shape: tuple[int, ...]) -> torch.optim.Optimizer:
        param = torch.full(shape, 0.1, requires_grad=True)
        param.grad = torch.full(shape, 0.01)
        optimizer: torch.optim.Optimizer = made([param], **starting_settings(made, bits), **target)
        begin_training(optimizer)
        return optimizer

    new((128, 64)).step()  # compiles, and starts threads
    optimizer = new(SHAPE)
    give_back()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, most_before = resident("RssAnon"), resident("VmHWM")
    optimizer.step()
    return {"more": resident("RssAnon") - before, "most": resident("VmHWM") - most_before}


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    pairs = zip(words[::2], words[1::2], strict=True)
    print(json.dumps([measure(name, int(bits)) for name, bits in pairs]))


if __name__ == "__main__":
    main(sys.argv[1:])

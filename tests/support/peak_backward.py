"""Measures, in a process of its own, the memory that backward and step take beyond what was there; prints JSON.

    python peak_backward.py CLASS [KEY=VALUE ...]

Linux only, as resident.py; MALLOC_MMAP_THRESHOLD_ is to be 65536.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import optgen_optim
import torch
from torch import nn

from support.resident import give_back, resident

LAYERS, WIDTH = 12, 1024  # 12 weights of 4 MiB in float32


def measure(name: str, fused: bool, **settings: Any) -> int:
    """Bytes that one backward pass and step take at most, with states and kernels in place."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)])
    optimizer = optgen_optim.CLASSES[name](model.parameters(), fused_backward=fused, **settings)
    data = torch.randn(1, WIDTH)
    for _ in range(2):
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()
    give_back()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("RssAnon")
    model(data).square().mean().backward()
    optimizer.step()
    return resident("VmHWM") - before - (resident("VmRSS") - resident("RssAnon"))


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    name, *given = words
    settings = {key: json.loads(value) for key, value in (word.split("=", 1) for word in given)}
    found = {kind: measure(name, kind == "fused", **settings) for kind in ("plain", "fused")}
    print(json.dumps({"weights": LAYERS * WIDTH * WIDTH * 4, "weight": WIDTH * WIDTH * 4, **found}))


if __name__ == "__main__":
    main(sys.argv[1:])

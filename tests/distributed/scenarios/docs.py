"""The Python of docs/distributed.md, run as it stands by every process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distributed.scenarios.world import Scenario, Scenarios, World, whole

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "distributed.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)


class Stack(nn.Module):
    """A model with layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(96, 96) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, 96)."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def page(world: World) -> None:
    """A model is divided and trained, saved, and loaded into another one, which goes on as the first does."""
    divide, checkpoint = BLOCKS
    imports, save, load = checkpoint.split("\n\n")
    names: list[dict[str, Any]] = []
    for _ in range(2):
        torch.manual_seed(0)
        names.append({"model": Stack(), "folder": world.folder / "page"})
        exec(compile(divide + imports, "distributed.md", "exec"), names[-1])
    first, second = names
    _train(first)
    assert {entry["exp_avg"].dtype for p, entry in first["optimizer"].state.items() if p.dim() > 1} == {torch.uint8}
    exec(compile(save, "distributed.md", "exec"), first)
    _train(first)
    second.update(zip(("states", "optimizer_states"), _states(second), strict=True))
    exec(compile(load, "distributed.md", "exec"), second)
    _train(second)
    for a, b in zip(first["model"].parameters(), second["model"].parameters(), strict=True):
        assert torch.equal(whole(a), whole(b))


def _states(names: dict[str, Any]) -> Any:
    return names["get_state_dict"](names["model"], names["optimizer"])


def _train(names: dict[str, Any]) -> None:
    names["optimizer"].zero_grad()
    names["model"](torch.linspace(-1, 1, 192).reshape(2, 96)).square().sum().backward()
    names["optimizer"].step()


SCENARIOS: Scenarios = {2: {"page": Scenario(page)}}

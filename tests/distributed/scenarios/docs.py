"""The Python of docs/distributed.md, run as it stands by every process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

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
    divide, checkpoint = BLOCKS[:2]
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


class Part(nn.Module):
    """A stage of a model: its layer, and before the first one an embedding."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, 256) if number == 0 else nn.Identity()
        self.layers = nn.ModuleDict({str(number): nn.Linear(256, 256)})

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch,) before the first stage, (batch, 256) after it."""
        for layer in self.layers.values():
            x = torch.tanh(layer(self.embedding(x)))
        return x


def parts(world: World) -> None:
    """Two stages, with Muon and 8-bit AdamW each, are saved in one flat dict; those who load it go on with its bits."""
    made: list[dict[str, Any]] = []
    for _ in range(2):
        torch.manual_seed(0)
        stages = [Part(0), Part(1)]
        for stage in stages:
            fully_shard(stage, mesh=world.mesh())
        made.append({"parts": stages, "folder": world.folder / "parts"})
        exec(compile(BLOCKS[2], "distributed.md", "exec"), made[-1])
    first, second = made
    _step(first)
    saved = {"model": _weights(first), "optimizer": first["optimizers"]}
    dcp.save(saved, checkpoint_id=first["folder"])
    dcp.load({"model": _weights(second), "optimizer": second["optimizers"]}, checkpoint_id=first["folder"])
    for names in made:
        _step(names)
    for one, other in zip(_weights(first).values(), _weights(second).values(), strict=True):
        assert torch.equal(whole(one), whole(other))
    _, optimizer = second["optimizers"].pairs[0]
    codes = optimizer.state[second["parts"][0].embedding.weight]["exp_avg"]
    assert codes.dtype is torch.uint8


def _weights(names: dict[str, Any]) -> dict[str, Tensor]:
    return {name: tensor for part in names["parts"] for name, tensor in part.state_dict().items()}


def _step(names: dict[str, Any]) -> None:
    first, second = names["parts"]
    second(first(torch.arange(0, 64, 5))).square().sum().backward()
    for _, optimizer in names["optimizers"].pairs:
        optimizer.step()
        optimizer.zero_grad()


SCENARIOS: Scenarios = {2: {"page": Scenario(page), "parts": Scenario(parts)}}

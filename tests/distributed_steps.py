"""What the processes of tests/distributed compute: run as a script, one process a rank.

    python distributed_steps.py MODULES FOLDER RANK WORLD

MODULES, separated by commas, have a dict `SCENARIOS` each: for a number of processes, functions that take a `World` and
return a number or raise; `LeftOut` where something is missing. Process 0 writes what came of each into
FOLDER/results.json.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import distribute_tensor

TIMEOUT = timedelta(seconds=150)  # a busy machine can let one of them wait for long


class LeftOut(Exception):
    """What a scenario needs is not here: its test is skipped, with these words."""


@dataclass
class World:
    """The processes of a run.

    folder: one for all of them.
    """

    rank: int
    size: int
    folder: Path
    meshes: dict[tuple[int, ...], DeviceMesh] = field(default_factory=dict)

    def mesh(self, *shape: int) -> DeviceMesh:
        """A mesh of all processes; made once for each shape, by all of them."""
        shape = shape or (self.size,)
        if shape not in self.meshes:
            names = ("data", "tensor")[: len(shape)]
            self.meshes[shape] = init_device_mesh("cpu", shape, mesh_dim_names=names)
        return self.meshes[shape]


def whole(tensor: Any) -> Tensor:
    """A DTensor's values on every process; a plain tensor as it is."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def gradients(shapes: list[tuple[int, ...]], steps: int, dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """Gradients of a few steps, the same on every process: each element keeps its sign, magnitudes are 0.5 to 1.

    So averages of them, and of their squares, stay within a factor of 2 and 4 of the largest in any block.
    """
    source = torch.Generator().manual_seed(7)
    signs = [torch.randint(0, 2, shape, generator=source) * 2.0 - 1.0 for shape in shapes]
    return [
        [(sign * (0.5 + 0.5 * torch.rand(sign.shape, generator=source))).to(dtype) for sign in signs]
        for _ in range(steps)
    ]


def starts(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Values that parameters begin with, the same on every process."""
    source = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=source).to(dtype) for shape in shapes]


def train_plain(make: Callable[[list[Tensor]], Any], begin: list[Tensor], grads: list[list[Tensor]]) -> list[Tensor]:
    """What one process comes to."""
    params = [torch.nn.Parameter(value.clone()) for value in begin]
    optimizer = make(params)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return [param.detach() for param in params]


def train_parts(
    make: Callable[[list[Tensor]], Any],
    begin: list[Tensor],
    grads: list[list[Tensor]],
    mesh: DeviceMesh,
    placements: list[Any],
) -> tuple[list[Tensor], Any]:
    """What processes with parts of every parameter come to, and the optimizer; placements of each parameter."""
    params = [
        torch.nn.Parameter(distribute_tensor(value.clone(), mesh, placed))
        for value, placed in zip(begin, placements, strict=True)
    ]
    optimizer = make(params)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = distribute_tensor(grad.clone(), mesh, param.placements)
        optimizer.step()
    return [whole(param) for param in params], optimizer


def main(modules: str, folder: str, rank: str, world: str) -> None:
    """Run every scenario; one that fails on any process has failed."""
    torch.set_num_threads(1)
    scenarios = [
        (f"{module}: {name}", scenario)
        for module in modules.split(",")
        for name, scenario in importlib.import_module(module).SCENARIOS.get(int(world), {}).items()
    ]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=int(world), timeout=TIMEOUT
    )
    here = World(int(rank), int(world), Path(folder))
    results: dict[str, Any] = {name: {"error": "the processes ended before it"} for name, _ in scenarios}
    for name, scenario in scenarios:
        begun = time.monotonic()
        try:
            own = {"value": scenario(here)}
        except LeftOut as reason:
            own = {"left out": str(reason)}
        except Exception:
            own = {"error": f"on process {rank}:\n{traceback.format_exc()}"}
            print(f"{name}\n{own['error']}", flush=True)  # if the others wait for this process, nobody else learns it
        every: list[Any] = [None] * here.size
        dist.all_gather_object(every, own)
        errors = [one["error"] for one in every if "error" in one]
        left_out = [one for one in every if "left out" in one]
        results[name] = {"error": "\n".join(errors)} if errors else (left_out or every)[0]
        results[name]["seconds"] = round(time.monotonic() - begun, 2)
        if rank == "0":
            (here.folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    # The module that scenarios import, whose `LeftOut` is theirs; this one has another.
    importlib.import_module("distributed_steps").main(*sys.argv[1:])

"""A scenario's world: its processes, and steps of theirs beside those of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import distribute_tensor as scatter


class LeftOut(Exception):
    """The lack of something that a scenario needs: its test is skipped, with these words."""


@dataclass
class World:
    """The processes of a run.

    Attributes:
        folder: One for all of them; what is kept for other numbers of processes stands in the folder above.
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


@dataclass(frozen=True)
class Scenario:
    """Something that every process of a world computes.

    Attributes:
        run: Returns a number, or nothing; raises if what came is wrong, and `LeftOut` if it cannot be had here.
        needs: Scenarios that must run before, since they leave files: numbers of processes and names in this module.
        full: Whether it is part of the full product alone (-m full).
    """

    run: Callable[[World], Any]
    needs: tuple[tuple[int, str], ...] = ()
    full: bool = False


Scenarios = Mapping[int, Mapping[str, Scenario]]  # by the number of processes and the name


def whole(tensor: Any) -> Tensor:
    """A DTensor's values on every process; a plain tensor as it is."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def check_strides(params: Iterable[Any], values: Iterable[Tensor]) -> None:
    """Raise `LeftOut` where torch itself errs: parameters of these values, divided twice along a dimension.

    torch 2.8 does not put them together again where the first division is uneven, nor divides another tensor alike.
    """
    right = True
    for param, value in zip(params, values, strict=True):
        everywhere = scatter(value, param.device_mesh, [Replicate()] * param.device_mesh.ndim)
        again = everywhere.redistribute(placements=param.placements)
        right = right and torch.equal(whole(param), value) and torch.equal(again.to_local(), param.to_local())
    votes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(votes, right)
    if not all(votes):
        raise LeftOut("this torch does not put together what is divided twice along a dimension unevenly")


def check_means(world: World) -> None:
    """Raise `LeftOut` where torch itself errs: fully_shard of 2.8 adds gradients up on CPUs, and takes no mean."""
    layer = fully_shard(nn.Linear(2, 1, bias=False), mesh=world.mesh())
    layer(torch.ones(1, 2)).sum().backward()
    if not torch.equal(whole(layer.weight.grad), torch.ones(1, 2)):
        raise LeftOut("fully_shard of this torch takes no mean of the processes' gradients")


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


def distribute_tensor(value: Tensor, mesh: DeviceMesh, placements: Any) -> DTensor:
    """A tensor that all processes have: each keeps its part, in memory of its own, and nothing is sent."""
    return scatter(value, mesh, placements, src_data_rank=None).detach().clone()


def train_plain(make: Callable[[list[Tensor]], Any], begin: list[Tensor], grads: list[list[Tensor]]) -> list[Tensor]:
    """Train in one process: the parameters."""
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
    """Train processes with parts of every parameter, placed as told: whole parameters, and the optimizer."""
    params = [
        torch.nn.Parameter(distribute_tensor(value, mesh, placed))
        for value, placed in zip(begin, placements, strict=True)
    ]
    optimizer = make(params)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = distribute_tensor(grad, mesh, param.placements)
        optimizer.step()
    return [whole(param) for param in params], optimizer

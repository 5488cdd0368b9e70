"""Sharded parameters: DTensors (FSDP2, tensor parallelism) and the flat shards of FSDP1.

Kernels work on a shard as on a tensor of its own. What they must know of the whole tensor, and which processes have
the other shards, stands here; step/all_reduce.py adds up what they find.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


@dataclass(frozen=True, eq=False)
class Division:
    """A division of a tensor among the processes of a group; of what dimension, if it is of one."""

    group: Any
    dim: int | None = None


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of a tensor that this process has.

    Attributes:
        shape: Of the whole tensor.
        own: Of the part in memory.
        divisions: Divisions, one after the other: results are summed over their groups.
        offset: Beginning of the part in each dimension; None where it is not a box of the tensor, as in FSDP1.
        start: The number of its first element in the whole tensor, where its elements follow each other there; the
            same on all processes whether this is known.
        placed: The mesh and placements of a DTensor.
        unnamed: Reason why this is not a tensor of the model, in words; "" if it is one.
    """

    shape: torch.Size
    own: torch.Size
    divisions: tuple[Division, ...]
    offset: tuple[int, ...] | None = None
    start: int | None = None
    placed: tuple[Any, Any] | None = None
    unnamed: str = ""

    @property
    def line_shape(self) -> torch.Size:
        """The shape that numbers of rows and columns belong to: whole matrices, if this process has a part of them."""
        if self.offset is None:
            return self.own
        return torch.Size((*self.own[:-2], *self.shape[-2:]))

    def cuts_lines(self, division: Division) -> bool:
        """Check whether a division goes through matrices, so that several processes must sum their rows or columns."""
        return division.dim is not None and division.dim >= len(self.shape) - 2

    @property
    def cuts_matrices(self) -> bool:
        """Check whether processes have different matrices of the tensor."""
        return any(d.dim is not None and d.dim < len(self.shape) - 2 for d in self.divisions)

    @property
    def cuts_channels(self) -> bool:
        """Check whether processes have different matrices of one index of the first dimension."""
        return any(d.dim is not None and 0 < d.dim < len(self.shape) - 2 for d in self.divisions)

    def whole_lines(self, lines: Tensor, over: str, of_none: float) -> Tensor:
        """This part's results of rows or columns among those of no elements, as many as whole matrices have.

        lines: (..., own rows, 1) or (..., 1, own cols), as `over` says.
        """
        assert self.offset is not None
        dim = -2 if over == "row" else -1
        if len(self.shape) < 2 and over == "row":
            return lines
        result = lines.new_full([*lines.shape[:dim], self.shape[dim], *lines.shape[lines.dim() + dim + 1 :]], of_none)
        result.narrow(dim, min(self.offset[dim], self.shape[dim]), lines.shape[dim]).copy_(lines)
        return result

    def own_lines(self, lines: Tensor, over: str) -> Tensor:
        """Undo `whole_lines`: return this process's part of the lines."""
        dim = -2 if over == "row" else -1
        if self.offset is None or (len(self.shape) < 2 and over == "row"):
            return lines
        return lines.narrow(dim, min(self.offset[dim], self.shape[dim]), self.own[dim])

    def element_numbers(self, device: torch.device) -> Tensor:
        """The number in the whole tensor of each element, int64 of shape `own`."""
        if self.start is not None:
            return torch.arange(self.start, self.start + self.own.numel(), device=device).reshape(self.own)
        assert self.offset is not None
        result = torch.zeros(self.own, dtype=torch.int64, device=device)
        stride = 1
        for dim in reversed(range(len(self.own))):
            shape = [-1 if d == dim else 1 for d in range(len(self.own))]
            first = self.offset[dim]
            numbers = torch.arange(first, first + self.own[dim], dtype=torch.int64, device=device)
            result += (stride * numbers).reshape(shape)
            stride *= self.shape[dim]
        return result


Box = tuple[tuple[int, ...], torch.Size]
"""A part of a tensor: where it begins in each dimension, and its sizes."""


@dataclass(frozen=True, eq=False)
class Owner:
    """The owner of a parameter's matrices, who computes on them for all processes that have it or parts of it.

    Attributes:
        group: These processes.
        rank: The owner's among them.
        here: Whether this process is the owner.
        boxes: The part of the parameter that each of them has; None if it takes no part.
        replicated: Whether each of them has all of the parameter and of its states.
    """

    group: Any
    rank: int
    here: bool
    boxes: tuple[Box | None, ...]
    replicated: bool = False

    @property
    def keeps_matrices(self) -> bool:
        """True if this process keeps the states that are matrices of their own dimensions."""
        return self.here or self.replicated


PLAIN = (Tensor, Parameter)


def is_dtensor(value: object) -> bool:
    """Check whether a value is a DTensor; while nothing has imported them, nothing is."""
    if type(value) in PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """The part of a tensor in this process's memory; a plain tensor is all of it."""
    if not is_dtensor(tensor):
        return tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local.detach()


def local_gradient(param: Tensor, grad: Tensor) -> Tensor:
    """The part of a gradient that belongs to the part of the parameter; brought there if it lies otherwise.

    Raises:
        ValueError: if this process has another part of the gradient than of the parameter.
    """
    if not is_dtensor(param):
        return grad
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    if grad.device_mesh != mesh or tuple(grad.placements) != tuple(placements):  # type: ignore[attr-defined]
        with torch.no_grad():
            grad = grad.redistribute(mesh, placements)  # type: ignore[attr-defined]
    own, wanted = local_tensor(grad), local_tensor(param).shape
    if own.shape != wanted:
        raise ValueError(
            f"this process has {tuple(own.shape)} of a gradient and {tuple(wanted)} of its parameter, a DTensor: they "
            "are divided unlike each other, though their placements are the same"
        )
    return own


def with_stand_ins(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients, empty ones where FSDP1 has left a parameter to other processes: they take part in its results."""
    flat = [i for i, grad in enumerate(grads) if grad is None and getattr(params[i], "_fsdp_flattened", False)]
    result = list(grads)
    if not flat or (all(grad is None for grad in grads) and any(param.numel() for param in params)):
        return result
    for i in flat:
        if params[i].requires_grad and params[i].numel() == 0:
            result[i] = torch.empty_like(params[i]).detach()
    return result

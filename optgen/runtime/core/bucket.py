"""The parameters of a step, sorted into buckets that share a kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.runtime.block import Flags, Settings
from optgen.runtime.core.shards import Owner, Shard
from optgen.runtime.rule import Rule, State
from optgen.runtime.settings.param_groups import DTYPES


@dataclass(eq=False)
class Member:
    """One parameter of a step.

    Attributes:
        param: Tensor that kernels work on: the parameter, or the part of it that this process has.
        position: Its position among the parameters of the step.
        index: Its position in its group.
        row: Its row among the settings of the step.
        entry: `optimizer.state[param]`.
        codecs: Of every state that has codecs, those of elements first.
        number: Its position among all parameters of the optimizer.
        rounding: Its rounding, a name of PARAMETER_CODECS.
        whole: The optimizer's parameter.
        shard: Place of `param` in it; None where it is all of it.
        form: Shape that kernels see it in, where that is not its own.
        count: Number of steps it has had, exact: float64 of shape (), where `entry["step"]` lies.
        owner: The process that computes on its matrices for others too, if one does.
    """

    param: Tensor
    whole: Tensor
    position: int
    index: int
    row: int
    settings: Settings
    entry: dict[str, Any]
    flags: Flags
    codecs: tuple[Codec, ...]
    number: int = 0
    rounding: str = "nearest"
    shard: Shard | None = None
    form: torch.Size | None = None
    count: Tensor | None = None
    owner: Owner | None = None

    def state_shape(self, state: State) -> torch.Size:
        """The shape of a state that has codecs, of which this process has its part; of a matrix all or nothing."""
        if not state.dims:
            return self.param.shape
        return state.shape(self.shape, self.settings, here=self.owner is None or self.owner.keeps_matrices)

    @property
    def seen(self) -> torch.Size:
        """The shape that kernels see it in."""
        return self.param.shape if self.form is None else self.form

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole tensor."""
        return self.seen if self.shard is None else self.shard.shape

    @property
    def line_shape(self) -> torch.Size:
        """The shape that numbers of rows and columns belong to: whole matrices, if this process has a part of them."""
        return self.seen if self.shard is None else self.shard.line_shape

    def layout(self) -> Layout:
        """Its rows and columns, and those in memory."""
        return layout_of(self.seen, self.shard)


def forms_of(member: Member) -> list[Any]:
    """Forms of a parameter and its states, with which tensors they are: an engine is built for these."""
    values = (member.param, *member.entry.values())
    return [(id(value), _form(value) if isinstance(value, Tensor) else None) for value in values]


def _form(tensor: Tensor) -> tuple[Any, ...]:
    dense = tensor.layout is torch.strided
    return tensor.dtype, tensor.device, tensor.shape, tensor.layout, dense and tensor.is_contiguous()


@dataclass(eq=False)
class Bucket:
    """Parameters that one kernel serves: same target, dtypes, flags, codecs and rounding."""

    target: str
    dtype: torch.dtype
    grad_dtype: torch.dtype
    device: torch.device
    flags: Flags
    codecs: tuple[Codec, ...]
    rounding: str = "nearest"
    members: list[Member] = field(default_factory=list)

    @cached_property
    def _pick(self) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
        positions = [member.position for member in self.members]
        return itemgetter(*positions) if len(positions) > 1 else lambda grads: (grads[positions[0]],)

    def gradients(self, grads: list[Tensor]) -> list[Tensor]:
        """Gradients of the members, among those of a step."""
        # Positions are given in the order of the members, so that a bucket of all of them has them all in order.
        return grads if len(grads) == len(self.members) else list(self._pick(grads))


class StaleError(Exception):
    """Raised if what an engine was built for has changed: it must be built again. Nothing has been computed yet."""


def check_gradient(name: str, grad: Tensor, param: Tensor) -> None:
    """Raise for a gradient that no kernel can read.

    Raises:
        RuntimeError: for sparse gradients.
        TypeError: for complex ones and other dtypes.
        ValueError: for another shape or device.
    """
    if grad.layout is not torch.strided:
        raise RuntimeError(f"{name} does not support sparse gradients, got {grad.layout}; use dense ones")
    if grad.dtype not in DTYPES and not grad.dtype is param.dtype is torch.float64:
        allowed = "float32, bfloat16 and float16"
        raise TypeError(f"{name}: gradients are {allowed}, not {str(grad.dtype).removeprefix('torch.')}")
    if grad.shape != param.shape:
        raise ValueError(f"{name}: a gradient of shape {tuple(grad.shape)} for a parameter of {tuple(param.shape)}")
    if grad.device != param.device:
        raise ValueError(f"{name}: a gradient on {grad.device} for a parameter on {param.device}")


def is_like(grad: Tensor, param: Tensor) -> bool:
    """Check whether a gradient is dense and of the parameter's shape; one can be given other memory in place."""
    return grad.layout is torch.strided and grad.shape == param.shape


@dataclass(frozen=True)
class Layout:
    """The matrices of a tensor: the last two dimensions and all before them; a vector is one row.

    Attributes:
        matrices: Number of those that this process has, at least in part.
        rows, cols: Of a whole matrix.
        own_rows, own_cols: Of a matrix in this process's memory.
        first_row, first_col: Place of the part's beginning in the whole matrix.
        channels: Indices of the first dimension that these matrices have.
        channel_rows: Rows of each of those.
        planes, blocks: Indices of the third and fourth dimension from the end that these matrices have.
    """

    matrices: int
    rows: int
    cols: int
    own_rows: int
    own_cols: int
    first_row: int = 0
    first_col: int = 0
    channels: int = 1
    channel_rows: int = 1
    planes: int = 1
    blocks: int = 1


def layout_of(shape: torch.Size, shard: Shard | None) -> Layout:
    """The layout of what this process has, whose shape is `shape`."""
    matrices, rows, cols = matrix_shape(shape)
    lines = shape if shard is None else shard.line_shape
    channels = (lines[0], lines[1:-1].numel()) if len(lines) > 1 else (1, 1)
    others = (*channels, *(lines[-dim] if len(lines) >= dim else 1 for dim in (3, 4)))
    if shard is None or shard.offset is None:
        return Layout(matrices, rows, cols, rows, cols, 0, 0, *others)
    _, whole_rows, whole_cols = matrix_shape(shard.line_shape)
    first_row, first_col = (0, 0, *shard.offset)[-2:]
    first_row = first_row if len(shape) > 1 else 0
    return Layout(matrices, whole_rows, whole_cols, rows, cols, first_row, first_col, *others)


def matrix_shape(shape: torch.Size) -> tuple[int, int, int]:
    """(matrices, rows, cols): the last two dimensions and all before them; a vector is one row."""
    if len(shape) < 2:
        return 1, 1, max(shape.numel(), 1)
    matrices = torch.Size(shape[:-2]).numel()
    return matrices, shape[-2], shape[-1]


def sizes_of(shape: torch.Size) -> dict[str, int]:
    """Sizes of dimensions by the names that facts have: 1 for a dimension that there is not."""
    rank = len(shape)
    sizes = {f"size{dim}": shape[dim] if dim < rank else 1 for dim in range(4)}
    return sizes | {f"size_{dim}": shape[-dim] if dim <= rank else 1 for dim in (3, 4)}


def flags_of(
    rule: Rule, settings: Settings, shape: torch.Size, index: int, scaled: frozenset[str], step: int = 0
) -> Flags:
    """The flags of a parameter of this shape, in a step of this number."""
    return rule.flags(settings, len(shape), shape.numel(), index, scaled, step)

"""The parameters of a step, sorted into buckets that share a kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from optgen.codecs import Codec
from optgen.dtypes import PARAM_DTYPES
from optgen.runtime.core.shards import Part
from optgen.runtime.rule import Flags, Rule, Settings

DTYPES: tuple[torch.dtype, ...] = tuple(getattr(torch, dtype.name) for dtype in PARAM_DTYPES)


@dataclass(eq=False)
class Member:
    """One parameter of a step.

    Attributes:
        param: What kernels work on: the parameter, or the part of it that this process has.
        position: Its position among the parameters of the step.
        index: Its position in its group.
        row: Its row among the settings of the step.
        entry: `optimizer.state[param]`.
        codecs: Of every element state.
        number: Its position among all parameters of the optimizer.
        rounding: How it is rounded, a name of PARAMETER_CODECS.
        whole: The optimizer's parameter.
        part: Where `param` lies in it; None where it is all of it.
        count: How many steps it has had, exact: float64 of shape (), where `entry["step"]` lies.
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
    part: Part | None = None
    count: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole tensor."""
        return self.param.shape if self.part is None else self.part.shape

    @property
    def line_shape(self) -> torch.Size:
        """The shape that numbers of rows and columns belong to: whole matrices, if this process has a part of them."""
        return self.param.shape if self.part is None else self.part.line_shape

    def layout(self) -> Layout:
        """Its rows and columns, and those in memory."""
        return layout_of(self.param.shape, self.part)


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
        """Those of the members, of the gradients of a step."""
        # Positions are given in the order of the members, so that a bucket of all of them has them all in order.
        return grads if len(grads) == len(self.members) else list(self._pick(grads))


class StaleError(Exception):
    """What an engine was built for has changed since: it must be built anew. Nothing has been computed yet."""


def as_list(name: str, params: Any) -> list[Any]:
    """What an optimizer is given to train, as a list.

    Raises:
        TypeError: for what is no iterable, and for single tensors and dicts.
        ValueError: if it is empty.
    """
    wanted = f"{name}: params argument given to the optimizer should be an iterable of Tensors or dicts"
    if isinstance(params, Tensor):
        raise TypeError(f"{wanted}, not a single tensor; write [param]")
    if isinstance(params, Mapping | str | bytes):
        raise TypeError(f"{wanted}, not a {type(params).__name__}; write a list")
    try:
        result = list(params)
    except TypeError:
        raise TypeError(f"{wanted}, not {params!r}") from None
    if not result:
        raise ValueError(f"{name}: optimizer got an empty parameter list; pass model.parameters()")
    return result


def unnamed(name: str, params: Any) -> dict[str, list[Any]]:
    """A group's parameters as a list, and their names if it has any: not every torch takes named parameters apart.

    Raises:
        TypeError: for what has no order.
        ValueError: if some have names and others have none.
    """
    if isinstance(params, Tensor):
        return {"params": [params]}
    if isinstance(params, set):
        raise TypeError(f"{name}: optimizer parameters need to be organized in ordered collections, not in a set")
    if isinstance(params, str) or not hasattr(params, "__iter__"):
        raise TypeError(f"{name}: params of a group is a list of tensors, not a {type(params).__name__}")
    members = list(params)
    named = [isinstance(member, tuple) and len(member) == 2 for member in members]
    if not any(named):
        return {"params": members}
    if not all(named):
        raise ValueError(
            f"{name}: all optimizer params should be with/without names. Some param names are missing: number "
            f"{named.index(False)} has none"
        )
    return {"params": [param for _, param in members], "param_names": [label for label, _ in members]}


def check_names(name: str, given: Any, group: Mapping[str, Any]) -> None:
    """Raise for `param_names` of a group that are not the names of its parameters.

    Args:
        given: As the user gave them; None if not at all.
        group: With `params` as a list, and the names that came with them.

    Raises:
        TypeError: for what is no list of strings.
        ValueError: if there are more or fewer than parameters, or others than came with these.
    """
    if given is None:
        return
    if not isinstance(given, list | tuple) or not all(isinstance(label, str) for label in given):
        raise TypeError(f"{name}: param_names is a list of strings, not {given!r}")
    if len(given) != len(group["params"]):
        raise ValueError(f"{name}: a group has {len(given)} param_names for {len(group['params'])} parameters")
    for label, other in zip(group["param_names"], given, strict=True):
        if label != other:
            raise ValueError(f"{name}: a parameter is named {label!r} and, in param_names, {other!r}; give one of them")


def check_parameter(name: str, param: Any) -> None:
    """Raise for what no kernel can train.

    Raises:
        TypeError: naming the class, and the dtype, layout or device.
    """
    if not isinstance(param, Tensor):
        raise TypeError(
            f"{name}: optimizer can only optimize Tensors, but one of the params is {torch.typename(param)}"
        )
    if param.is_meta:
        raise TypeError(f"{name}: parameters on the 'meta' device have no values; move the model to a real one first")
    if param.is_complex() or param.dtype not in DTYPES:
        allowed = "float32, bfloat16 and float16"
        raise TypeError(f"{name}: parameters are {allowed}, not {str(param.dtype).removeprefix('torch.')}")
    if param.layout is not torch.strided:
        raise TypeError(f"{name}: parameters are dense, not {param.layout}")
    if any(stride == 0 and size > 1 for stride, size in zip(param.stride(), param.shape, strict=True)):
        raise ValueError(
            f"{name}: a parameter of shape {tuple(param.shape)} is expanded: its elements share memory; clone it"
        )


def check_twice(name: str, params: Sequence[Tensor]) -> None:
    """Raise for a parameter that a group holds twice: a step would update it twice.

    Raises:
        ValueError: naming its places.
    """
    first: dict[int, int] = {}
    for index, param in enumerate(params):
        if first.setdefault(id(param), index) != index:
            places = f"{first[id(param)]} and {index}"
            raise ValueError(f"{name}: a param group holds the same parameter twice, at positions {places}")


def check_groups(name: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise for parameters that were put into groups by hand, and that a step would update twice.

    Raises:
        TypeError: for `params` that are no list.
        ValueError: naming the groups of one that stands in two places.
    """
    owner: dict[int, int] = {}
    for number, group in enumerate(groups):
        params = group["params"]
        if not isinstance(params, list | tuple):
            raise TypeError(f"{name}: params of param group {number} is a list, not a {type(params).__name__}")
        check_twice(name, params)
        for param in params:
            if owner.setdefault(id(param), number) != number:
                raise ValueError(f"{name}: param groups {owner[id(param)]} and {number} hold the same parameter")


def check_gradient(name: str, grad: Tensor, param: Tensor) -> None:
    """Raise for a gradient that no kernel can read.

    Raises:
        RuntimeError: for sparse gradients.
        TypeError: for complex ones and other dtypes.
        ValueError: for another shape or device.
    """
    if grad.layout is not torch.strided:
        raise RuntimeError(f"{name} does not support sparse gradients, got {grad.layout}; use dense ones")
    if grad.dtype not in DTYPES:
        allowed = "float32, bfloat16 and float16"
        raise TypeError(f"{name}: gradients are {allowed}, not {str(grad.dtype).removeprefix('torch.')}")
    if grad.shape != param.shape:
        raise ValueError(f"{name}: a gradient of shape {tuple(grad.shape)} for a parameter of {tuple(param.shape)}")
    if grad.device != param.device:
        raise ValueError(f"{name}: a gradient on {grad.device} for a parameter on {param.device}")


def is_like(grad: Tensor, param: Tensor) -> bool:
    """Whether a gradient is dense and of the parameter's shape; one can be given other memory in place."""
    return grad.layout is torch.strided and grad.shape == param.shape


@dataclass(frozen=True)
class Layout:
    """The matrices of a tensor: the last two dimensions and all before them; a vector is one row.

    Attributes:
        matrices: How many this process has a part of, or all of.
        rows, cols: Of a whole matrix.
        own_rows, own_cols: Of a matrix in this process's memory.
        first_row, first_col: Where that begins in the whole one.
    """

    matrices: int
    rows: int
    cols: int
    own_rows: int
    own_cols: int
    first_row: int = 0
    first_col: int = 0


def layout_of(shape: torch.Size, part: Part | None) -> Layout:
    """The layout of what this process has, whose shape is `shape`."""
    matrices, rows, cols = matrix_shape(shape)
    if part is None or part.offset is None:
        return Layout(matrices, rows, cols, rows, cols)
    _, whole_rows, whole_cols = matrix_shape(part.line_shape)
    first_row, first_col = (0, *part.offset)[-2:]
    return Layout(matrices, whole_rows, whole_cols, rows, cols, first_row if len(shape) > 1 else 0, first_col)


def matrix_shape(shape: torch.Size) -> tuple[int, int, int]:
    """(matrices, rows, cols): the last two dimensions and all before them; a vector is one row."""
    if len(shape) < 2:
        return 1, 1, max(shape.numel(), 1)
    matrices = torch.Size(shape[:-2]).numel()
    return matrices, shape[-2], shape[-1]


def flags_of(rule: Rule, settings: Settings, shape: torch.Size, index: int, scaled: frozenset[str]) -> Flags:
    """The flags of a parameter of this shape."""
    return rule.flags(settings, len(shape), shape.numel(), index, scaled)

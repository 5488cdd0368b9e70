"""Small trainings whose gradients depend on nothing but the number of the step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from support.catalogue import shapes_of
from torch import Tensor, nn

SHAPES = ((40, 30), (300,), (7,), ())
# torch 2.8 compiles again for every number of a param group that a compiled function leads to.
GUARDS_NUMBERS = torch.__version__.startswith("2.8.")
SMALL = 256  # as min_8bit_size: the first two of SHAPES have 8-bit states, the others 32-bit ones


def make_params(
    dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES, of: str | None = None
) -> list[nn.Parameter]:
    """The same values at every call; in shapes that a class takes, if one is named."""
    shapes = shapes if of is None else shapes_of(of, shapes)
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_grads(params: Sequence[Tensor], step: int) -> None:
    """Fresh gradients, as after `zero_grad(set_to_none=True)`."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        grad = torch.randn(param.shape, generator=generator) * (1 + step % 3)
        param.grad = grad.to(param.dtype)


def train(opt: torch.optim.Optimizer, params: Sequence[Tensor], first: int, last: int) -> None:
    """Steps `first` to `last`."""
    for step in range(first, last + 1):
        set_grads(params, step)
        opt.step()


def gradients(step: int, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Gradients of a step, the same at every call."""
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def run(opt: Any, params: Sequence[nn.Parameter], steps: range) -> None:
    """Steps of these numbers with `gradients`."""
    for step in steps:
        for param, grad in zip(params, gradients(step, [tuple(param.shape) for param in params]), strict=True):
            param.grad = grad
        opt.step()


def snapshot(opt: torch.optim.Optimizer, params: Sequence[Tensor]) -> dict[str, Any]:
    """Copies of all that a step changes."""
    return {
        "params": [param.detach().clone() for param in params],
        "states": [{key: _copy(value) for key, value in opt.state.get(param, {}).items()} for param in params],
        "groups": [{k: _copy(v) for k, v in group.items() if k != "params"} for group in opt.param_groups],
    }


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, dtypes included."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def saved(opt: torch.optim.Optimizer) -> dict[str, Any]:
    """A checkpoint that went through a file, read without running code."""
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    result: dict[str, Any] = torch.load(file, weights_only=True)
    return result

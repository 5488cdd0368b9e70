"""Short trainings of the cuda target: cases that together reach every kind of pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optgen_optim
import torch
from runtime.training import snapshot
from torch import Tensor

import optgen
from support.catalogue import required, shapes_of
from support.compiling import ROOT

ADAFACTOR = ROOT / "tests" / "specs" / "adafactor.yaml"
SOME_STEPS = ROOT / "tests" / "specs" / "some_steps.yaml"
# Bands, blocks that end early, more chunks than a grid of the stand-in has blocks.
SHAPES: list[tuple[int, ...]] = [(70, 300), (300, 33), (5000,), (257,), (), (1,), (3, 4, 40, 7), *[(129,)] * 20]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "AdamW8bit": ("AdamW8bit", {"min_8bit_size": 0}),
    "AdamW8bit-tensorwise": ("AdamW8bit", {"min_8bit_size": 0, "block_wise": False}),
    "LAMB8bit-clipped": ("LAMB8bit", {"min_8bit_size": 0, "percentile_clipping": 50}),
    "LARS": ("LARS", {}),
    "Adafactor": ("Adafactor", {"beta1": 0.9}),
    "SomeSteps": ("SomeSteps", {}),
}


def cls(name: str) -> Any:
    """A class of the catalogue, or of tests/specs."""
    if name == "Adafactor":
        return optgen.load(ADAFACTOR).Adafactor
    if name == "SomeSteps":
        return optgen.load(SOME_STEPS).SomeSteps
    return getattr(optgen_optim, name)


def draw(shapes: Sequence[Any], seed: int, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> list[Tensor]:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def set_grads(params: Sequence[Tensor], seed: int, dtype: torch.dtype | None = None) -> None:
    """Fresh gradients, of another dtype if one is named."""
    grads = draw([param.shape for param in params], seed, dtype or params[0].dtype, params[0].device)
    for param, grad in zip(params, grads, strict=True):
        param.grad = None
        param.grad_dtype = grad.dtype
        param.grad = grad


def train(opt: torch.optim.Optimizer, params: Sequence[Tensor], steps: int, **how: Any) -> dict[str, Any]:
    """State after steps on gradients that are always the same."""
    for step in range(steps):
        set_grads(params, step, **how)
        opt.step()
    return snapshot(opt, params)


def new(
    name: str, shapes: Sequence[Any] = SHAPES, target: str = "cuda", device: Any = "cpu", **settings: Any
) -> tuple[Any, list[Tensor]]:
    """An optimizer and its parameters, always the same."""
    if name not in ("Adafactor", "SomeSteps"):
        shapes = shapes_of(name, shapes)
    params = [value.requires_grad_() for value in draw(shapes, 99, device=device)]
    if name not in ("Adafactor", "SomeSteps"):
        settings = {**required(name), "lr": 0.01, **settings}
    return cls(name)(params, target=target, **settings), params

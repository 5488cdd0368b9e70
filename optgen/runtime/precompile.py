"""Compiles the kernels that most steps use, before anyone asks for them."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from optgen.runtime.cpu_engine import CpuEngine
from optgen.runtime.optimizer import Optimizer

DTYPES = (torch.float32, torch.bfloat16)
SHAPES = ((64, 64), (64,))  # one tensor at the default min_8bit_size, one below it
STARTS = {"lr": 1e-3, "momentum": 0.9}  # for classes that must be told


def compile_package(package: str, directory: Path) -> int:
    """Compile every class of a generated package under its default settings, for float32 and bfloat16 parameters.

    Args:
        package: The package's name.
        directory: Where it was written.

    Returns:
        How many libraries that makes.

    Raises:
        CompileError: when a kernel cannot be built.
    """
    sys.path.insert(0, str(directory.resolve().parent))
    try:
        classes: dict[str, type[Optimizer]] = importlib.import_module(package).CLASSES
    finally:
        sys.path.pop(0)
    libraries = set()
    for optimizer_class in classes.values():
        if "target" in optimizer_class.fixed:
            continue
        for dtype in DTYPES:
            libraries |= _compile(optimizer_class, dtype)
    return len(libraries)


def _compile(optimizer_class: Callable[..., Optimizer], dtype: torch.dtype) -> set[str]:
    """The libraries that a step of a class takes."""
    params = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in SHAPES]
    for param in params:
        param.grad = torch.zeros_like(param)
    arguments = inspect.signature(optimizer_class).parameters
    settings = {name: value for name, value in STARTS.items() if name in arguments}
    optimizer = optimizer_class(params, **settings, target="cpu")
    optimizer.step()
    engines = optimizer._kept[0].engines if optimizer._kept else ()
    return {engine.library._name for engine in engines if isinstance(engine, CpuEngine)}

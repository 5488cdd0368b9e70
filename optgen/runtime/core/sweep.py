"""Sweep over all tensors of a step: their gradients, addresses and forms.

A user may change any of it between two steps. With a thousand small tensors looking takes longer than computing, so
sweep.cpp does the same some ten times as fast. It is compiled in the background once steps have gone on for a while,
where a C++ compiler and Python's headers are found; until then, and elsewhere, plain Python looks.
"""

from __future__ import annotations

import threading
import time
from array import array
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

SOURCE = Path(__file__).with_name("sweep.cpp")
MANY = 16  # tensors from which on it pays
PATIENCE = 30.0  # seconds of steps with the same engines after which compiling pays
Facts = object  # two of them are equal if nothing has changed between; what it is, is each way's own


class Sweep(Protocol):
    """One way to look."""

    def gradients(self, params: list[Tensor]) -> list[Tensor | None]:
        """The `.grad` of every parameter."""

    def dtypes(self, tensors: list[Tensor]) -> list[torch.dtype]:
        """The dtype of every tensor."""

    def identities(self, objects: list[Any]) -> bytes:
        """Identities of these objects, 8 bytes each."""

    def facts(self, tensors: list[Tensor], entries: list[dict[str, Any]]) -> Facts:
        """Address, dtype, shape and contiguity of every tensor; of those in entries, length and not shape."""

    def addresses(self, tensors: list[Tensor], like: list[Tensor]) -> bytes | None:
        """Addresses of the tensors, 8 bytes each.

        None if one is no dense, contiguous tensor of its own values, or not of the shape of its partner in `like`.
        """

    def mark_changed(self, tensors: list[Tensor]) -> None:
        """Let autograd know, which refuses to go back through values that have changed since."""


class PlainSweep:
    """Looks in Python."""

    def gradients(self, params: list[Tensor]) -> list[Tensor | None]:
        """Read the gradients attribute by attribute."""
        return [param.grad for param in params]

    def dtypes(self, tensors: list[Tensor]) -> list[torch.dtype]:
        """Read the dtypes from torch's objects."""
        return [tensor.dtype for tensor in tensors]

    def identities(self, objects: list[Any]) -> bytes:
        """Look up identities by `id`."""
        return array("q", map(id, objects)).tobytes()

    def facts(self, tensors: list[Tensor], entries: list[dict[str, Any]]) -> Facts:
        """Lists of each; of entries only what tells when a state is another."""
        values = [value for entry in entries for value in entry.values()]
        try:
            places: list[Facts] = [(v.data_ptr(), v.dtype, v.numel(), v.is_contiguous()) for v in values]
        except (AttributeError, TypeError, RuntimeError):  # something without an address lies among them
            places = list(map(_place, values))
        return forms(tensors), [tensor.data_ptr() for tensor in tensors], places

    def addresses(self, tensors: list[Tensor], like: list[Tensor]) -> bytes | None:
        """Look up addresses by `data_ptr`."""
        for tensor, other in zip(tensors, like, strict=True):
            if not tensor.is_contiguous() or tensor.is_neg() or tensor.shape != other.shape:
                return None
        return array("q", [tensor.data_ptr() for tensor in tensors]).tobytes()

    def mark_changed(self, tensors: list[Tensor]) -> None:
        """Use torch's own call."""
        try:
            increment_version(tensors)
        except (TypeError, RuntimeError):  # a torch that takes one tensor at a time
            for tensor in tensors:
                increment_version(tensor)


def forms(tensors: list[Tensor]) -> list[tuple[torch.dtype, torch.Size, bool]]:
    """Forms for which tables and kernels are made: dtypes, shapes, contiguity."""
    return [(tensor.dtype, tensor.shape, tensor.is_contiguous()) for tensor in tensors]


def _place(value: Any) -> Facts:
    try:
        return value.data_ptr(), value.dtype, value.numel(), value.is_contiguous()
    except (AttributeError, TypeError, RuntimeError):
        return id(value)


PLAIN: Sweep = PlainSweep()
used: Sweep = PLAIN
_builder: threading.Thread | None = None
_looked = False  # whether the cache has been asked


def settle(since: float) -> None:
    """Check whether it is time for sweep.cpp: at once where the cache has it, else when it pays to compile it.

    Args:
        since: Time of the first step with these engines, as `time.monotonic` counts.
    """
    global _builder, _looked
    if _builder is not None or used is not PLAIN:
        return
    if not _looked:
        from optgen.runtime.building.extension import is_stored

        _looked = True
        if is_stored(SOURCE):
            compile_now()
    elif time.monotonic() - since > PATIENCE:
        _builder = threading.Thread(target=compile_now, args=(True,), name="optgen-sweep", daemon=True)
        _builder.start()


def compile_now(behind: bool = False) -> Sweep:
    """Compile sweep.cpp, or take it from the cache, and use it from now on; where that fails, Python goes on looking.

    Args:
        behind: Whether the compiler is to leave the processor to others.

    Returns:
        What is used from now on. Where it is Python, `optgen doctor` says why.
    """
    global used
    try:
        used = compiled_sweep(behind)
    except Exception:  # nobody waits for it, and there is another way
        used = PLAIN
    return used


def compiled_sweep(behind: bool = False) -> Sweep:
    """The functions of sweep.cpp, built only if no cache has them.

    Args:
        behind: Whether the compiler is to leave the processor to others.

    Raises:
        CompileError: if the compiler or Python's headers are missing, or it cannot be built or loaded.
    """
    from optgen.runtime.building.extension import load_extension

    functions = [name for name in vars(Sweep) if not name.startswith("_")]
    return cast(Sweep, load_extension(SOURCE, functions, behind))

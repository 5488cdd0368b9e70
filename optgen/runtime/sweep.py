"""What every step looks at in all of its tensors: their gradients, where they lie, which form they have.

A user may change any of it between two steps. With a thousand small tensors looking takes longer than computing, so
sweep.cpp does the same some ten times as fast. It is compiled in the background once steps repeat, where a C++
compiler and Python's headers are found; until then, and elsewhere, plain Python looks.
"""

from __future__ import annotations

import operator
import threading
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

PATIENCE = 16  # steps with the same engines, and tensors in them, from which on compiling pays
Facts = object  # two of them are equal if nothing has changed between; what it is, is each way's own


class Sweep(Protocol):
    """One way to look."""

    def gradients(self, params: list[Tensor]) -> list[Tensor | None]:
        """The `.grad` of every parameter."""

    def dtypes(self, tensors: list[Tensor]) -> list[torch.dtype]:
        """The dtype of every tensor."""

    def identities(self, objects: list[Any]) -> bytes:
        """Which objects these are, 8 bytes each."""

    def facts(self, tensors: list[Tensor], entries: list[dict[str, Any]]) -> Facts:
        """Address, dtype, shape and contiguity of every tensor, and of every tensor in the entries."""

    def addresses(self, tensors: Sequence[Tensor]) -> bytes | None:
        """Where the tensors lie, 8 bytes each; None if one is no dense, contiguous tensor of its own values."""

    def mark_changed(self, tensors: list[Tensor]) -> None:
        """Let autograd know, which refuses to go back through values that have changed since."""


class PlainSweep:
    """Looks in Python."""

    def gradients(self, params: list[Tensor]) -> list[Tensor | None]:
        """Attribute by attribute."""
        return [param.grad for param in params]

    def dtypes(self, tensors: list[Tensor]) -> list[torch.dtype]:
        """As torch's objects."""
        return list(map(_dtype, tensors))

    def identities(self, objects: list[Any]) -> bytes:
        """As `id` says."""
        return array("q", map(id, objects)).tobytes()

    def facts(self, tensors: list[Tensor], entries: list[dict[str, Any]]) -> Facts:
        """Forms, addresses, and places of states: lists."""
        return forms(tensors), list(map(Tensor.data_ptr, tensors)), places(entries)

    def addresses(self, tensors: Sequence[Tensor]) -> bytes | None:
        """As `data_ptr` says."""
        if not all(map(Tensor.is_contiguous, tensors)) or any(map(Tensor.is_neg, tensors)):
            return None
        return array("q", map(Tensor.data_ptr, tensors)).tobytes()

    def mark_changed(self, tensors: list[Tensor]) -> None:
        """By torch's own way to say it."""
        try:
            increment_version(tensors)
        except (TypeError, RuntimeError):  # a torch that takes one tensor at a time
            for tensor in tensors:
                increment_version(tensor)


_dtype = operator.attrgetter("dtype")
_shape = operator.attrgetter("shape")


def forms(tensors: list[Tensor]) -> tuple[list[torch.dtype], list[torch.Size], list[bool]]:
    """What tables and kernels are made for."""
    return list(map(_dtype, tensors)), list(map(_shape, tensors)), list(map(Tensor.is_contiguous, tensors))


def places(entries: list[dict[str, Any]]) -> list[int]:
    """Where states lie and how long they are: a user may put others in their place, or give them other memory."""
    values = list(chain.from_iterable(map(dict.values, entries)))
    try:
        return [*map(Tensor.data_ptr, values), *map(Tensor.numel, values)]
    except TypeError:  # something that is no tensor lies among them
        tensors = [value for value in values if isinstance(value, Tensor)]
        return [*map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors)]


PLAIN: Sweep = PlainSweep()
used: Sweep = PLAIN
failure = ""  # why sweep.cpp could not be compiled
_builder: threading.Thread | None = None


def compile_soon() -> None:
    """Compile sweep.cpp in the background, once a process, and use it from then on."""
    global _builder
    if _builder is None:
        _builder = threading.Thread(target=compile_now, name="optgen-sweep", daemon=True)
        _builder.start()


def compile_now(build: Callable[[], Sweep] | None = None) -> Sweep:
    """Compile sweep.cpp, or take it from the cache, and use it from now on; where that fails, Python goes on looking.

    Returns:
        What is used from now on; `failure` says why it is Python.
    """
    global used, failure
    from optgen.runtime.building.extension import sweep_extension

    try:
        used, failure = (build or sweep_extension)(), ""
    except Exception as error:  # nobody waits for it, and there is another way
        used, failure = PLAIN, f"{error}"
    return used

"""Compiled C functions that tests call with tensors, on this processor or on an emulated one."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Argument = Tensor | int | float | None
Bytes = npt.NDArray[np.uint8]

REGISTERS = 8  # as in answer.cpp
HEADER = struct.Struct("<qqqqfi")


class Library(Protocol):
    """Functions of C that take addresses, integers and at most one float, and return a float or nothing."""

    def call(self, name: str, *arguments: Argument) -> float:
        """Calls one: a tensor for an address, None for a null one. What comes back means nothing if nothing does."""


class Native:
    """A library of this processor."""

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))

    def call(self, name: str, *arguments: Argument) -> float:
        function = getattr(self.functions, name)
        function.restype = ctypes.c_float
        return float(function(*map(_converted, arguments)))


def _converted(argument: Argument) -> ctypes.c_float | ctypes.c_int64 | ctypes.c_void_p:
    match argument:
        case float():
            return ctypes.c_float(argument)
        case int():
            return ctypes.c_int64(argument)  # of what is wider the lower half is kept
        case None:
            return ctypes.c_void_p(None)
        case Tensor():
            assert argument.is_contiguous()
            return ctypes.c_void_p(argument.data_ptr())


class Emulated:
    """A library of another processor, in a process of an emulator that runs answer.cpp.

    Memory is sent there with every call, and what comes back is written over it.
    """

    def __init__(self, emulator: Sequence[str], answerer: Path, library: Path) -> None:
        words = [*emulator, str(answerer), str(library)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def call(self, name: str, *arguments: Argument) -> float:
        numbers = [each for each in arguments if isinstance(each, float)]
        words = [each for each in arguments if not isinstance(each, float)]
        tensors = [each for each in words if isinstance(each, Tensor)]
        registers = [each.data_ptr() if isinstance(each, Tensor) else each or 0 for each in words]
        return self.run(name, registers, blocks_of(tensors), [], *numbers)

    def run(
        self, name: str, registers: Sequence[int], blocks: Sequence[Bytes], tables: Iterable[Bytes], number: float = 0.0
    ) -> float:
        """Calls a function.

        Args:
            registers: Its integers and addresses, which lie in `blocks`.
            blocks: Memory that it may read and write, none of it twice.
            tables: Those of the blocks that hold numbers of 64 bits: the ones that are addresses in `blocks` are
                replaced by where these lie in the other process. Nothing is written to them.
            number: Its float, if it takes one.
        """
        held = np.array([*registers, *[0] * (REGISTERS - len(registers))], dtype=np.uint64).view(np.uint8)
        memory = [held, *(block for block in blocks if block.size)]
        kept = {0, *(_start(table) for table in tables)}
        fixed = [i for i, block in enumerate(memory) if i == 0 or _start(block) in kept]
        addresses = [_addresses(i, memory) for i in fixed]
        header = HEADER.pack(len(name), _flushes(), len(memory), sum(map(len, addresses)), number, 0)
        sizes = np.array([block.size for block in memory], dtype=np.int64)
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        for part in (header, name.encode(), sizes, *addresses, *memory):
            stdin.write(part)
        stdin.flush()
        (result,) = struct.unpack("<f", stdout.read(4))
        for i, block in enumerate(memory[1:], 1):
            got = stdout.read(block.size)
            if i not in fixed:
                block[:] = np.frombuffer(got, dtype=np.uint8)
        return float(result)


def blocks_of(tensors: Iterable[Tensor]) -> list[Bytes]:
    """All memory of the tensors, also what lies beside them, once each."""
    found = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        found[storage.data_ptr()] = whole.numpy()
    return list(found.values())


def _start(block: Bytes) -> int:
    return int(block.ctypes.data)


def _flushes() -> bool:
    """True if this thread takes subnormal numbers for 0."""
    return float(torch.tensor(2.0**-130) * 2.0**10) == 0.0


def _addresses(index: int, memory: Sequence[Bytes]) -> npt.NDArray[np.int64]:
    """Rows of (block, offset, block, offset): the words of a block that are addresses, and what they are of."""
    words = memory[index].view(np.uint64)
    starts = np.array([_start(block) for block in memory[1:]], dtype=np.uint64)
    ends = starts + np.array([block.size for block in memory[1:]], dtype=np.uint64)
    rows = []
    for of, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
        for at in ((words >= start) & (words < end)).nonzero()[0]:
            rows.append((index, 8 * at, of, words[at] - start))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)

"""Runs a step in compiled C++: one call a pass for all parameters of a bucket."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from optgen.runtime.block import Block, Partial
from optgen.runtime.building.cache import shared_library
from optgen.runtime.building.compilers import Compiler
from optgen.runtime.core.bucket import Bucket, Member
from optgen.runtime.core.call import Call
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.core.step_inputs import Inputs
from optgen.runtime.engines.cpu_codecs import CpuCodecs
from optgen.runtime.engines.kernel_engine import TILE, KernelEngine, address, defines
from optgen.runtime.rule import Rule
from optgen.runtime.states.store import Placement

THREAD_TILES = 128  # tiles that are worth a thread: 32,768 elements, as in torch's own loops; a small tensor is one


class CpuEngine(KernelEngine):
    """The cpu target of one bucket of an optimizer, whose class has this name.

    Raises:
        CompileError: when the kernel cannot be built.
    """

    target: ClassVar[str] = "cpu"
    chunk: ClassVar[int] = 32_768  # a matrix rule takes at least 16 rows

    def __init__(self, name: str, rule: Rule, bucket: Bucket, compiler: Compiler) -> None:
        super().__init__(rule, bucket)
        # Kernels that could sum rows or columns make room for it, also where nothing asks for the sums; those of states
        # with numbers of them find their own.
        lines = any(state.kind != "tensor" and state.exists(bucket.flags) for state in rule.tensor_states)
        lines = lines or bool(self.row_sums or self.col_sums)
        parts = lines and any(member.shard is not None for member in self.members)
        macros = {**defines(rule, bucket), "OPTGEN_PARTS": "1"} if parts else defines(rule, bucket)
        self.library = shared_library(
            rule.source, macros, compiler, rule.functions, f"compiling {name} for this processor, once"
        )
        if rule.matrix_states:
            self.codecs = CpuCodecs(rule, bucket.codecs, compiler)
        self.functions: dict[str, Callable[[Any], None]] = {}
        for name in rule.functions:
            function = getattr(self.library, name)
            function.argtypes, function.restype = [ctypes.c_void_p], None
            self.functions[name] = function
        count = len(self.members)
        tiles = sum(-(-param.numel() // TILE) for param in self.params)
        self.worth_threads = max(1, -(-tiles // THREAD_TILES))
        self.lines = torch.empty(max(self.chunks.lines, 1), dtype=torch.float64, device="cpu")
        self.partials = torch.empty(max(len(self.chunks) * self.width, 1), dtype=torch.float64, device="cpu")
        self.scratch = torch.empty(count * self._scratch_bytes(), dtype=torch.uint8, device="cpu")
        self.call = Call(
            tensors=count,
            chunks=len(self.chunks),
            chunk_table=address(self.chunks.numbers),
            partials=self.partials.data_ptr(),
            reduced=self.reduced.data_ptr(),
            lines=self.lines.data_ptr(),
            scratch=self.scratch.data_ptr(),
            arrays=self.array_memory.data_ptr(),
        )
        self.wide = torch.empty(0, dtype=torch.float64, device="cpu")
        if parts:
            self.wide = torch.empty(self.array_memory.numel(), dtype=torch.float64, device="cpu")
            self.call.wide = self.wide.data_ptr()
        self.reference = ctypes.addressof(self.call)
        self.taken: HostValues | None = None

    def _table_changed(self, table: array[int]) -> None:
        self.table = table
        self.call.table = address(table)

    @property
    def at_once(self) -> bool:
        """True if the last pass does so and no parameter gets its values from a copy."""
        return not self.staged

    def placement(self, member: Member) -> Placement:
        """States lie with their parameter, counts of steps on the host."""
        return Placement(self.bucket.device, torch.device("cpu"))

    def begin(self, name: str, grads: list[Tensor], inputs: Inputs) -> None:
        """Start a step: take the gradients' addresses, and everything else's if it moved.

        The host has read `inputs`, so that all that is needed of them comes with the passes' values.
        """
        self.grad_table = self._take_addresses(grads)
        self.call.grads = address(self.grad_table)
        self.call.threads = min(torch.get_num_threads(), self.worth_threads)

    def take(self, values: HostValues) -> None:
        """Take the values that passes read."""
        if values is self.taken:
            return
        self.values = values
        self.numbers = array("d", map(float, chain.from_iterable(row.values() for row in values.inputs)))
        self.call.values = address(self.numbers)
        self.taken = values

    def run(self, block: Block, index: int) -> None:
        """Run one pass."""
        if block.matrices and self.takes_gradients(block, index):
            return
        self.functions[block.passes[index].function](self.reference)

    def reduction(self, block: Block, name: str) -> list[float]:
        """A reduction's result for every parameter."""
        return self._column(block, name).tolist()

    # Parts of tensors

    def partial_lines(self, name: str, partial: Partial, index: int) -> Tensor:
        """Sums of rows or columns of a tensor, as they are before they are rounded."""
        return self.wide[self._span(name, partial, index)]

    def complete_lines(self, name: str, partial: Partial, index: int, values: Tensor) -> None:
        """Take those of a larger part, or of the whole tensor, rounded once."""
        span = self._span(name, partial, index)
        self.wide[span] = values
        self.array_memory[span] = values.float()

    def _span(self, name: str, partial: Partial, index: int) -> slice:
        """Slice of a tensor's numbers among those of all arrays."""
        array = self.arrays[name, partial.name]
        lengths = [self._length(partial.over, member) for member in self.members[: index + 1]]
        end = array.storage_offset() + sum(lengths)
        return slice(end - lengths[-1], end)

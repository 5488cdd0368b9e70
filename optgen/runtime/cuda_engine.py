"""Runs a step in CUDA kernels: three launches a pass for all parameters of a bucket; the host waits for none of them.

What a step changes (addresses of gradients, settings) goes to the device in one copy, and only if it did change.
Counts of steps and everything else below element kind live on the device.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from optgen.runtime.call import Call
from optgen.runtime.cubins import cubin
from optgen.runtime.cuda_device import THREADS, WARP, CudaDevice
from optgen.runtime.host_values import HostValues
from optgen.runtime.inputs import Inputs
from optgen.runtime.kernel_engine import KernelEngine, defines
from optgen.runtime.nvcc import Nvcc
from optgen.runtime.parameters import Bucket, Member
from optgen.runtime.rule import Block, Rule
from optgen.runtime.states import Placement

NOT_WARM = (
    "a CUDA graph is being captured, and something has moved since the last step, or there was none: take a step with "
    "the same parameters before the capture"
)


class CudaEngine(KernelEngine):
    """The cuda target of one bucket.

    Raises:
        CompileError: when the kernel cannot be built.
        torch.OutOfMemoryError: when its tables do not fit.
    """

    target: ClassVar[str] = "cuda"
    chunk: ClassVar[int] = 8192
    bands: ClassVar[bool] = True

    def __init__(self, rule: Rule, bucket: Bucket, gpu: CudaDevice, nvcc: Nvcc | None) -> None:
        super().__init__(rule, bucket)
        self.gpu = gpu
        self.built_on = gpu.current_stream()
        self.image = cubin(rule.cuda_source, defines(rule, bucket), gpu.arch, nvcc)
        self.functions: dict[str, Any] = {}
        count, chunks = len(self.members), len(self.chunks) + len(self.band_table)
        self.chunk_table = self._on_device(self.chunks.numbers + self.band_table.numbers)
        self.lines = self._empty(self.band_table.lines, torch.float64)
        self.partials = self._empty(chunks * self.width, torch.float64)
        self.reduced = torch.zeros(max(count * self.width, 1), dtype=torch.float64, device=bucket.device)
        self.scratch = self._empty(count * self._scratch_bytes(), torch.uint8)
        self.table = self._empty(0, torch.int64)
        self.step_table = self._empty(0, torch.int64)
        self.spare: Tensor | None = None  # memory of the host for a copy that a graph records
        self.recorded: list[Tensor] = []  # and of those recorded, read by every replay
        self.sent = array("q")
        self.sent_values: HostValues | None = None
        self.call = Call(
            tensors=count,
            chunk_table=self.chunk_table.data_ptr(),
            partials=self.partials.data_ptr(),
            reduced=self.reduced.data_ptr(),
            lines=self.lines.data_ptr(),
            scratch=self.scratch.data_ptr(),
        )

    def _empty(self, count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(max(count, 1), dtype=dtype, device=self.bucket.device)

    def _on_device(self, numbers: array[int]) -> Tensor:
        return torch.tensor(numbers or [0], dtype=torch.int64, device=self.bucket.device)

    def _table_changed(self, table: array[int]) -> None:
        if self.gpu.is_capturing():
            raise RuntimeError(NOT_WARM)
        self.table = self._on_device(table)
        self.call.table = self.table.data_ptr()

    # A step

    def placement(self, member: Member) -> Placement:
        """States lie with their parameter, counts of steps too."""
        return Placement(self.bucket.device, self.bucket.device)

    def begin(self, name: str, block: Block, grads: Sequence[Tensor], inputs: Inputs) -> None:
        """Start a step: take the gradients' addresses, and everything else's if it moved."""
        self.addresses = self._take_addresses(grads)
        self.sent_values = None
        stream = self.gpu.current_stream()
        if stream != self.built_on:
            arrays = self.arrays.values()
            tables = (self.chunk_table, self.lines, self.partials, self.reduced, self.scratch, self.table, *arrays)
            self.gpu.keep_for_stream((*tables, self.step_table))
        self.found_inf = None
        if inputs.found_inf is not None:
            self.found_inf = inputs.found_inf.to(self.bucket.device, torch.float32, non_blocking=True)
        self.call.found_inf = 0 if self.found_inf is None else self.found_inf.data_ptr()

    def run(self, block: Block, index: int, values: HostValues) -> None:
        """Run one pass."""
        item = block.passes[index]
        bands = self.walks_bands(item)
        self.call.first = len(self.chunks) if bands else 0
        self.call.chunks = len(self.band_table) if bands else len(self.chunks)
        copies = self._send(values)
        numbers = self.call.numbers()
        tensors = len(self.members)
        with self.gpu.stream() as stream:
            for to, tensor in copies:
                self.gpu.copy(to, tensor, stream)
            self._launch(f"{item.function}_prepare", tensors, WARP, stream, numbers)
            self._launch(item.function, min(self.call.chunks, self.gpu.blocks), THREADS, stream, numbers)
            self._launch(f"{item.function}_finish", tensors, THREADS, stream, numbers)

    def _launch(self, name: str, blocks: int, threads: int, stream: Any, numbers: tuple[int, ...]) -> None:
        if blocks == 0:
            return
        function = self.functions.get(name)
        if function is None:
            function = self.functions[name] = self.gpu.function(self.image, name)
        function.prepared_async_call((blocks, 1), (threads, 1, 1), stream, *numbers)

    def _send(self, values: HostValues) -> list[tuple[int, Tensor]]:
        """Bring the gradients' addresses and the settings to the device, if they are not there already.

        Returns:
            What is left to copy: addresses of settings that lie on a device, and their tensors.
        """
        if values is self.sent_values:
            return []
        self.sent_values = values
        flat = list(chain.from_iterable(values.inputs))
        numbers = array("q", self.addresses)
        numbers.frombytes(array("d", [0.0 if isinstance(x, Tensor) else x for x in flat]).tobytes())
        if numbers != self.sent:
            if len(numbers) != len(self.sent):
                self.step_table = self._empty(len(numbers), torch.int64)
            self._copy(numbers)
            self.sent = numbers
        self.call.grads = self.step_table.data_ptr()
        self.call.values = self.call.grads + 8 * len(self.addresses)
        device = self.bucket.device
        return [
            (self.call.values + 8 * i, x.detach().to(device, torch.float64, non_blocking=True))
            for i, x in enumerate(flat)
            if isinstance(x, Tensor)
        ]

    def _copy(self, numbers: array[int]) -> None:
        """Copy numbers to the step's table without waiting for the device."""
        if self.gpu.is_capturing():
            if self.spare is None or len(self.spare) < len(numbers):
                raise RuntimeError(NOT_WARM)
            memory, self.spare = self.spare[: len(numbers)], None
            self.recorded.append(memory)
        else:
            memory = self.gpu.pinned(len(numbers))
            if self.spare is None and any(member.settings.get("capturable") for member in self.members):
                self.spare = self.gpu.pinned(len(numbers))
        memory.copy_(torch.frombuffer(numbers, dtype=torch.int64))
        self.step_table[: len(numbers)].copy_(memory, non_blocking=True)

    def reduction(self, block: Block, name: str) -> Tensor:
        """A reduction's result for every parameter, on the device."""
        width = len(block.reductions)
        return self.reduced[: len(self.members) * width].view(-1, width)[:, block.reductions.index(name)]

"""Runs a step in CUDA kernels: three launches a pass for all parameters of a bucket; the host waits for none of them.

What a step changes (addresses of gradients, settings) goes to the device in one copy, and only if it did change.
Counts of steps and everything else below element kind live on the device.
"""

from __future__ import annotations

from array import array
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from optgen.codecs import PARAMETER_CODECS
from optgen.runtime.block import Block, Partial
from optgen.runtime.building.cubins import cubin
from optgen.runtime.building.entries import CompileError
from optgen.runtime.building.nvcc import Nvcc
from optgen.runtime.core.bucket import Bucket, Member
from optgen.runtime.core.call import Call
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.core.step_inputs import Inputs
from optgen.runtime.cuda.cuda_device import THREADS, WARP, CudaDevice
from optgen.runtime.cuda.graph_capture import NOT_WARM, Recording, asks_for_capture, copy_numbers
from optgen.runtime.cuda.paged_memory import asks_for_paging
from optgen.runtime.cuda.paging import pager_of
from optgen.runtime.engines.cuda_paging import PagedStates
from optgen.runtime.engines.kernel_engine import KernelEngine, defines
from optgen.runtime.rule import Rule
from optgen.runtime.states.store import Placement


def stored_tensors(rule: Rule, bucket: Bucket) -> int:
    """Number of a parameter's tensors that a kernel reads; mirrored in cuda.h of templates/include/optgen."""
    beside = bool(PARAMETER_CODECS[bucket.rounding].compensation)
    result = any(block.matrices for block in rule.blocks.values())  # of functions of matrices, one at a time
    return 2 + beside + result + sum(state.exists(bucket.flags) for state in rule.element_states)


class CudaEngine(KernelEngine):
    """The cuda target of one bucket of an optimizer, whose class has this name.

    Raises:
        CompileError: when the kernel cannot be built.
        torch.OutOfMemoryError: when its tables do not fit.
    """

    target: ClassVar[str] = "cuda"
    chunk: ClassVar[int] = 8192
    bands: ClassVar[bool] = True

    def __init__(self, name: str, rule: Rule, bucket: Bucket, gpu: CudaDevice, nvcc: Nvcc | None) -> None:
        super().__init__(rule, bucket)
        self.gpu = gpu
        self.built_on = gpu.current_stream()
        self.all_on_one_stream = True
        told = f"compiling {name} for this GPU, once"
        self.image = cubin(rule.cuda_source, defines(rule, bucket), gpu.arch, nvcc, told)
        self.functions = self._load()
        self.blocks = gpu.blocks(stored_tensors(rule, bucket))
        count, chunks = len(self.members), len(self.chunks) + len(self.band_table)
        self.chunk_table = self._on_device(self.chunks.numbers + self.band_table.numbers)
        self.lines = self._empty(self.band_table.lines, torch.float64)
        self.partials = self._empty(chunks * self.width, torch.float64)
        self.scratch = self._empty(count * self._scratch_bytes(), torch.uint8)
        self.table = self._empty(0, torch.int64)
        self.step_table = self._empty(0, torch.int64)
        self.paged = self._paged_states()
        wanted = any(asks_for_capture(member.settings) for member in self.members)
        self.recording = Recording(wanted, gpu.pinned, bucket.device)
        self.sent = array("q")
        self.copies: list[tuple[int, Tensor]] = []  # addresses of settings that lie on a device, and their tensors
        self.call = Call(
            tensors=count,
            chunk_table=self.chunk_table.data_ptr(),
            partials=self.partials.data_ptr(),
            reduced=self.reduced.data_ptr(),
            lines=self.lines.data_ptr(),
            scratch=self.scratch.data_ptr(),
        )

    def _load(self) -> dict[str, Any]:
        """All kernels, before anything is computed.

        Raises:
            CompileError: if the driver does not take them.
        """
        names = [f"{name}{part}" for name in self.rule.functions for part in ("_prepare", "", "_finish")]
        try:
            return {name: self.gpu.function(self.image, name) for name in names}
        except self.gpu.driver.Error as error:
            raise CompileError(
                f"the driver does not take the kernels of {self.rule.cuda_source} for {self.gpu.arch}: {error}\n"
                "This happens when nvcc is newer than the driver; `optgen doctor` shows both."
            ) from error

    def _empty(self, count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(max(count, 1), dtype=dtype, device=self.bucket.device)

    def _on_device(self, numbers: array[int]) -> Tensor:
        return torch.tensor(numbers or [0], dtype=torch.int64, device=self.bucket.device)

    def _table_changed(self, table: array[int]) -> None:
        if self.gpu.is_capturing():
            raise RuntimeError(NOT_WARM)
        self.table = self._on_device(table)
        self.all_on_one_stream = self.all_on_one_stream and self.gpu.current_stream() == self.built_on
        self.call.table = self.table.data_ptr()
        if self.paged is not None:
            self.paged.take_table(table, self.call.table)

    def _paged_states(self) -> PagedStates | None:
        """Mover of paged states; None if there are none."""
        paged = [asks_for_paging(member.settings, member.param.numel()) for member in self.members]
        if not any(paged) or not self.rule.element_states:
            return None
        tables = self.chunks, self.band_table
        return PagedStates(self.rule, self.bucket, self.gpu, pager_of(self.gpu), paged, tables)

    # A step

    def placement(self, member: Member) -> Placement:
        """States lie with their parameter, if they are not paged; counts of steps always."""
        device = self.bucket.device
        paged = asks_for_paging(member.settings, member.param.numel())
        return Placement(device, device, pager_of(self.gpu) if paged else None)

    def begin(self, name: str, grads: list[Tensor], inputs: Inputs) -> None:
        """Start a step: take the gradients' addresses, and everything else's if it moved."""
        self.addresses = self._take_addresses(grads)
        if not self.all_on_one_stream or self.gpu.current_stream() != self.built_on:
            arrays = (*self.arrays.values(), *self.matrices.values())
            tables = (self.chunk_table, self.lines, self.partials, self.reduced, self.scratch, self.table, *arrays)
            more = self.paged.tensors if self.paged is not None else ()
            self.gpu.keep_for_stream((*tables, self.step_table, *more))
        self.found_inf = None
        if inputs.found_inf is not None:
            self.found_inf = inputs.found_inf.to(self.bucket.device, torch.float32, non_blocking=True)
            if self.gpu.is_capturing():
                self.recording.hold((inputs.found_inf, self.found_inf))
        self.call.found_inf = 0 if self.found_inf is None else self.found_inf.data_ptr()

    def take(self, values: HostValues) -> None:
        """Bring the gradients' addresses and the settings to the device, if they are not there already."""
        self.values = values
        flat = list(chain.from_iterable(row.values() for row in values.inputs))
        numbers = array("q", self.addresses)
        numbers.frombytes(array("d", [0.0 if isinstance(x, Tensor) else x for x in flat]).tobytes())
        table = self.recording.table(numbers) if self.gpu.is_capturing() else self._current_table(numbers)
        self.call.grads = table.data_ptr()
        self.call.values = self.call.grads + 8 * len(self.addresses)
        device = self.bucket.device
        self.copies = [
            (self.call.values + 8 * i, x.detach().to(device, torch.float64, non_blocking=True))
            for i, x in enumerate(flat)
            if isinstance(x, Tensor)
        ]
        if self.gpu.is_capturing():
            self.recording.hold(x for x in flat if isinstance(x, Tensor))
            self.recording.hold(x for _, x in self.copies)

    def run(self, block: Block, index: int) -> None:
        """Run one pass."""
        if block.matrices and self.takes_gradients(block, index):
            return
        item = block.passes[index]
        bands = self.walks_bands(block, item)
        self.call.first = len(self.chunks) if bands else 0
        self.call.chunks = len(self.band_table) if bands else len(self.chunks)
        copies, self.copies = self.copies, []
        numbers = self.call.numbers()
        tensors = len(self.members)
        with self.gpu.stream(apart=self.paged is not None) as stream:
            for to, tensor in copies:
                self.gpu.copy(to, tensor, stream)
            self._launch(f"{item.function}_prepare", tensors, WARP, stream, numbers)
            if self.paged is None:
                self._launch(item.function, min(self.call.chunks, self.blocks), THREADS, stream, numbers)
            else:
                self._launch_portions(self.paged, item.function, bands, index == len(block.passes) - 1, stream)
            self._launch(f"{item.function}_finish", tensors, THREADS, stream, numbers)

    def _launch_portions(self, paged: PagedStates, name: str, bands: bool, writes: bool, stream: Any) -> None:
        call = Call.from_buffer_copy(self.call)
        for launch in paged.walk(bands, writes, stream):
            call.first, call.chunks, call.table = launch.first, launch.chunks, launch.table
            self._launch(name, min(launch.chunks, self.blocks), THREADS, stream, call.numbers())

    def _launch(self, name: str, blocks: int, threads: int, stream: Any, numbers: tuple[int, ...]) -> None:
        if blocks == 0:
            return
        self.functions[name].prepared_async_call((blocks, 1), (threads, 1, 1), stream, *numbers)

    def _current_table(self, numbers: array[int]) -> Tensor:
        """The step's table on the device; what changed is copied without waiting for it."""
        if numbers != self.sent:
            if len(numbers) != len(self.sent):
                self.step_table = self._empty(len(numbers), torch.int64)
                self.all_on_one_stream = self.all_on_one_stream and self.gpu.current_stream() == self.built_on
            copy_numbers(numbers, self.gpu.pinned(len(numbers)), self.step_table)
            self.sent = numbers
        self.recording.make_ready(len(numbers))
        return self.step_table

    def reduction(self, block: Block, name: str) -> Tensor:
        """A reduction's result for every parameter, on the device."""
        return self._column(block, name)

    # Parts of tensors, of which other processes have the rest

    def partial_lines(self, name: str, partial: Partial, index: int) -> Tensor:
        """Never asked for: other targets serve rules that sum rows or columns which are divided."""
        raise NotImplementedError

    def complete_lines(self, name: str, partial: Partial, index: int, values: Tensor) -> None:
        """Never called."""
        raise NotImplementedError

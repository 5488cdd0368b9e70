"""Brings the paged states of a bucket to the GPU, a portion at a time, while the portion before it is computed."""

from __future__ import annotations

import math
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.core.bucket import Bucket
from optgen.runtime.cuda.cuda_device import CudaDevice
from optgen.runtime.cuda.paged_memory import loan_of
from optgen.runtime.cuda.paging import Pager
from optgen.runtime.engines.kernel_engine import ChunkTable
from optgen.runtime.rule import Rule

SLOTS = 2  # a portion is computed while the next one comes
ALIGNMENT = 256  # of a state's part in a slot, in bytes


@dataclass(frozen=True)
class PagedRange:
    """Elements of one paged parameter."""

    tensor: int
    begin: int
    end: int


@dataclass(frozen=True)
class Portion:
    """Chunks that are launched together.

    Attributes:
        first, chunks: The number of the first one, and how many there are.
        tensors: The first and the last parameter that they touch, paged or not.
        parts: Parts of paged parameters that they touch.
    """

    first: int
    chunks: int
    tensors: tuple[int, int]
    parts: tuple[PagedRange, ...]


@dataclass(frozen=True)
class Move:
    """Bytes of a state's memory that a portion needs, and their address in its slot, if there are slots."""

    tensor: int
    state: str
    array: Any
    begin: int
    end: int
    slot: int


@dataclass(frozen=True)
class Launch:
    """Arguments of a call that differ between portions."""

    first: int
    chunks: int
    table: int


def cut_portions(table: ChunkTable, start: int, widths: Sequence[float], limit: int) -> list[Portion]:
    """Cut a table between chunks, so that the paged states of a portion take at most `limit` bytes, or one chunk.

    Args:
        start: The number of the table's first chunk.
        widths: Of each parameter, the bytes that its paged states have for an element; 0 if it is not paged.
    """
    numbers = table.numbers
    cuts, taken = [0], 0.0
    for chunk in range(len(table)):
        tensor, begin, end = numbers[4 * chunk : 4 * chunk + 3]
        size = (end - begin) * widths[tensor]
        if taken and taken + size > limit:
            cuts.append(chunk)
            taken = 0.0
        taken += size
    if len(table):
        cuts.append(len(table))
    return [_portion(numbers, start, first, end, widths) for first, end in pairwise(cuts)]


def _portion(numbers: array[int], start: int, first: int, end: int, widths: Sequence[float]) -> Portion:
    parts: list[PagedRange] = []
    for chunk in range(first, end):
        tensor, low, high = numbers[4 * chunk : 4 * chunk + 3]
        if parts and parts[-1].tensor == tensor:  # chunks of a tensor lie one behind the other
            low = parts.pop().begin
        if widths[tensor]:
            parts.append(PagedRange(tensor, low, high))
    tensors = numbers[4 * first], numbers[4 * (end - 1)]
    return Portion(start + first, end - first, tensors, tuple(parts))


class PagedStates:
    """The paged states of a bucket.

    A portion's states come on one stream, are computed on the caller's, and go back on a third. Two slots take turns;
    events keep the order, so that the host waits for nothing. When a pass has ended, whatever follows it on the
    caller's stream finds all states in their memory.

    Raises:
        torch.cuda.OutOfMemoryError: when buffers do not fit.

    Args:
        paged: Of each parameter, whether it is.
        tables: Chunks, and bands, which are numbered after them.
    """

    def __init__(
        self,
        rule: Rule,
        bucket: Bucket,
        gpu: CudaDevice,
        pager: Pager,
        paged: Sequence[bool],
        tables: tuple[ChunkTable, ChunkTable],
    ) -> None:
        self.rule, self.bucket, self.gpu, self.pager, self.paged = rule, bucket, gpu, pager, paged
        self.sizes = {
            state.name: codec.bits / 8
            for state, codec in zip(rule.element_states, bucket.codecs, strict=False)
            if state.exists(bucket.flags)
        }
        width = sum(self.sizes.values())
        widths = [width if is_paged else 0 for is_paged in paged]
        chunks, bands = tables
        limit = pager.portion_bytes
        self.portions = {
            False: cut_portions(chunks, 0, widths, limit),
            True: cut_portions(bands, len(chunks), widths, limit),
        }
        self.buffers: list[Tensor] = []
        if pager.buffered:
            every = [portion for portions in self.portions.values() for portion in portions]
            size = max((self._slot_bytes(portion) for portion in every), default=0)
            slots = min(SLOTS, max(map(len, self.portions.values())))
            self.buffers = [torch.empty(size, dtype=torch.uint8, device=bucket.device) for _ in range(slots)]
        self.fresh = bool(self.buffers)  # earlier work of the device may still use their memory
        self.moves: dict[bool, list[list[Move]]] = {}
        self.launches: dict[bool, list[Launch]] = {}
        self.table = torch.empty(0, dtype=torch.int64, device=bucket.device)
        flags = gpu.driver.event_flags.DISABLE_TIMING
        with gpu.entered():
            self.events = [tuple(gpu.driver.Event(flags) for _ in range(SLOTS)) for _ in range(3)]
        weakref.finalize(self, _drop, gpu, self.events).atexit = False
        self.into, self.out = gpu.copy_streams

    def _slot_bytes(self, portion: Portion) -> int:
        return sum(_aligned(_byte_count(p.begin, p.end, size)) for p in portion.parts for size in self.sizes.values())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Memory of the device that kernels use."""
        return (self.table, *self.buffers)

    # Tables

    def take_table(self, table: array[int], address: int) -> None:
        """Take over where states lie: a table with a row a parameter, and its address on the device.

        Kernels that use a slot get the rows of their portion's parameters again: there a state begins as far before the
        slot's part as the part begins behind the state's first element.
        """
        width = len(table) // len(self.bucket.members)
        columns = self._columns(width)
        rows: array[int] = array("q")
        begins: dict[tuple[bool, int], int] = {}  # of a portion, where the row of parameter 0 would be
        for bands, portions in self.portions.items():
            self.moves[bands] = [self._moves(portion, number % SLOTS) for number, portion in enumerate(portions)]
            for number, (portion, moves) in enumerate(zip(portions, self.moves[bands], strict=True)):
                if not (self.buffers and moves):
                    continue
                first, last = portion.tensors
                own = table[first * width : (last + 1) * width]
                for move in moves:
                    own[(move.tensor - first) * width + columns[move.state]] = move.slot - move.begin
                begins[bands, number] = len(rows) - first * width
                rows.extend(own)
        if rows:
            self.table = torch.tensor(rows, dtype=torch.int64, device=self.bucket.device)
        for bands, portions in self.portions.items():
            self.launches[bands] = [
                Launch(
                    portion.first,
                    portion.chunks,
                    self.table.data_ptr() + 8 * begins[bands, number] if (bands, number) in begins else address,
                )
                for number, portion in enumerate(portions)
            ]

    def _columns(self, width: int) -> dict[str, int]:
        """The column of every state's address: arrays come last in a row, states before them."""
        states = [state for state in self.rule.states.values() if state.kind not in ("group", "global", "shaped")]
        taken = [2 if state.kind == "element" else 1 for state in states]
        at = width - sum(taken) - sum(len(block.arrays) for block in self.rule.blocks.values())
        return {state.name: at + sum(taken[:i]) for i, state in enumerate(states)}

    def _moves(self, portion: Portion, slot: int) -> list[Move]:
        moves = []
        at = self.buffers[slot].data_ptr() if self.buffers else 0
        for part in portion.parts:
            entry = self.bucket.members[part.tensor].entry
            for name, size in self.sizes.items():
                loan = loan_of(entry[name])
                assert loan is not None, "states are placed before their addresses are taken"
                begin = math.floor(part.begin * size)
                end = begin + _byte_count(part.begin, part.end, size)
                moves.append(Move(part.tensor, name, loan.array(), begin, end, at))
                at += _aligned(end - begin)
        return moves

    # A pass

    def walk(self, bands: bool, writes: bool, stream: Any) -> Iterator[Launch]:
        """Yield launches for a stream, portion by portion: the states of one are there, and the next ones are on their
        way.

        Args:
            bands: Whether the pass walks bands.
            writes: Whether it writes states.
        """
        moves, launches = self.moves[bands], self.launches[bands]
        filled, done, emptied = self.events
        if self.fresh:
            done[0].record(stream)
            self.into.wait_for_event(done[0])
            self.fresh = False
        for event in emptied:  # an earlier pass may have had other portions
            self.into.wait_for_event(event)
        if launches:
            self._bring(moves[0], 0)
        for number, launch in enumerate(launches):
            slot = number % SLOTS
            if number + 1 < len(launches):
                self._bring(moves[number + 1], (number + 1) % SLOTS)
            stream.wait_for_event(filled[slot])
            yield launch
            done[slot].record(stream)
            if writes and self.buffers:
                self.out.wait_for_event(done[slot])
                for move in moves[number]:
                    self.pager.take_back(move.array, move.begin, move.end, move.slot, self.out)
                emptied[slot].record(self.out)
        for event in emptied:
            stream.wait_for_event(event)

    def _bring(self, moves: Sequence[Move], slot: int) -> None:
        """Bring a portion's states as soon as its slot is free; without slots, once the portion before last is done."""
        filled, done, emptied = self.events
        self.into.wait_for_event(done[slot])
        self.into.wait_for_event(emptied[slot])
        for move in moves:
            self.pager.bring(move.array, move.begin, move.end, move.slot, self.into)
        filled[slot].record(self.into)


def _byte_count(begin: int, end: int, size: float) -> int:
    """The bytes that hold elements of a size, which may be half a byte."""
    return math.ceil(end * size) - math.floor(begin * size)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _drop(gpu: CudaDevice, events: list[tuple[Any, ...]]) -> None:
    """Destroy events in their context, in whatever thread that is."""
    with gpu.entered():
        events.clear()

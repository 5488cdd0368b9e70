"""Common base of the compiled targets: tables of addresses and chunks, made once and kept between steps.

A step only looks whether anything moved.
"""

from __future__ import annotations

import math
import operator
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from optgen.codecs import COMPENSATION, PARAMETER_CODECS
from optgen.runtime.block import Block, Pass
from optgen.runtime.core import sweep
from optgen.runtime.core.bucket import Bucket, Member, StaleError, is_like, layout_of, matrix_shape, sizes_of
from optgen.runtime.core.host_values import HostValues
from optgen.runtime.dimensions import shape_of
from optgen.runtime.engines import matrices
from optgen.runtime.engines.matrix_stage import Codecs
from optgen.runtime.engines.own_step import run_own_steps
from optgen.runtime.rule import Rule
from optgen.runtime.settings.storage import dtype_name
from optgen.runtime.states import torch_codecs
from optgen.runtime.states.stored import scale_key

TILE = 256
VISIT = 65_536  # elements of a chunk whose rows are visited once, at most; mirrored in templates/include/optgen/cpu.h
BAND_ROWS = 32  # mirrored in templates/include/optgen/cuda_band.h


def seen_shape(rule: Rule, member: Member) -> torch.Size:
    """The shape of a parameter as kernels see it: a row a channel, where the rule tells no other dimension."""
    shape = member.seen
    if rule.channels_alone and member.shard is None and len(shape) > 2:
        return torch.Size((shape[0], shape[1:].numel()))
    return shape


def defines(rule: Rule, bucket: Bucket) -> dict[str, str]:
    """The macros that specialize a rule's kernels for a bucket."""
    result = {
        "OPTGEN_PARAM_CODEC": PARAMETER_CODECS[bucket.rounding].cpp_type(dtype_name(bucket.dtype)),
        "OPTGEN_GRAD_CODEC": PARAMETER_CODECS["nearest"].cpp_type(dtype_name(bucket.grad_dtype)),
    }
    for state, codec in zip(rule.element_states, bucket.codecs, strict=False):  # of these kernels know
        there = state.exists(bucket.flags)
        result[f"OPTGEN_{state.name.upper()}_CODEC"] = codec.cpp_type(state.signed) if there else "Absent"
    for name, value in bucket.flags._asdict().items():
        if name not in rule.constants:
            result[f"OPTGEN_{name.upper()}"] = str(int(value))
    return result


@dataclass
class ChunkTable:
    """Division of a bucket's memory into chunks, the same for all compiled targets.

    Attributes:
        numbers: (tensor, begin, end, place among partial sums of lines), chunk after chunk.
        first, count: Of every tensor, the number of its first chunk and how many it has.
        lines: Numbers that partial sums of rows and columns take.
    """

    numbers: array[int]
    first: list[int]
    count: list[int]
    lines: int = 0

    def __len__(self) -> int:
        return len(self.numbers) // 4


class KernelEngine:
    """A compiled target of one bucket.

    Attributes:
        chunk: Elements of a chunk, a multiple of the tile.
        codecs: What decodes and encodes states that are matrices of their own.
        bands: Whether passes with sums of rows or columns walk bands of whole rows.
    """

    target: ClassVar[str]
    chunk: ClassVar[int]
    bands: ClassVar[bool] = False
    codecs: Codecs = torch_codecs

    @property
    def at_once(self) -> bool:
        """True if one call of a kernel writes all that a step writes."""
        return False

    def __init__(self, rule: Rule, bucket: Bucket) -> None:
        self.rule, self.bucket = rule, bucket
        self.members = bucket.members
        self.params = [m.param for m in self.members]
        self.forms = sweep.forms(self.params)
        self.devices = list(map(_device, self.params))
        self.entries = [m.entry for m in self.members]
        self.pointers: list[int] = []
        self.states: sweep.Facts = None
        self.facts: sweep.Facts = None
        self.staged = self._find_staged()
        self.staging = {i: torch.empty_like(self.params[i], memory_format=torch.contiguous_format) for i in self.staged}
        self.kept: list[Tensor] = []
        self.grads: Sequence[Tensor] = ()
        self.width = max((len(b.reductions) for b in rule.blocks.values()), default=0)
        results = max(len(self.members) * self.width, 1)
        self.reduced = torch.zeros(results, dtype=torch.float64, device=bucket.device)
        lines = [list(block.lines.values()) for block in rule.blocks.values()]
        self.row_sums, self.col_sums = (max(kinds.count(kind) for kinds in lines) for kind in ("row", "col"))
        self.chunks = self._cut_chunks()
        self.band_table = self._cut_bands()
        self.arrays = self._empty_arrays()
        self.matrices: dict[tuple[str, str], Tensor] = {}
        self.values: HostValues

    def _find_staged(self) -> list[int]:
        """Parameters that do not lie as kernels read them, which get their values from a copy and give them back."""
        return [i for i, p in enumerate(self.params) if not p.is_contiguous() or p.is_neg()]

    # Tables

    def walks_bands(self, block: Block, item: Pass) -> bool:
        """Check whether a pass walks bands."""
        return self.bands and not block.lines.keys().isdisjoint(item.names)

    def _cut_chunks(self) -> ChunkTable:
        """Cuts every tensor at multiples of the tile."""
        table = ChunkTable(array("q"), [], [])
        lines = not self.bands and bool(self.row_sums or self.col_sums)
        for index, param in enumerate(self.params):
            numel = param.numel()
            _, rows, cols = matrix_shape(seen_shape(self.rule, self.members[index]))
            size = self.chunk if not lines else self._chunk_of_lines(cols)
            table.first.append(len(table))
            for begin in range(0, numel, size):
                end = min(begin + size, numel)
                table.numbers.extend((index, begin, end, table.lines))
                if lines:
                    touched = (end - 1) // cols - begin // cols + 1
                    matrices = (end - 1) // (cols * rows) - begin // (cols * rows) + 1
                    table.lines += self.row_sums * touched + self.col_sums * matrices * cols
            table.count.append(len(table) - table.first[-1])
        return table

    def _chunk_of_lines(self, cols: int) -> int:
        """Elements of a chunk where rows or columns are summed: whole rows if passes go by rows that a cache holds."""
        size = max(self.chunk, -(-16 * cols // TILE) * TILE)
        whole = math.lcm(max(cols, 1), TILE)
        if not any(block.by_rows for block in self.rule.blocks.values()) or whole > VISIT:
            return size
        return min(-(-size // whole), VISIT // whole) * whole

    def _cut_bands(self) -> ChunkTable:
        """Cuts every matrix between rows, if there are passes that walk bands; numbered after the chunks."""
        table = ChunkTable(array("q"), [], [])
        for index, param in enumerate(self.params if self.bands and (self.row_sums or self.col_sums) else ()):
            matrices, rows, cols = matrix_shape(seen_shape(self.rule, self.members[index]))
            table.first.append(len(self.chunks) + len(table))
            for matrix in range(matrices if param.numel() else 0):
                for row in range(0, rows, BAND_ROWS):
                    begin = (matrix * rows + row) * cols
                    end = (matrix * rows + min(row + BAND_ROWS, rows)) * cols
                    table.numbers.extend((index, begin, end, table.lines))
                    table.lines += self.col_sums * cols
            table.count.append(len(self.chunks) + len(table) - table.first[-1])
        return table

    def _empty_arrays(self) -> dict[tuple[str, str], Tensor]:
        """Rows, columns and matrices that are kept between passes, all tensors' in a row."""
        sizes = {key: size for key, size in self._array_sizes().items() if not self._holds_elements(*key)}
        # Arrays that lie a multiple of 4096 bytes apart stand in each other's way in caches.
        apart = [-(-size // 16) * 16 + 16 for size in sizes.values()]
        self.array_memory = torch.empty(sum(apart), dtype=torch.float32, device=self.bucket.device)
        pieces = zip(sizes.items(), torch.split(self.array_memory, apart), strict=True)
        return {key: piece[:size] for (key, size), piece in pieces}

    def _array_sizes(self) -> dict[tuple[str, str], int]:
        """Numbers of each array of each block, all tensors' together."""
        return {
            (name, a.name): sum(self._length(a.kind, m) for m in self.members)
            for name, block in self.rule.blocks.items()
            for a in block.arrays
            if a.live(self.bucket.flags)
        }

    def _holds_elements(self, block: str, array: str) -> bool:
        return array in self.rule.blocks[block].matrices

    @property
    def matrix_elements(self) -> int:
        """Elements that functions of matrices take and leave."""
        return sum(size for key, size in self._array_sizes().items() if self._holds_elements(*key))

    def take_matrix_memory(self, memory: Tensor) -> None:
        """Take memory for them, `matrix_elements` of float32 or more, before the first step."""
        sizes = {key: size for key, size in self._array_sizes().items() if self._holds_elements(*key)}
        pieces = torch.split(memory[: self.matrix_elements], list(sizes.values()))
        self.matrices = dict(zip(sizes, pieces, strict=True))

    def _length(self, kind: str, member: Member) -> int:
        if kind == "element":
            return member.param.numel()
        return math.prod(
            shape_of(kind, member.line_shape if member.shard is not None else seen_shape(self.rule, member))
        )

    def _scratch_bytes(self) -> int:
        """Bytes of a pass's values below element kind, at most four each."""
        scalars = max((block.scalars for block in self.rule.blocks.values()), default=0)
        return max(4 * scalars, 8)

    def _table(self) -> array[int]:
        """The address of everything that a kernel reads or writes, a row a parameter."""
        table = array("q")
        arrays = self.arrays | self.matrices
        offsets = dict.fromkeys(arrays, 0)
        self.kept = []
        for index, member in enumerate(self.members):
            shard = member.shard
            at = layout_of(seen_shape(self.rule, member), shard)
            start = 0 if shard is None or shard.start is None else shard.start
            step = self._kept(member.entry["step"])
            seed = int(member.settings.get("seed", 0))
            param = self.staging.get(index, member.param)
            table.extend((param.data_ptr(), self._state_address(member, COMPENSATION), seed, member.number))
            assert member.count is not None
            count = self._kept(member.count)
            table.extend((step.data_ptr(), count.data_ptr(), member.shape.numel(), len(member.shape), member.index))
            table.extend(
                (at.rows, at.cols, at.matrices, member.row, self.chunks.first[index], self.chunks.count[index])
            )
            table.extend((self.band_table.first[index], self.band_table.count[index]) if self.band_table else (0, 0))
            table.extend((at.own_rows, at.own_cols, at.first_row, at.first_col, start))
            table.extend(sizes_of(member.shape).values())
            table.extend((at.channels, at.channel_rows, at.planes, at.blocks))
            for state in self.rule.states.values():
                if state.kind in ("group", "global", "shaped"):
                    continue
                table.append(self._state_address(member, state.name))
                if state.kind == "element":
                    table.append(self._state_address(member, scale_key(state.name)))
            for name, block in self.rule.blocks.items():
                for item in block.arrays:
                    buffer = arrays.get((name, item.name))
                    if buffer is None:
                        table.append(0)
                        continue
                    table.append(buffer.data_ptr() + 4 * offsets[name, item.name])
                    offsets[name, item.name] += self._length(item.kind, member)
        return table

    def _state_address(self, member: Member, key: str) -> int:
        value = member.entry.get(key)
        return 0 if value is None else self._kept(value).data_ptr()

    def _kept(self, value: Tensor) -> Tensor:
        self.kept.append(value)
        return value

    # A step

    def _column(self, block: Block, name: str) -> Tensor:
        """A reduction's result for every parameter, where kernels have left it."""
        width = len(block.reductions)
        return self.reduced[: len(self.members) * width].view(-1, width)[:, block.reductions.index(name)]

    def partial(self, block: Block, name: str) -> Tensor:
        """A result of every tensor, float64 of shape (members,)."""
        return self._column(block, name)

    def complete(self, block: Block, name: str, values: Tensor) -> None:
        """Take the results of the whole tensors."""
        self._column(block, name).copy_(values)

    def _take_addresses(self, grads: list[Tensor]) -> array[int]:
        """The gradients' addresses; everything else's is taken again if it moved.

        Raises:
            StaleError: if a parameter, a gradient or a state has another form than before.
        """
        facts = sweep.used.facts(self.params, self.entries)
        if facts != self.facts:
            self._look_closer()
            self.facts = sweep.used.facts(self.params, self.entries)
        for index in self.staged:
            self.staging[index].copy_(self.params[index].detach())
        if not grads:  # a block without them
            return array("q", bytes(8 * len(self.params)))
        addresses = sweep.used.addresses(grads, self.params)
        if addresses is None:
            if not all(map(is_like, grads, self.params)):
                raise StaleError  # what no kernel can read is refused when the engine is to be built again
            grads = [grad.resolve_neg().contiguous() for grad in grads]
            addresses = sweep.PLAIN.addresses(grads, self.params)
            assert addresses is not None
        self.grads = grads
        return array("q", addresses)

    def _look_closer(self) -> None:
        """Take the addresses of parameters and states again, where something is not as it was.

        Raises:
            StaleError: if it is more than memory of parameters that has moved.
        """
        if self.forms != sweep.forms(self.params):
            raise StaleError
        pointers = list(map(Tensor.data_ptr, self.params))
        moved = pointers != self.pointers
        if moved and (self.devices != list(map(_device, self.params)) or self.staged != self._find_staged()):
            raise StaleError
        if self.states and self.states != self._states():
            raise StaleError
        if moved or not self.states:
            self.pointers = pointers
            self._table_changed(self._table())
            self.states = self._states()

    def _states(self) -> sweep.Facts:
        """Addresses and forms of states: a user may put others in their place, or give them other memory."""
        return sweep.PLAIN.facts([], self.entries)

    def _table_changed(self, table: array[int]) -> None:
        """Hand a new table to the kernels."""
        raise NotImplementedError

    def run_matrices(self, name: str, block: Block, index: int) -> None:
        """Run the functions of matrices that take what a pass has stored for them; the results take its place."""
        for partial in block.taken(block.passes[index], self.bucket.flags):
            if (name, partial.name) not in self.matrices or matrices.is_owned(block, self.members[0]):
                continue
            member, elements = self.members[0], self.matrices[name, partial.name]
            if partial.op == matrices.OWN_STEP:
                directions = list(elements.view(-1, *member.seen))
                grads = self.grads if self.takes_gradients(block, index) else directions
                codecs = [self.codecs] * len(self.members)
                run_own_steps(self.rule, self.members, grads, directions, self.values, codecs)
            else:
                matrices.apply(partial, elements, member.seen, self.values, member)

    def takes_gradients(self, block: Block, index: int) -> bool:
        """Check whether a pass has nothing to do, since a step on matrices takes the gradients as they are."""
        taken = block.taken(block.passes[index], self.bucket.flags)
        return (
            [partial.op for partial in taken] == [matrices.OWN_STEP]
            and taken[0].takes_grad(self.bucket.flags)
            and self.bucket.grad_dtype is torch.float32
            and not matrices.is_owned(block, self.members[0])
        )

    def matrix_part(self, name: str, partial: str, index: int) -> Tensor:
        """Elements that a pass has stored of a matrix for a function of matrices, to be replaced by its result."""
        elements, shape = self.matrices.get((name, partial)), self.members[index].seen
        if elements is None:  # a part without elements, for which there is no memory
            return torch.empty(shape, dtype=torch.float32, device=self.bucket.device)
        return elements.view(len(self.members), *shape)[index]

    def finish(self, name: str) -> None:
        """End the step: parameters that are not contiguous get their new values."""
        for index in self.staged:
            self.params[index].detach().copy_(self.staging[index])
        sweep.used.mark_changed(self.params)
        self.grads = ()


_device = operator.attrgetter("device")


def address(values: array[Any]) -> int:
    """Address of an array's numbers."""
    return values.buffer_info()[0]

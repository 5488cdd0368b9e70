"""Runs a step in compiled C++: one call a pass for all parameters of a bucket.

The tables of addresses are made once and kept between steps; a step only looks whether anything moved.
"""

from __future__ import annotations

import ctypes
import operator
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from optgen.codecs import CODECS, PARAMETER_CODECS
from optgen.runtime.cache import shared_library
from optgen.runtime.compilers import Compiler
from optgen.runtime.parameters import Bucket, Member, StaleError, matrix_shape
from optgen.runtime.rule import Block, Rule
from optgen.runtime.states import scale_key

CHUNK = 32_768  # elements of a chunk, a multiple of the tile; a matrix rule takes at least 16 rows
TILE = 256


class _Call(ctypes.Structure):
    """Mirrors `Call` in templates/include/optgen/cpu.h."""

    _fields_ = (
        ("tensors", ctypes.c_int64),
        ("chunks", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("grads", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("chunk_table", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
        ("reduced", ctypes.c_void_p),
        ("lines", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in the tables that are free of torch."""
    return str(dtype).removeprefix("torch.")


def defines(rule: Rule, bucket: Bucket) -> dict[str, str]:
    """The macros that specialize a rule's C++ for a bucket."""
    nearest = PARAMETER_CODECS["nearest"]
    result = {
        "OPTGEN_PARAM_CODEC": nearest.cpp_type(dtype_name(bucket.dtype)),
        "OPTGEN_GRAD_CODEC": nearest.cpp_type(dtype_name(bucket.grad_dtype)),
    }
    for state, codec in zip(rule.element_states, bucket.codecs, strict=True):
        there = state.exists(bucket.flags)
        result[f"OPTGEN_{state.name.upper()}_CODEC"] = CODECS[codec].cpp_type(state.signed) if there else "Absent"
    for name, value in bucket.flags._asdict().items():
        if name not in rule.constants:
            result[f"OPTGEN_{name.upper()}"] = str(int(value))
    return result


_form = operator.attrgetter("dtype", "device", "shape")


def _forms(params: list[Tensor]) -> tuple[list[Any], list[bool]]:
    """What tables and kernels are made for; looked at in every step, since `param.data` can be anything by then."""
    return list(map(_form, params)), list(map(Tensor.is_contiguous, params))


def _mark_changed(params: list[Tensor]) -> None:
    """Let autograd know, which refuses to go back through values that have changed since."""
    try:
        increment_version(params)
    except (TypeError, RuntimeError):  # a torch that takes one tensor at a time
        for param in params:
            increment_version(param)


def _address(values: array[Any]) -> int:
    return values.buffer_info()[0]


class CpuEngine:
    """The cpu target of one bucket.

    Raises:
        CompileError: when the kernel cannot be built.
    """

    target = "cpu"

    def __init__(self, rule: Rule, bucket: Bucket, compiler: Compiler) -> None:
        self.rule, self.bucket = rule, bucket
        self.members = bucket.members
        self.params = [m.param for m in self.members]
        self.forms = _forms(self.params)
        self.library = shared_library(rule.source, defines(rule, bucket), compiler)
        self.functions: dict[str, Callable[[Any], None]] = {}
        self.call = _Call()
        self.pointers: list[int] = []
        self.entries = [m.entry for m in self.members]
        self.state_pointers: list[int] = []
        self.staged = [i for i, p in enumerate(self.params) if not p.is_contiguous()]
        self.staging = {i: torch.empty_like(self.params[i], memory_format=torch.contiguous_format) for i in self.staged}
        self.kept: list[Any] = []
        self.grads: Sequence[Tensor] = ()
        self._build_chunks()
        self._allocate()

    # Tables

    def _lines(self) -> bool:
        return any(p.rows or p.cols for block in self.rule.blocks.values() for p in block.passes)

    def _build_chunks(self) -> None:
        """Cuts every tensor at multiples of the tile, the same whatever the number of threads."""
        self.first_chunk: list[int] = []
        self.chunk_count: list[int] = []
        rows_of_chunks = array("q")
        place = 0
        lines = self._lines()
        row_sums = max((p.rows for b in self.rule.blocks.values() for p in b.passes), default=0)
        col_sums = max((p.cols for b in self.rule.blocks.values() for p in b.passes), default=0)
        for index, param in enumerate(self.params):
            numel = param.numel()
            _, rows, cols = matrix_shape(param.shape)
            size = CHUNK if not lines else max(CHUNK, -(-16 * cols // TILE) * TILE)
            first = len(rows_of_chunks) // 4
            for begin in range(0, numel, size):
                end = min(begin + size, numel)
                rows_of_chunks.extend((index, begin, end, place))
                if lines:
                    touched = (end - 1) // cols - begin // cols + 1
                    matrices = (end - 1) // (cols * rows) - begin // (cols * rows) + 1
                    place += row_sums * touched + col_sums * matrices * cols
            self.first_chunk.append(first)
            self.chunk_count.append(len(rows_of_chunks) // 4 - first)
        self.chunk_table = rows_of_chunks
        self.lines = torch.empty(max(place, 1), dtype=torch.float64)

    def _allocate(self) -> None:
        count = len(self.members)
        chunks = len(self.chunk_table) // 4
        width = max((len(b.reductions) for b in self.rule.blocks.values()), default=0)
        self.reduced = torch.zeros(max(count * width, 1), dtype=torch.float64)
        self.partials = torch.empty(max(chunks * width, 1), dtype=torch.float64)
        scratch = 8
        for block in self.rule.blocks.values():
            for item in block.passes:
                size = getattr(self.library, f"{item.function}_scratch")
                size.restype = ctypes.c_int64
                scratch = max(scratch, size())
                function = getattr(self.library, item.function)
                function.argtypes, function.restype = [ctypes.c_void_p], None
                self.functions[item.function] = function
        self.scratch = torch.empty(count * scratch, dtype=torch.uint8)
        self.arrays = {
            (name, a.name): torch.empty(sum(self._length(a.kind, m) for m in self.members), dtype=torch.float32)
            for name, block in self.rule.blocks.items()
            for a in block.arrays
            if a.live(self.bucket.flags)
        }
        call = self.call
        call.tensors, call.chunks = count, chunks
        call.chunk_table = _address(self.chunk_table)
        call.partials, call.reduced = self.partials.data_ptr(), self.reduced.data_ptr()
        call.lines, call.scratch = self.lines.data_ptr(), self.scratch.data_ptr()
        self.reference = ctypes.addressof(call)

    def _length(self, kind: str, member: Member) -> int:
        matrices, rows, cols = matrix_shape(member.param.shape)
        return matrices * {"row": rows, "col": cols}.get(kind, 1)

    def _build_table(self) -> None:
        """The address of everything that a kernel reads or writes, a row a parameter."""
        table = array("q")
        offsets = dict.fromkeys(self.arrays, 0)
        self.kept = []
        for index, member in enumerate(self.members):
            param = member.param
            matrices, rows, cols = matrix_shape(param.shape)
            step = self._kept(member.entry["step"])
            table.extend((self.pointers[index], step.data_ptr(), param.numel(), param.dim(), member.index))
            table.extend((rows, cols, matrices, member.row, self.first_chunk[index], self.chunk_count[index]))
            for state in self.rule.states.values():
                if state.kind in ("group", "global"):
                    continue
                table.append(self._state_address(member, state.name))
                if state.kind == "element":
                    table.append(self._state_address(member, scale_key(state.name)))
            for name, block in self.rule.blocks.items():
                for item in block.arrays:
                    buffer = self.arrays.get((name, item.name))
                    if buffer is None:
                        table.append(0)
                        continue
                    table.append(buffer.data_ptr() + 4 * offsets[name, item.name])
                    offsets[name, item.name] += self._length(item.kind, member)
        self.table = table
        self.columns = len(table) // max(len(self.members), 1)
        self.call.table = _address(table)

    def _state_address(self, member: Member, key: str) -> int:
        value = member.entry.get(key)
        if value is None:
            return 0
        if not value.is_contiguous():
            member.entry[key] = value = value.contiguous()
        return self._kept(value).data_ptr()

    def _kept(self, value: Tensor) -> Tensor:
        self.kept.append(value)
        return value

    # A step

    def begin(self, name: str, block: Block, grads: Sequence[Tensor]) -> None:
        """Start a step: take the gradients' addresses, and everything else's if it moved."""
        if self.forms != _forms(self.params):
            raise StaleError
        pointers = list(map(Tensor.data_ptr, self.params))
        for index in self.staged:
            self.staging[index].copy_(self.params[index].detach())
        for index in self.staged:
            pointers[index] = self.staging[index].data_ptr()
        if not all(map(Tensor.is_contiguous, grads)):
            if any(grad.layout is not torch.strided for grad in grads):
                raise StaleError  # a sparse gradient, which is refused when the engine is to be built anew
            grads = [grad.contiguous() for grad in grads]
        self.grads = grads
        self.grad_table = array("q", list(map(Tensor.data_ptr, grads)) or bytes(8 * len(self.params)))
        state_pointers = self._state_pointers()
        if pointers != self.pointers or state_pointers != self.state_pointers:
            if self.state_pointers and state_pointers != self.state_pointers:
                raise StaleError
            self.pointers = pointers
            self._build_table()
            self.state_pointers = self._state_pointers()
        self.call.grads = _address(self.grad_table)
        self.call.threads = torch.get_num_threads()

    def _state_pointers(self) -> list[int]:
        """Where states lie and how long they are: a user may put others in their place, or give them other memory."""
        values = list(chain.from_iterable(map(dict.values, self.entries)))
        try:
            return [*map(Tensor.data_ptr, values), *map(Tensor.numel, values)]
        except TypeError:  # something that is no tensor lies among them
            tensors = [value for value in values if isinstance(value, Tensor)]
            return [*map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors)]

    def run(self, block: Block, index: int, values: list[tuple[float, ...]]) -> None:
        """Run one pass: `values` holds a row for every settings of the step."""
        self.values = array("d", chain.from_iterable(values))
        self.call.values = _address(self.values)
        self.functions[block.passes[index].function](self.reference)

    def reduction(self, block: Block, name: str) -> list[float]:
        """A reduction's result for every parameter."""
        width = len(block.reductions)
        column = self.reduced[: len(self.members) * width].view(-1, width)[:, block.reductions.index(name)]
        return column.tolist()

    def finish(self, name: str) -> None:
        """End the step: parameters that are not contiguous get their new values."""
        for index in self.staged:
            self.params[index].detach().copy_(self.staging[index])
        _mark_changed(self.params)
        self.grads = ()

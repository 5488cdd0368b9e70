"""Runs the step of one class alone, as `optgen explain --code` prints it, on a parameter and its states.

What the kernel is handed is read off its own text: the columns of its table, its values, sums and passes.
"""

from __future__ import annotations

import ctypes
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optgen.runtime.building.cache import shared_library
from optgen.runtime.building.compilers import find_compiler
from optgen.runtime.building.cubins import cubin
from optgen.runtime.building.nvcc import find_nvcc
from optgen.runtime.core.call import Call
from optgen.runtime.cuda.cuda_device import THREADS, WARP
from optgen.runtime.engines.kernel_engine import BAND_ROWS
from support.gpu import StandinDevice

INCLUDES = Path(__file__).parents[2] / "templates" / "include" / "optgen"
CHUNK, GPU_CHUNK = 32_768, 8192
Number = Callable[[str, Mapping[str, float]], float]


def names(text: str, pattern: str) -> list[str]:
    """The names of a list in C++ that a pattern finds; none where it finds none."""
    found = re.search(pattern, text, re.DOTALL)
    return [] if found is None else [name.strip() for name in found[1].split(",")]


def base_columns() -> list[str]:
    """The columns that every table begins with."""
    text = re.sub(r"//.*", "", (INCLUDES / "call.h").read_text(encoding="utf-8"))
    return [name for name in names(text, r"enum BaseColumn \{(.*?)\}") if name][:-1]


class Kernel:
    """The kernel of a class, compiled. What it is handed stands first in its text for its step.

    Args:
        gpu: The stand-in that runs it; None where it is C++ for the CPU.
    """

    def __init__(self, text: str, folder: Path, gpu: StandinDevice | None = None) -> None:
        source = folder / ("alone.cpp" if gpu is None else "alone.cu")
        source.write_text(text, encoding="utf-8")
        self.columns = [name.split(" = ")[0] for name in names(text, r"enum \{(.*?),\s+END \}")]
        self.values = names(text, r"struct Values \{\s*double (.*?);")
        self.sums = names(text, r"struct Sums \{\s*double (.*?);")
        self.gpu = gpu
        pattern = r"^OPTGEN_EXPORT void (step_\w+)\(" if gpu is None else r"\b(step_\w+)_prepare\("
        self.passes = re.findall(pattern, text, re.MULTILINE)
        self.in_bands = [
            name for name in self.passes if re.search(rf"namespace {name[5:]} \{{\s+constexpr int row_sums", text)
        ]
        if gpu is None:
            compiler = find_compiler()
            assert compiler is not None
            self.library = shared_library(source, {}, compiler, self.passes)
        else:
            self.image = cubin(source, {}, gpu.arch, find_nvcc())

    def step(self, param: Tensor, grad: Tensor, state: Mapping[str, Tensor], count: float, number: Number) -> None:
        """A step of one parameter of two dimensions.

        Args:
            count: The steps before it.
            number: A value that is handed over, by its name and the sums that passes have found.
        """
        rows, cols = param.shape
        chunk, band = (CHUNK, BAND_ROWS * cols) if self.gpu is None else (GPU_CHUNK, BAND_ROWS * cols)
        chunks, bands = range(0, param.numel(), chunk), range(0, param.numel(), band)
        lines = 2 * (rows + cols)  # of a chunk
        steps = torch.tensor([count], dtype=torch.float64)
        table = dict.fromkeys(base_columns(), 0) | {
            "PARAM": param.data_ptr(),
            "STEP": state["step"].data_ptr(),
            "COUNT": steps.data_ptr(),
            "NUMEL": param.numel(),
            "NDIM": 2,
            "ROWS": rows,
            "COLS": cols,
            "MATRICES": 1,
            "CHUNKS": len(chunks),
            "FIRST_BAND": len(chunks),
            "BANDS": len(bands),
            "OWN_ROWS": rows,
            "OWN_COLS": cols,
        }
        arrays = {name: torch.zeros(rows + cols) for name in self.columns if name not in state}
        addresses = [{**state, **arrays}[name].data_ptr() for name in self.columns]
        begins = [*((at, chunk) for at in chunks), *((at, band) for at in bands)]
        chunk_table = [(0, at, min(at + size, param.numel()), k * lines) for k, (at, size) in enumerate(begins)]
        sums = torch.zeros(max(len(self.sums), 1), dtype=torch.float64)
        memory = {
            "table": array("q", [*table.values(), *addresses]),
            "grads": array("q", [grad.data_ptr()]),
            "chunk_table": array("q", [number for chunk in chunk_table for number in chunk]),
        }
        buffers = {
            "partials": torch.zeros(len(begins) * max(len(self.sums), 1), dtype=torch.float64),
            "lines": torch.zeros(len(begins) * lines, dtype=torch.float64),
            "scratch": torch.zeros(256, dtype=torch.float64),
            "reduced": sums,
        }
        for name in self.passes:
            found = dict(zip(self.sums, sums.tolist(), strict=False))
            values = array("d", [number(value, found) for value in self.values])
            addressed = {key: kept.buffer_info()[0] for key, kept in (*memory.items(), ("values", values))}
            addressed |= {key: buffer.data_ptr() for key, buffer in buffers.items()}
            call = Call(tensors=1, chunks=len(chunks), threads=1, **addressed)
            if self.gpu is None:
                getattr(self.library, name)(ctypes.byref(call))
                continue
            if name in self.in_bands:
                call.first, call.chunks = len(chunks), len(bands)
            self._launch(self.gpu, name, call)

    def _launch(self, gpu: StandinDevice, name: str, call: Call) -> None:
        launches = ((f"{name}_prepare", 1, WARP), (name, 2, THREADS), (f"{name}_finish", 1, THREADS))
        with gpu.stream() as stream:
            for part, blocks, threads in launches:
                function = gpu.function(self.image, part)
                function.prepared_async_call((blocks, 1), (threads, 1, 1), stream, *call.numbers())
            gpu.driver.Context.synchronize()


def torch_functions(text: str) -> dict[str, Callable[..., Any]]:
    """The functions of a class, in their order."""
    module: dict[str, Any] = {}
    exec(compile(text, "alone", "exec"), module)
    return {name: module[name] for name in re.findall(r"^def (\w+)\(", text, re.MULTILINE)}


def copies(entry: Mapping[str, Any]) -> dict[str, Tensor]:
    """A parameter's states, to be changed."""
    return {name: value.clone() for name, value in entry.items() if isinstance(value, Tensor)}


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor], keys: Sequence[str]) -> list[str]:
    """Names of the tensors that are not the same, bit for bit."""

    def is_same(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))

    return [key for key in keys if not is_same(first[key], second[key])]

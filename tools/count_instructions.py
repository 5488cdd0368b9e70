"""Count the instructions that a class's kernel takes for a tile of 256 elements, and the least time that they need.

    python tools/count_instructions.py AdamW8bit Adan8bit                     float32 parameters
    python tools/count_instructions.py AdamW8bit --rounding kahan,split8      parameters of bf16
    OPTGEN_CXXFLAGS=-mno-avx512f python tools/count_instructions.py AdamW8bit    with AVX2

The passes of a step of the class, on one thread, are run instruction by instruction (ptrace, on Linux and x86); those
of the kernel are read from the disassembly (objdump), and what more tiles add is divided by these. llvm-mca, where it
is installed (Debian: `llvm-19`) and knows the processor, tells how many cycles its ports are busy with them, which
would be all if no instruction waited for another, and how many they take when they wait as that processor makes them.
Beside that stand the nanoseconds that a tile takes where all of its data lies in the second cache.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT / "generated", ROOT):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

import optgen_optim  # noqa: E402
import torch  # noqa: E402

from optgen.console import print_table  # noqa: E402
from optgen.runtime.block import Block  # noqa: E402
from optgen.runtime.building.private_dir import cache_dir  # noqa: E402
from optgen.runtime.engines.cpu_engine import CpuEngine  # noqa: E402

TILE = 256
# What llvm-mca says of a processor, and what was measured there: an instruction of the same ports stands for another.
MEASURED = {"znver4": (re.compile(r"^vperm(ps|d)\b(.*%ymm)"), r"vpshufb\2")}  # two a cycle, not one
FEW, MORE = 16, 32  # tiles of the steps that are compared
TIMED = 32, 128  # tiles of the steps that are timed
MCA = ("llvm-mca-22", "llvm-mca-19", "llvm-mca")  # the newest knows most processors
PTRACE_TRACEME, PTRACE_CONTINUE, PTRACE_SINGLESTEP, PTRACE_GETREGS = 0, 7, 9, 12
REGISTERS, INSTRUCTION_POINTER = 27, 16  # of 64 bits each, as ptrace gives them on x86-64


@dataclass(frozen=True)
class Case:
    """A class and its parameter.

    Attributes:
        name: The class.
        rounding: How a parameter of bf16 is rounded; empty for float32.
    """

    name: str
    rounding: str

    def optimizer(self, tiles: int) -> torch.optim.Optimizer:
        """One of the class, on a parameter of that many tiles, as a matrix of rows of a tile."""
        dtype = torch.bfloat16 if self.rounding else torch.float32
        generator = torch.Generator().manual_seed(0)
        parameter = torch.nn.Parameter((torch.randn(tiles, TILE, generator=generator) * 0.02).to(dtype))
        parameter.grad = (torch.randn(tiles, TILE, generator=generator) * 1e-3).to(dtype)
        made: torch.optim.Optimizer = getattr(optgen_optim, self.name)([parameter], **self._settings())
        for _ in range(3):
            made.step()
        return made

    def _settings(self) -> dict[str, object]:
        rate = inspect.signature(getattr(optgen_optim, self.name)).parameters["lr"]
        settings: dict[str, object] = {"lr": 1e-4} if rate.default is inspect.Parameter.empty else {}
        return {**settings, "rounding": self.rounding} if self.rounding else settings


@dataclass(frozen=True)
class Counted:
    """Instructions of a tile, cycles of ports and with waiting (where llvm-mca tells), and nanoseconds."""

    instructions: float
    cycles: tuple[float, ...]
    nanoseconds: float


def count(case: Case) -> Counted:
    """Run the class's kernel on few and on more tiles."""
    few, more = executed(case, FEW), executed(case, MORE)
    tiles = MORE - FEW
    cycles = tuple((most - least) / tiles for least, most in zip(cycles_of(few), cycles_of(more), strict=True))
    return Counted((len(more) - len(few)) / tiles, cycles, _nanoseconds(case))


def _nanoseconds(case: Case) -> float:
    """The least time of a tile: what a longer step takes more than a shorter one, in turns, so that what else a step
    does finds the caches alike."""
    optimizers = [case.optimizer(tiles) for tiles in TIMED]
    times: list[list[int]] = [[] for _ in optimizers]
    for _ in range(2000):
        for optimizer, own in zip(optimizers, times, strict=True):
            start = time.perf_counter_ns()
            optimizer.step()
            own.append(time.perf_counter_ns() - start)
    return (min(times[1]) - min(times[0])) / (TIMED[1] - TIMED[0])


def executed(case: Case, tiles: int) -> list[str]:
    """The instructions of kernels in a step, as the assembler writes them, in their order."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            optimizer = case.optimizer(tiles)
            os.write(writing, _kernels().encode())
            os.close(writing)
            if ctypes.CDLL(None).ptrace(PTRACE_TRACEME, 0, None, None) != 0:
                return []
            run = CpuEngine.run

            def stepped(engine: CpuEngine, block: Block, index: int) -> None:
                os.kill(os.getpid(), signal.SIGSTOP)
                run(engine, block, index)
                os.kill(os.getpid(), signal.SIGSTOP)

            CpuEngine.run = stepped  # type: ignore[method-assign]
            optimizer.step()
        except Exception:
            traceback.print_exc()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        places = [line.split(maxsplit=2) for line in pipe.read().splitlines()]
    listing = {int(start, 16): disassembled(path) for start, _, path in places}
    ends = {int(start, 16): int(end, 16) for start, end, _ in places}
    result = []
    for address in _stepped(child):
        for start, end in ends.items():
            if start <= address < end and (line := listing[start].get(address - start)):
                result.append(line)
    if not result:
        raise PermissionError("no instruction was seen: this system lets no process step through another one")
    return result


def _kernels() -> str:
    """Lines of first address, last address and path of the libraries of kernels in this process."""
    spans: dict[str, list[int]] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5].startswith(str(cache_dir())):
            spans.setdefault(parts[5], []).extend(int(number, 16) for number in parts[0].split("-"))
    return "\n".join(f"{min(ends):x} {max(ends):x} {path}" for path, ends in spans.items())


def _stepped(child: int) -> Iterator[int]:
    """Addresses of what a child runs each time between stopping itself and stopping itself again."""
    ptrace = ctypes.CDLL(None).ptrace
    ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    registers = (ctypes.c_uint64 * REGISTERS)()
    inside = False
    while os.WIFSTOPPED(status := os.waitpid(child, 0)[1]):
        if os.WSTOPSIG(status) == signal.SIGSTOP:
            inside = not inside
        else:
            ptrace(PTRACE_GETREGS, child, None, ctypes.addressof(registers))
            yield registers[INSTRUCTION_POINTER]
        ptrace(PTRACE_SINGLESTEP if inside else PTRACE_CONTINUE, child, None, None)


def disassembled(path: str) -> dict[int, str]:
    """A library's instructions by their addresses, without comments and places that jumps lead to."""
    command = ["objdump", "-d", "--no-show-raw-insn", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s*([0-9a-f]+):\t(.*)$", text, re.MULTILINE)
    return {int(address, 16): re.sub(r"\s*(<[^>]*>|#.*)", "", line).strip() for address, line in lines}


def cycles_of(lines: Sequence[str]) -> tuple[float, ...]:
    """Cycles that ports are busy with instructions, and that they take in all; none where llvm-mca does not tell."""
    mca = next((path for name in MCA if (path := shutil.which(name))), None)
    if mca is None:
        return ()
    host = re.search(r"Host CPU: (\S+)", subprocess.run([mca, "--version"], capture_output=True, text=True).stdout)
    if host and (other := MEASURED.get(host[1])):
        lines = [other[0].sub(other[1], line) for line in lines]
    kept = [line for line in lines if not re.match(r"(call|ret|j\w+|data16|nop|cs nop|leave|rep)\b", line)]
    command = [mca, "-iterations=1", "-resource-pressure=false", "-instruction-info=false"]
    said = subprocess.run(command, input="\n".join(kept), capture_output=True, text=True, check=False).stdout
    found = [re.search(rf"{name}: +([0-9.]+)", said) for name in ("Block RThroughput", "Total Cycles")]
    return tuple(float(number[1]) for number in found if number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("classes", nargs="+", help="names of classes")
    parser.add_argument("--rounding", default="", help="of parameters of bf16: stochastic, kahan, split8, split16")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for case in [Case(name, rounding) for name in given.classes for rounding in given.rounding.split(",")]:
        counted = count(case)
        cycles = [f"{number:.0f}" for number in counted.cycles] or ["", ""]
        figures = (f"{counted.instructions:.0f}", *cycles, f"{counted.nanoseconds:.0f}")
        rows.append((f"{case.name} {case.rounding}".strip(), *figures))
    columns = ("class", "instructions a tile", "cycles of ports", "cycles with waiting", "ns")
    print_table(columns, rows, right=columns[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())

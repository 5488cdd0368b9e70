"""Kernels on ARM, emulated, leave the bits that they leave on this processor; loops of codecs use its vectors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import chain, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import optgen_optim
import pytest
import torch
from support.arm import CLANG, COMPILER, FLAGS, emulated, why_no_arm
from support.asked import ask
from support.libraries import Bytes, Emulated, blocks_of
from support.machine import require_compiler

from optgen.paths import include_dir
from optgen.runtime.building.entries import words
from optgen.runtime.engines.kernel_engine import defines

pytestmark = pytest.mark.skipif(bool(why_no_arm()), reason=why_no_arm())

BOOKS = ("int8", "int4", "normal4", "fp8", "companded8")
SHAPES = ((1000,), (37, 140), (33_001,))  # less than a tile, and more than a chunk
# A kernel for each codec: of the states, of the parameter, and how that is rounded.
KERNELS = (
    ("int8", torch.bfloat16, "stochastic"),
    ("int4", torch.bfloat16, "kahan"),
    ("fp8", torch.bfloat16, "split8"),
    ("companded8", torch.float16, "stochastic"),
    ("fp16", torch.bfloat16, "split16"),
    ("bf16", torch.float16, "kahan"),
    ("fp32", torch.bfloat16, "nearest"),
    ("int8", torch.float32, "nearest"),
)


def optimizer(codec: str, dtype: torch.dtype, rounding: str) -> Any:
    """AdamW with equal parameters at every call."""
    params = [torch.nn.Parameter(_numbers(shape, 0).to(dtype)) for shape in SHAPES]
    return optgen_optim.AdamW(
        params, lr=0.01, weight_decay=0.1, codec=codec, rounding=rounding, min_8bit_size=0, target="cpu"
    )


def _numbers(shape: tuple[int, ...], turn: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(17 * len(shape) + turn))


def step(optimizer: Any, turn: int) -> None:
    for param in optimizer.param_groups[0]["params"]:
        gradient = _numbers(param.shape, turn) * 10.0 ** -(turn % 3)
        gradient.view(-1)[:: 7 + turn] = 0.0
        param.grad = gradient.to(param.dtype)
    optimizer.step()


def memory_of(engine: Any) -> list[Bytes]:
    """All that a call of a kernel reads and writes."""
    made = (engine.lines, engine.partials, engine.reduced, engine.scratch, engine.array_memory)
    return [*tables_of(engine), *blocks_of(chain(engine.params, engine.grads, engine.kept, made))]


def tables_of(engine: Any) -> list[Bytes]:
    """Tables of addresses and numbers, which a call only reads."""
    tables = (engine.table, engine.grad_table, engine.numbers, engine.chunks.numbers)
    return [np.frombuffer(engine.call, dtype=np.uint8), *(np.frombuffer(each, dtype=np.uint8) for each in tables)]


def move(engine: Any, folder: Path, clang: bool) -> Emulated:
    """Has an engine's kernel run on ARM from now on."""
    macros = words(defines(engine.rule, engine.bucket))
    library = emulated(engine.rule.source, folder, f"-I{include_dir()}", *macros, clang=clang)

    def run(name: str) -> Any:
        return lambda call: library.run(name, [call], memory_of(engine), tables_of(engine))

    engine.functions = {name: run(name) for name in engine.functions}
    return library


def cases() -> Iterator[Any]:
    """Each kernel by each compiler; by clang, without OpenMP, it is the nearest to Apple silicon that runs here."""
    needs_clang = pytest.mark.skipif(shutil.which(CLANG[0]) is None, reason="no clang++ (apt install clang)")
    for codec, dtype, rounding in KERNELS:
        name = f"{codec}-{str(dtype).removeprefix('torch.')}-{rounding}"
        marks = [needs_clang] if codec in BOOKS else [needs_clang, pytest.mark.full]
        yield pytest.param(codec, dtype, rounding, False, id=f"{name}-g++")
        yield pytest.param(codec, dtype, rounding, True, id=f"{name}-clang", marks=marks)


@pytest.mark.parametrize(("codec", "dtype", "rounding", "clang"), list(cases()))
def test_kernels_leave_the_same_bits(
    codec: str, dtype: torch.dtype, rounding: str, clang: bool, tmp_path: Path
) -> None:
    require_compiler()
    torch.set_num_threads(2)
    here, there = optimizer(codec, dtype, rounding), optimizer(codec, dtype, rounding)
    for each in (here, there):
        step(each, 1)
    ((engine,),) = [step.engines for step in there._kept.of_all]
    library = move(engine, tmp_path, clang)
    for turn in (2, 3):
        step(here, turn)
        step(there, turn)
    library.close()
    for ours, theirs in zip(*(each.param_groups[0]["params"] for each in (here, there)), strict=True):
        assert torch.equal(_bits(ours), _bits(theirs))
        for name, state in here.state[ours].items():
            assert torch.equal(_bits(state), _bits(there.state[theirs][name])), name


def _bits(x: torch.Tensor) -> torch.Tensor:
    return x.detach().reshape(-1).view(torch.uint8)


SOURCE = Path(__file__).with_name("codec_loops.cpp")
PARAMETERS = ("bf16", "fp16", "kahan_bf16", "kahan_fp16", "split8", "split16")
STORED = [*(f"{book}_{sign}" for book in BOOKS for sign in ("signed", "unsigned")), *PARAMETERS]
FUNCTIONS = [f"{way}_{stored}" for stored in STORED for way in ("encode", "decode")]
FUNCTIONS += ["encode_stochastic_bf16", "encode_stochastic_fp16", "draw"]


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("loops") / "loops.s"
    flags = [flag for flag in FLAGS if flag != "-shared"]
    ask([COMPILER, *flags, "-Werror", f"-I{include_dir()}", "-S", str(SOURCE), "-o", str(output)], SOURCE, output)
    return output.read_text().splitlines()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_of_codecs_use_vectors(assembly: list[str], name: str) -> None:
    body = list(takewhile(lambda line: ".size\t" not in line, assembly[assembly.index(f"{name}:") :]))
    counts = [(sum(map(_is_vector, each)), sum(map(_is_scalar, each))) for each in _loops(body)]
    assert any(vectors > scalars for vectors, scalars in counts), counts


def _loops(body: list[str]) -> list[list[str]]:
    """The innermost loops: from a label to a jump back to it."""
    labels = {line.removesuffix(":"): at for at, line in enumerate(body) if line.startswith(".L")}
    jumps = [(at, re.search(r"\t(?:b\.?\w*|cbn?z|tbn?z)\t.*?(\.L\w+)$", line)) for at, line in enumerate(body)]
    found = [(labels[jump[1]], at) for at, jump in jumps if jump and labels[jump[1]] < at]
    inner = [(a, b) for a, b in found if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in found)]
    return [body[begin : end + 1] for begin, end in inner]


def _is_vector(line: str) -> bool:
    """Checks whether an instruction computes four numbers, or two of 64 bits."""
    return bool(re.match(r"\t(?!mov|dup|ins|ld|st|tbl|fmov)\w+\tv\d+\.(?:4s|4h|2d)", line))


def _is_scalar(line: str) -> bool:
    """Checks whether an instruction computes one float."""
    return bool(re.match(r"\tf(?!mov|cmp|csel)\w+\t[sdh]\d+, ", line))

"""Kernels on ARM, emulated, leave the bits that they leave on this processor."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import optgen_optim
import pytest
import torch
from support.arm import emulated, why_no_arm
from support.libraries import Bytes, Emulated, blocks_of
from support.machine import require_compiler

from optgen.paths import include_dir
from optgen.runtime.building.entries import words
from optgen.runtime.engines.kernel_engine import defines

pytestmark = pytest.mark.skipif(bool(why_no_arm()), reason=why_no_arm())

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


def move(engine: Any, folder: Path) -> Emulated:
    """Has an engine's kernel run on ARM from now on."""
    macros = words(defines(engine.rule, engine.bucket))
    library = emulated(engine.rule.source, folder, f"-I{include_dir()}", *macros)

    def run(name: str) -> Any:
        return lambda call: library.run(name, [call], memory_of(engine), tables_of(engine))

    engine.functions = {name: run(name) for name in engine.functions}
    return library


@pytest.mark.parametrize(("codec", "dtype", "rounding"), KERNELS, ids=lambda value: str(value).removeprefix("torch."))
def test_kernels_leave_the_same_bits(codec: str, dtype: torch.dtype, rounding: str, tmp_path: Path) -> None:
    require_compiler()
    torch.set_num_threads(2)
    here, there = optimizer(codec, dtype, rounding), optimizer(codec, dtype, rounding)
    for each in (here, there):
        step(each, 1)
    ((engine,),) = [step.engines for step in there._kept.of_all]
    library = move(engine, tmp_path)
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

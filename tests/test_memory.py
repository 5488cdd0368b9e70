"""Memory of states, in use and in checkpoints: the bytes of the plan, for every class and all bits that it offers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import optgen_optim
import pytest
import torch
from converge_runs import representative, rules
from support.compiling import stock_package
from support.least import codec_of
from support.machine import require_compiler
from support.resident import SHAPE as LARGE

from optgen.bench.driving import arguments, begin_training, bits_of, starting_settings
from optgen.codecs import WHOLE_TENSOR
from optgen.explanation import ClassInfo
from optgen.ir.nodes import Kind

CLASSES: dict[str, ClassInfo] = {info.name: info for info in stock_package().classes}
# Without those that have no state by default, and so cannot be made without further settings: SGD8bit.
STORED = [
    (name, bits)
    for name, info in CLASSES.items()
    for bits in info.bits_choices
    if bits == 32 or info.stored_in(bits).state_bytes > 0
]
SHAPE = (512, 1024)  # whole blocks of any codec
COUNTER = 4  # bytes of a parameter's count of steps

# The most bytes of states per parameter that classes promise, wherever they are offered.
PROMISED = {("AdamW", 8): 2.07, ("AdamW8bit", 8): 2.07, ("Lion", 8): 1.04, ("Lion8bit", 8): 1.04, ("AdamW", 4): 1.07}

# torch.save adds names, settings and its own records; each tensor begins at a multiple of 64 bytes.
SAVED_MORE = 0.01
SAVED_FIXED = 8192

# Pages, tables of the step and partial sums; nothing that grows with a parameter.
RESIDENT_SLACK = 2 * 2**20
ROWS_OF_A_CHUNK = 16  # rules that reduce columns keep each chunk's sums of them, in float64


def stepped(name: str, bits: int) -> tuple[Any, int]:
    """An optimizer of a class after a step on one parameter, and the parameter's elements."""
    made = optgen_optim.CLASSES[name]
    param = torch.full(SHAPE, 0.1, requires_grad=True)
    param.grad = torch.full(SHAPE, 0.01)
    target = {"target": "torch"} if "target" in arguments(made) else {}
    optimizer = made([param], **starting_settings(made, bits), **target)
    begin_training(optimizer)
    optimizer.step()
    return optimizer, param.numel()


def lesser_bytes(info: ClassInfo) -> int:
    """Bytes of what is not one number an element, which the plan leaves out: its share vanishes as tensors grow."""
    rows, cols = SHAPE
    sizes = {Kind.ROW: rows, Kind.COL: cols, Kind.MATRIX: 1, Kind.TENSOR: 1}
    guards = info.setting.guards
    kept = [i for i in info.whole_rule.inputs.values() if i.role == "state" and i.exists.holds(guards)]
    stored = [codec_of(info.setting.codecs[item.name]) for item in kept if item.kind is Kind.ELEMENT]
    scales = sum(4 for codec in stored if codec.block == WHOLE_TENSOR)
    return COUNTER + scales + sum(4 * (item.window or sizes[item.kind]) for item in kept if item.kind in sizes)


def reduces_columns(info: ClassInfo) -> bool:
    """Check whether a pass makes sums of columns."""
    live = info.plans["step"].live_passes(info.setting.guards)
    return any(reduction.reduce.over is Kind.COL for item in live for reduction in item.reductions)


@pytest.mark.parametrize("name", CLASSES)
def test_bits_that_are_offered_are_those_of_the_plan(name: str) -> None:
    assert set(bits_of(optgen_optim.CLASSES[name])) == set(CLASSES[name].bits_choices)


@pytest.mark.parametrize(("name", "bits"), STORED)
def test_states_take_the_bytes_of_the_plan_and_checkpoints_no_more(name: str, bits: int) -> None:
    info = CLASSES[name].stored_in(bits)
    optimizer, numel = stepped(name, bits)
    states = optimizer.state_bytes()
    assert states == info.element_bytes * numel + info.matrix_bytes(*SHAPE) + lesser_bytes(info)
    values = [value for state in optimizer.state.values() for value in state.values()]
    held = sum(v.untyped_storage().nbytes() for v in values if isinstance(v, torch.Tensor))
    assert held == states
    if (name, bits) in PROMISED:
        assert held / numel <= PROMISED[name, bits]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert states <= file.getbuffer().nbytes <= (1 + SAVED_MORE) * states + SAVED_FIXED


# One pass, two passes, sums of columns, in one process. The others in the full run.
MEASURED = ("adam", "lamb", "adafactor")
OTHERS = [rule for rule in rules(optgen_optim.CLASSES) if rule not in MEASURED]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize(
    "measured_families",
    [MEASURED, *(pytest.param((rule,), marks=pytest.mark.full) for rule in OTHERS)],
    ids=",".join,
)
def test_a_step_makes_its_states_resident_and_nothing_else(measured_families: tuple[str, ...]) -> None:
    require_compiler()
    measured = [
        (made.__name__, bits)
        for members in (rules(optgen_optim.CLASSES)[rule] for rule in measured_families)
        for bits in sorted({bits for _, bits in STORED})
        if (made := representative(members, bits)) is not None
        and "target" in arguments(made)
        and (made.__name__, bits) in STORED
    ]
    assert measured
    words = [str(word) for pair in measured for word in pair]
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "support" / "resident.py", *words],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numel = LARGE[0] * LARGE[1]
    for (name, bits), found in zip(measured, json.loads(done.stdout), strict=True):
        states = CLASSES[name].stored_in(bits).state_bytes * numel
        most = states + RESIDENT_SLACK + (8 * numel / ROWS_OF_A_CHUNK if reduces_columns(CLASSES[name]) else 0)
        assert states - RESIDENT_SLACK <= found["more"] <= most, (name, bits, found, states)
        assert found["most"] <= most, (name, bits, found, states)

"""Passes that take a few rows one after the other, in one visit of memory, on the cpu target."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import nn

import optgen
from optgen.compiler import compile_specs
from optgen.explanation import ClassInfo
from optgen.runtime.core.step_inputs import NO_INPUTS
from optgen.runtime.engines import kernel_engine
from runtime.training import run, same, snapshot

SPEC = """
name: centred_rows
title: Rows of mean 0 and equal size
hyperparameters:
  lr: 1e-2
  momentum: {default: 0.9, range: "[0, 1)", doc: Decay rate of the average.}
options:
  columns: {default: false, doc: Whether columns count too.}
states:
  momentum_buffer: {doc: Average of the gradients.}
  largest: {shape: row, when: ndim >= 2, doc: Largest magnitude that a row has had.}
blocks:
  step: |
    momentum_buffer = momentum * momentum_buffer + (1 - momentum) * grad
    if ndim >= 2:
        centred = momentum_buffer - row_mean(momentum_buffer)
        if columns:
            centred = centred / (1 + col_mean(abs(centred)))
        scaled = centred / (rms(centred, over=row) + 1e-8)
        largest = max(largest, max(abs(scaled), over=row))
        update = scaled / (1 + largest)
    else:
        update = momentum_buffer
  apply: |
    param = param - lr * update
"""
SHAPES = ((300, 256), (1000, 96), (70, 1001), (40, 6, 5, 64), (3, 70_000), (5, 7), (1, 4), (6, 1), (0, 3), (50,))
"""Rows of whole chunks, of chunks of several rows, of none of these, longer than a visit, and in one chunk."""


@cache
def info(**settings: Any) -> ClassInfo:
    with TemporaryDirectory() as folder:
        (found,) = compile_specs([written(Path(folder))], None).classes
    return found.given(settings)


def written(folder: Path) -> Path:
    path = folder / "centred_rows.yaml"
    path.write_text(SPEC)
    return path


@cache
def cls() -> Any:
    with TemporaryDirectory() as folder:
        return optgen.load(written(Path(folder))).CentredRows


def new(**settings: Any) -> tuple[Any, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(7)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return cls()(params, target="cpu", **settings), params


def test_a_chain_of_reductions_of_rows_is_one_visit() -> None:
    """The gradient and the average are read once, not four times."""
    assert (info().passes, info().traffic) == (4, 3 * 8 + 20)
    assert [len(visit) for visit in info().visits] == [4]
    assert info().visit_traffic == 20


def test_six_passes_become_three() -> None:
    """The norm of all gradients comes before the rows, norms of the update come with their last pass."""
    clipped = info(max_grad_norm=1.0, trust_ratio="lamb")
    assert (clipped.passes, clipped.traffic) == (6, 4 + 3 * 8 + 12 + 20)
    assert [len(visit) for visit in clipped.visits] == [1, 4, 1]
    assert clipped.visit_traffic == 4 + 12 + 20


def test_columns_end_a_visit() -> None:
    """All rows come before what waits for columns, whose numbers are computed for the whole tensor."""
    assert [len(visit) for visit in info(columns=True).visits] == [1] * info(columns=True).passes


@pytest.mark.parametrize(
    "settings",
    [{}, {"optim_bits": 8, "min_8bit_size": 0}, {"max_grad_norm": 1.0, "trust_ratio": "lamb"}, {"skip_zeros": True}],
    ids=str,
)
def test_results_are_those_of_passes_one_after_the_other(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are the same but for the order in which chunks of one row are added, in float64."""
    opt, params = new(**settings)
    run(opt, params, range(1, 4))
    found = snapshot(opt, params)
    with monkeypatch.context() as patch:
        # Chunks that do not end with rows, wherever there are several.
        patch.setattr(kernel_engine.KernelEngine, "_chunk_of_lines", lambda _self, cols: 256 * (1 + cols % 256 % 2))
        apart, theirs = new(**settings)
        run(apart, theirs, range(1, 4))
    assert same(found, snapshot(apart, theirs))


def test_rows_are_stored_with_the_last_pass_alone() -> None:
    """Nothing is written before all parameters have been summed: the passes before the last one do nothing."""
    opt, params = new()
    run(opt, params, range(1, 2))
    before = [param.detach().clone() for param in params]
    (prepared,) = opt._kept.of_all
    engine = next(engine for engine in prepared.engines if engine.bucket.members[0].param is params[0])
    engine.begin("step", [param.grad for param in engine.params], NO_INPUTS)
    for index, item in enumerate(prepared.block.passes[:-1]):
        if prepared.block.runs(item, engine.bucket.flags):
            engine.run(prepared.block, index)
    for param, kept in zip(params, before, strict=True):
        torch.testing.assert_close(param.detach(), kept, rtol=0, atol=0)

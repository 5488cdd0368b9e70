"""Trainings with paged states, on the stand-in: for tests of what they compute and of the memory they take."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import standin
import torch
from runtime.training import snapshot, train
from torch import Tensor

from optgen.codecs import PAGED_NUMEL
from optgen.runtime.cuda.paging import ManagedPager, StreamedPager
from optgen.runtime.engines.cuda_engine import CudaEngine
from optgen.runtime.optimizer import Optimizer

SHAPES = ((300,), (120_000,), (5000,), (400, 300), (PAGED_NUMEL,), (PAGED_NUMEL - 1,))
LARGE = 340_000  # elements of those that are paged
SMALL_PORTION = 70_000  # bytes: one chunk of float32 states, or four of 8-bit ones
MANAGED, PINNED = "managed", "host"  # kinds of the stand-in's allocations

KINDS = (MANAGED, PINNED)
PORTIONS = {"whole": None, "portions": SMALL_PORTION}  # all states at once, or in portions that split parameters

earlier: set[int] = set()  # addresses of what tests before have left


def in_turn(values: Iterable[Any], *portions: str) -> list[Any]:
    """Values with each kind of memory, and with portions of each of these sizes; every other of them is `full`.

    What remains has every pair of a value, a kind and a size.
    """
    cases = []
    for turn, value in enumerate(values):
        for (k, kind), (p, portion) in product(enumerate(KINDS), enumerate(portions or ("whole",))):
            marks = () if (turn + k + p) % 2 == 0 else pytest.mark.full
            name = getattr(value, "__name__", str(value))
            size = (PORTIONS[portion],) if portions else ()
            cases.append(pytest.param(value, kind, *size, id="-".join((name, kind, *portions[p : p + 1])), marks=marks))
    return cases


def live(driver: standin.Driver) -> list[standin.Allocation]:
    """The driver's memory that this test has taken."""
    return [allocation for allocation in driver.live_allocations() if allocation.pointer not in earlier]


def small_portions(monkeypatch: pytest.MonkeyPatch, size: int = SMALL_PORTION) -> None:
    """Let portions take so many bytes."""
    monkeypatch.setattr(ManagedPager, "portion_bytes", size)
    monkeypatch.setattr(StreamedPager, "portion_bytes", size)


def make_params(dtype: torch.dtype = torch.float32, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    """The same values at every call."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def trained(cls: Any, steps: int = 3, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[list[Tensor], Any]:
    """Parameters and their optimizer after so many steps."""
    params = make_params(dtype)
    opt = cls(params, target="cuda", **settings)
    train(opt, params, 1, steps)
    return params, opt


def held(driver: standin.Driver, kind: str) -> list[int]:
    """The sizes of this test's memory of a kind."""
    return sorted(allocation.bytes for allocation in live(driver) if allocation.kind == kind)


def engine_of(opt: Optimizer) -> CudaEngine:
    """The engine of the last step's first bucket."""
    engine = opt._kept.of_all[0].engines[0]
    assert isinstance(engine, CudaEngine)
    return engine


def snapshot_of(cls: Any, steps: int = 3, dtype: torch.dtype = torch.float32, **settings: Any) -> dict[str, Any]:
    """Parameters, states and groups after so many steps, without the setting that must not make a difference."""
    params, opt = trained(cls, steps, dtype, **settings)
    return taken(opt, params)


def taken(opt: Optimizer, params: list[Tensor]) -> dict[str, Any]:
    """As `snapshot`, once the host can read the states, without the setting that must not make a difference."""
    opt.state_dict()
    found = snapshot(opt, params)
    return {**found, "groups": [{k: v for k, v in group.items() if k != "is_paged"} for group in found["groups"]]}

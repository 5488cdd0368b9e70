"""The benchmark's own arithmetic, and one round of it on small tensors; nothing here depends on how long it takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import bench
import bench_cases
import bench_measure


def test_gpt2_has_its_148_tensors() -> None:
    case = next(case for case in bench_cases.CASES if case.name == "gpt2")
    assert (len(case.shapes), case.numel) == (148, 124_439_808)


def test_bytes_moved_counts_small_tensors_as_32_bit() -> None:
    case = bench_cases.Case("mixed", ((64, 64), (100,)), 1)
    ours = bench_cases.our_contender("AdamW8bit", torch.optim.AdamW, {"AdamW8bit": 16.0625, "AdamW32bit": 28.0})
    assert ours.bytes_moved(case) == 4096 * 16.0625 + 100 * 28
    assert bench_cases.our_contender("LION", torch.optim.AdamW, {}).bytes_moved(case) is None


def test_targets() -> None:
    faster = bench.Target("a", "x", "y", at_least=1.2)
    slower = bench.Target("a", "x", "y", at_most=1.2)
    assert faster.measured(1.0, 1.5) == (1.5, True)
    assert faster.measured(1.0, 1.1) == (1.1, False)
    assert slower.measured(1.1, 1.0) == (1.1, True)
    assert slower.measured(1.3, 1.0) == (1.3, False)


def test_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench_cases.Case("small", ((8, 8), (3,)), 2)

    def broken(_: list[torch.Tensor]) -> torch.optim.Optimizer:
        raise RuntimeError("not here\nat all")

    seen: list[int] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            seen.extend(id(param.grad) for group in self.param_groups for param in group["params"])
            super().step()

    contenders = [
        bench_cases.Contender("good", lambda params: Watched(params), lambda _: 28.0),
        bench_cases.Contender("bad", broken, lambda _: 28.0),
    ]
    monkeypatch.setattr(bench_measure, "last_level_cache", lambda: 0)
    monkeypatch.setattr(bench_measure, "triad_kernel", lambda: None)
    budget = replace(bench_measure.QUICK, case_seconds=0.01)
    result = bench_measure.measure_case(case, contenders, bench_measure.Bandwidth(), budget, lambda _: None)
    good, bad = result.measured
    assert good.samples
    assert good.age == bench_measure.STATES_AGE
    assert len(seen) == 2 * (good.age + len(good.samples))
    assert all(first != second for first, second in zip(seen[::2], seen[2::2], strict=False))
    assert bad.failure == "RuntimeError: not here"
    rows = bench.case_rows(result)
    assert [row[0] for row in rows] == ["good", "bad"]
    assert len(bench.case_record(result)["optimizers"]) == 2


def test_peers_that_are_not_installed_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "optgen_optim", None)
    found, absent = bench_cases.contenders(["AdamW8bit"], ["torch", "bitsandbytes"])
    assert [one.name for one in found] == list(bench_cases.PEERS["torch"])
    assert set(absent) == {"AdamW8bit", *bench_cases.PEERS["bitsandbytes"]}

"""Benchmarks over the size of tensors and the width of vectors; nothing here depends on how fast anything is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import bench
import bench_sizes
import bench_widths
import pytest
import torch
from bench_sizes import Point
from matplotlib.image import imread

from optgen.bench.contenders import Contender
from optgen.bench.measure import Budget
from optgen.bench.peers import FUSED

NOW = Budget(run_seconds=0.2, case_seconds=0.01, aging_seconds=0.01, least=1, most=1)


class Meter:
    bytes = 1
    how = "nothing"

    def seconds(self) -> float:
        return 1e-3


def test_sizes_reach_from_a_hundred_to_a_hundred_million_and_both_sides_of_min_8bit_size() -> None:
    assert (bench_sizes.SIZES[0], bench_sizes.SIZES[-1]) == (10**2, 10**8)
    assert {4095, 4096} <= set(bench_sizes.SIZES)
    assert list(bench_sizes.SIZES) == sorted(bench_sizes.SIZES)
    assert len(bench_sizes.case_of_size(100).shapes) == 1000
    assert len(bench_sizes.case_of_size(4096).shapes) == 244
    assert bench_sizes.case_of_size(10**8).shapes == ((10**8,),)


def test_every_size_is_measured_on_one_thread_and_on_all() -> None:
    threads = torch.get_num_threads()
    seen: list[int] = []

    def make(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        seen.append(torch.get_num_threads())
        return torch.optim.SGD(params, lr=0.1)

    def broken(_: list[torch.Tensor]) -> torch.optim.Optimizer:
        raise RuntimeError("no")

    torch.set_num_threads(2)
    try:
        found = [Contender("SGD", make, lambda *_: 12.0), Contender("broken", broken, lambda *_: None)]
        points = list(bench_sizes.measure(found, Meter(), NOW, (300_000, 500_000), lambda *_: None))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == [1, 2, 1, 2]
    assert [(one.threads, one.size, one.name) for one in points] == [
        (count, size, "SGD") for size in (300_000, 500_000) for count in (1, 2)
    ]
    assert all(one.nanoseconds > 0 for one in points)


def test_a_table_and_a_picture(tmp_path: Path) -> None:
    points = [
        Point(threads, size, name, 1.25) for threads in (1, 2) for size in (100, 10**6) for name in (FUSED, "AdamW8bit")
    ]
    points.pop()
    assert bench_sizes.columns(points) == ("threads", "tensor of", "AdamW8bit", FUSED)
    assert bench_sizes.rows(points) == [
        ("1", "100", "1.25", "1.25"),
        ("1", "1,000,000", "1.25", "1.25"),
        ("2", "100", "1.25", "1.25"),
        ("2", "1,000,000", "-", "1.25"),
    ]
    bench_sizes.draw(points, tmp_path / "more" / "sizes.png", "a machine")
    picture = imread(tmp_path / "more" / "sizes.png")
    assert picture.shape[1] > picture.shape[0] > 300
    assert len({tuple(pixel) for row in picture[::2] for pixel in row[::2]}) > 20  # lines of several colours


def record(median: float) -> dict[str, Any]:
    one = {"name": "AdamW8bit", "median": median, "roofline": 0.5}
    other = {"name": FUSED, "median": 0.1, "roofline": None}
    failed = {"name": "broken", "median": None, "roofline": None}
    case = {"case": "gpt2", "bandwidth": 4e10, "optimizers": [one, other, failed]}
    return {"machine": {"processor": "Best", "torch": "2"}, "cases": [case]}


def test_widths_stand_side_by_side() -> None:
    assert bench_widths.tables({"AVX-512": record(0.05), "AVX2": record(0.2)}).splitlines() == [
        "AVX-512: Best, torch 2",
        "",
        "AVX2: Best, torch 2",
        "",
        "gpt2 (AVX-512 at 40 GB/s, AVX2 at 40 GB/s):",
        "",
        "| optimizer | ms, AVX-512 | roofline, AVX-512 | speed against torch fused, AVX-512 "
        "| ms, AVX2 | roofline, AVX2 | speed against torch fused, AVX2 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| AdamW8bit | 50.00 | 50 % | 2.00 x | 200.00 | 50 % | 0.50 x |",
        f"| {FUSED} | 100.00 | - | 1.00 x | 100.00 | - | 1.00 x |",
        "",
        "Milliseconds a step:",
        "",
        "|  | gpt2, AVX-512 | gpt2, AVX2 |",
        "| --- | --- | --- |",
        "| AdamW8bit | 50.0 | 200 |",
        f"| {FUSED} | 100 | 100 |",
    ]


def test_each_width_is_a_process_that_is_told_to_use_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[list[str], dict[str, str]]] = []

    def run(command: list[str], env: dict[str, str], check: bool) -> None:
        assert check
        ran.append((command[2:-2], env))
        Path(command[-1]).write_text(json.dumps(record(0.05)))

    monkeypatch.setattr(bench_widths.subprocess, "run", run)
    monkeypatch.setattr(bench_widths, "processor", lambda: "flags avx2 avx512f")
    monkeypatch.setenv("OPTGEN_CXXFLAGS", "-O2")
    assert bench.main(["--widths", "--case", "gpt2", "--json", str(tmp_path / "all.json")]) == 0
    assert [words[:2] for words, _ in ran] == [["--case", "gpt2"]] * 2
    assert [(env["OPTGEN_CXXFLAGS"], env["ATEN_CPU_CAPABILITY"]) for _, env in ran] == [
        ("-O2", "avx512"),
        ("-O2 -mno-avx512f", "avx2"),
    ]
    assert list(json.loads((tmp_path / "all.json").read_text())) == ["AVX-512", "AVX2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "--case", "gpt2"], "--sizes has cases and contenders of its own; leave --case out"),
        (["--sizes", "--peers", "torch"], "leave --peers out"),
        (["--png", "a.png"], "--png draws what --sizes measures"),
        (["--widths", "--all"], "--widths measures the cases of the cpu"),
    ],
)
def test_wrong_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(words)
    assert said in capsys.readouterr().err


def test_sizes_bring_their_own_contenders() -> None:
    given: argparse.Namespace = bench.arguments(["--sizes", "--png", "a.png"])
    assert (given.classes, given.peers) == (list(bench_sizes.CLASSES), list(bench_sizes.PEERS))

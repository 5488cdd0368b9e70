"""The benchmark's own arithmetic, and one round of it on small tensors; nothing here depends on how long it takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import bench
import bench_host
import bench_python
import pytest
import torch

from optgen.bench import contenders, gpu, measure, peers, show
from optgen.bench.cases import Case
from optgen.bench.contenders import Contender
from optgen.errors import UserError


def test_gpt2_has_its_148_tensors() -> None:
    case = next(case for case in bench.CASES if case.name == "gpt2")
    assert (len(case.shapes), case.numel) == (148, 124_439_808)


def test_bytes_moved_count_small_tensors_as_32_bit() -> None:
    case = Case("mixed", ((64, 64), (100,)), 1)
    known = contenders.catalogue()
    (one,) = contenders.wanted(known, ["AdamW8bit"])
    ours = contenders.our_contender(one)
    assert ours.bytes_moved(case) == 4096 * 16.03125 + 100 * 28
    assert ours.bytes_kept(case) == 4096 * 2.03125 + 100 * 8
    assert ours.bytes_moved(replace(case, dtype="bfloat16")) == 4096 * 10.03125 + 100 * 22
    assert Contender("other", torch.optim.AdamW, contenders.unknown).bytes_moved(case) is None


def test_peers_move_what_their_states_need() -> None:
    """torch's states are of the parameter's dtype; bitsandbytes and torchao store theirs as ours."""
    classes = contenders.wanted(contenders.catalogue(), ["AdamW32bit", "AdamW8bit"])
    found = {one.name: one for one in peers.peers(["torch", "bitsandbytes", "torchao"], classes).found}
    case = Case("a", ((1000, 1000),), 1, "bfloat16")
    moved = {name: found[name].bytes_moved(case) for name in (peers.FUSED, peers.BNB8, peers.BNB32, peers.TORCHAO8)}
    assert [value and value / case.numel for value in moved.values()] == [14, 10.03125, 22, 10.03125]
    assert found[peers.FUSED].bytes_moved(replace(case, dtype="float32")) == 28e6


def test_targets() -> None:
    faster = bench.Target("a", "x", "y", at_least=1.2)
    slower = bench.Target("a", "x", "y", at_most=1.2)
    assert faster.measured(1.0, 1.5) == (1.5, True)
    assert faster.measured(1.0, 1.1) == (1.1, False)
    assert slower.measured(1.1, 1.0) == (1.1, True)
    assert slower.measured(1.3, 1.0) == (1.3, False)


def test_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("small", ((8, 8), (3,)), 2)

    def broken(_: list[torch.Tensor]) -> torch.optim.Optimizer:
        raise RuntimeError("not here\nat all")

    seen: list[int] = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            seen.extend(id(param.grad) for group in self.param_groups for param in group["params"])
            super().step()

    contenders = [
        Contender("good", lambda params: Watched(params), lambda *_: 28.0),
        Contender("bad", broken, lambda *_: 28.0),
    ]
    monkeypatch.setattr(measure, "last_level_cache", lambda: 0)
    monkeypatch.setattr(measure, "triad_kernel", lambda: None)
    budget = replace(bench.QUICK, case_seconds=0.01)
    result = measure.measure_case(case, contenders, measure.Bandwidth(), budget, lambda *_: None)
    good, bad = result.measured
    assert good.samples
    assert good.age == measure.STATES_AGE
    assert len(seen) == 2 * (good.age + len(good.samples))
    assert all(first != second for first, second in zip(seen[::2], seen[2::2], strict=False))
    assert bad.failure == "RuntimeError: not here"
    rows = show.rows(result)
    assert [row[0] for row in rows] == ["good", "bad"]
    assert len(show.record(result)["optimizers"]) == 2


def test_peers_that_are_not_installed_are_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PACKAGES, "bitsandbytes", ("no_such_package.optim", peers.PACKAGES["bitsandbytes"][1]))
    found, absent = bench.contenders(["AdamW8bit", "AdamX"], ["torch", "bitsandbytes"])
    assert [one.name for one in found] == ["AdamW8bit", peers.FUSED, peers.FOREACH]
    assert absent == {
        "AdamX": "optgen_optim has no such class",
        "bitsandbytes": "not installed: pip install bitsandbytes",
    }


@pytest.mark.parametrize("installed", ["bitsandbytes", "bitsandbytes_cpu_fork"])
def test_the_fork_of_bitsandbytes_is_told_from_it(
    installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are imported by one name."""
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").touch()
    (tmp_path / f"{installed}-1.dist-info").mkdir()
    (tmp_path / f"{installed}-1.dist-info" / "METADATA").write_text(f"Name: {installed}\nVersion: 1\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    reasons = {package: peers.other_package(package, "bitsandbytes.optim") for package in ("bitsandbytes", peers.FORK)}
    is_fork = installed != "bitsandbytes"
    assert reasons["bitsandbytes"] == (f"what is installed by this name is {peers.FORK}" if is_fork else "")
    assert reasons[peers.FORK].startswith("not installed where Python looks first: pip install") is not is_fork
    assert peers.other_package("torchao", "torchao.optim") == ""


def test_a_class_in_other_bits() -> None:
    found, absent = bench.contenders(["AdamW@4", "AdamX@4"], [])
    assert [one.name for one in found] == ["AdamW in 4 bits"]
    assert absent == {"AdamX@4": "optgen_optim has no such class"}
    with pytest.raises(UserError, match="SGD stores its states in"):
        bench.contenders(["SGD@4"], [])


def test_flashoptim_is_asked_for_the_same_states() -> None:
    seen: dict[str, object] = {}

    class Flash:
        @staticmethod
        def FlashAdamW(params: object, lr: float, weight_decay: float, **more: object) -> None:
            seen.update(more, lr=lr, weight_decay=weight_decay)

    classes = contenders.wanted(contenders.catalogue(), ["AdamW32bit", "AdamW8bit", "LAMB"])
    made = [one for wanted in classes for one in peers.flash_peer(Flash, wanted)]
    assert [one.name for one in made] == [peers.FLASH32, peers.FLASH8]
    made[1].make([])
    assert seen == {"lr": 1e-3, "weight_decay": 1e-2, "quantize": True, "master_weight_bits": None}
    made[0].make([])
    assert seen["quantize"] is False


def test_shares_of_copy_bandwidth_and_time_of_the_host() -> None:
    case = Case("a", ((1000,),), 1)
    ours = measure.Measured(Contender("ours", torch.optim.AdamW, lambda *_: 28.0), [2.0, 1.0, 4.0])
    result = measure.CaseResult(case, [ours], [0.5, 1.0, 3.0], 42_000)
    assert result.bandwidth == 42_000
    targets = (
        bench.Target("a", "ours", bench.COPY, at_least=0.3),
        bench.Target("a", "ours", bench.COPY, at_least=0.5),
        bench.Target("a", "ours", bench.HOST, at_most=150.0),
        bench.Target("a", "other", bench.HOST, at_most=150.0),
        bench.Target("b", "ours", bench.HOST, at_most=150.0),
        bench.Target("a", "ours", bench.REPLAY, at_most=20.0),
    )
    hosts = [
        bench_host.HostResult("a", "ours", 151e-6, replay=19e-6),
        bench_host.HostResult("a", "other", failure="not here"),
    ]
    records = bench.target_records([result], targets, hosts)
    share = 28_000 / 42_000 / 2.0
    assert [(r["measured"], r["met"]) for r in records] == [
        (pytest.approx(share), True),
        (pytest.approx(share), False),
        (pytest.approx(151), False),
        (None, None),
        (pytest.approx(19), True),
    ]
    assert [row[3:6] for row in bench.target_rows(records)] == [
        (">= 0.3 of it", "0.33x", "yes"),
        (">= 0.5 of it", "0.33x", "no"),
        ("<= 150 µs", "151 µs", "no"),
        ("<= 150 µs", "absent", "-"),
        ("<= 20 µs", "19 µs", "yes"),
    ]
    assert bench_host.host_rows(hosts) == [("a", "ours", "", "151", "-", "19"), ("a", "other", "not here", *"---")]


def test_targets_name_cases_and_contenders_that_there_are() -> None:
    others = {peers.FUSED, peers.FOREACH, peers.COMPILED, peers.BNB8, peers.BNB32, peers.TORCHAO8, peers.FORK8}
    others |= {peers.FLASH8, peers.FLASH32, bench.COPY, *bench.ON_HOST}
    ours = {one.name for one in bench.contenders(bench.CUDA_CLASSES, [])[0]}
    for device, targets in (("cpu", bench.TARGETS), ("cuda", bench.CUDA_TARGETS)):
        cases = {case.name for case in bench.ALL_CASES[device]}
        for target in targets:
            assert target.case in cases
            assert target.ours in ours
            assert target.other in others


def test_the_host_is_timed_with_new_gradients_in_every_step() -> None:
    seen: list[int] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            seen.append(id(self.param_groups[0]["params"][0].grad))
            super().step()

    case = Case("small", ((8, 8), (3,)), 2, "bfloat16")
    contender = Contender("watched", lambda params: Watched(params, lr=0.1), lambda *_: None)
    seconds = bench_host.host_seconds(case, contender, 20, torch.device("cpu"))
    assert 0 < seconds < 1
    assert len(seen) == 20
    assert all(first != second for first, second in pairwise(seen))


def test_pythons_part_is_measured_beside_another() -> None:
    figures = bench_python.python_figures(torch.optim.SGD, torch.optim.AdamW, runs=3)
    assert [one.limit for one in figures] == [1.3, None, 1.0, 2.0]
    assert all(one.ours > 0 and one.other > 0 for one in figures)
    known = bench_python.PythonPart("a step", 3e-5, 2e-5, 1.3), bench_python.PythonPart("another", 3e-5, 2e-5, None)
    assert bench.python_rows(known) == [
        ("a step", "30.0", "20.0", "1.50x", "<= 1.3x", "no"),
        ("another", "30.0", "20.0", "1.50x", "", "-"),
    ]


def test_without_a_gpu_the_cuda_bench_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        bench.main(["--device", "cuda"])
    assert ended.value.code == 2
    assert "--device cuda needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--case", "1e8"], "on cpu 1e8 is not one of 4096x4096, gpt2, 1000x1024"),
        (["--device", "cuda", "--case", "4096x4096"], "on cuda 4096x4096 is not one of 1e8, gpt2"),
        (["--device", "cuda", "--imports"], "--imports is measured on the cpu"),
        (["--device", "cuda", "--python"], "--python is measured on the cpu"),
        (
            ["--peers", "keras"],
            "keras is not one of torch, compile, bitsandbytes, bitsandbytes-cpu-fork, torchao, flashoptim, none",
        ),
    ],
)
def test_wrong_arguments(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.arguments(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_each_device_has_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "")
    assert "compile" not in bench.arguments([]).peers
    assert bench.arguments(["--device", "cuda"]).peers == [name for name in peers.PACKAGES if name != peers.FORK]
    assert bench.arguments(["--device", "cuda", "--quick"]).peers == ["torch", "bitsandbytes"]

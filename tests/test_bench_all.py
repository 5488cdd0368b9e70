"""`bench.py --all`: what is measured, what is flagged, and one round of it on a small tensor."""

from __future__ import annotations

from dataclasses import replace

import bench
import bench_every as every
import optgen_optim
import pytest
import torch
from support.machine import require_compiler

from optgen.bench import measure
from optgen.bench.cases import Case

ENTRY = every.Entry("adam", "AdamW", 32, ("AdamW32bit",), states=2, passes=1, bytes=28.0)
CASE = Case("small", ((64, 80),), 2)


def test_every_class_is_measured_once() -> None:
    found = every.entries()
    named = [name for entry in found for name in (entry.name, *(other.split(" ")[0] for other in entry.alike))]
    matrices = every.of_matrices()
    assert {"Muon", "Shampoo", "GaLoreAdamW8bit"} <= set(matrices)
    assert set(named) == set(optgen_optim.CLASSES) - set(matrices)
    steps = [(entry.name, entry.bits) for entry in found]
    assert len(set(steps)) == len(steps)
    fixed = [name for name, made in optgen_optim.CLASSES.items() if made.bits is not None]
    assert all(named.count(name) == 1 for name in set(fixed) - set(matrices))


def test_classes_of_one_step_are_told_apart_from_others() -> None:
    entries = {(e.name, e.bits): e for e in every.entries(["AdamW", "AdamW32bit", "AdamW8bit", "Adam"], [32, 8])}
    assert entries["AdamW", 32].alike == ("AdamW32bit",)
    assert entries["AdamW", 8].alike == ("AdamW8bit",)
    assert ("Adam", 32) in entries
    assert (entries["AdamW", 8].states, entries["AdamW", 8].passes) == (2, 1)


def measured(entry: every.Entry, seconds: float, fused: float | None) -> every.Figure:
    one = measure.Measured(every.contender(entry, optgen_optim.CLASSES), [seconds, seconds / 2, 2 * seconds])
    return every.figure(entry, one, bandwidth=28.0 * every.CASE.numel, fused=fused)


def test_what_is_flagged() -> None:
    assert measured(ENTRY, 1.0, 1.0).roofline == pytest.approx(1.0)
    assert measured(ENTRY, 1.6, 1.0).flag == ""
    assert measured(ENTRY, 1.7, 1.0).flag == "below 60 %"
    assert measured(replace(ENTRY, own_target=True), 1.7, 1.0).flag == ""
    small = replace(ENTRY, bits=8, bytes=16.0)
    assert measured(small, 1.2, 1.0).flag == ""
    assert measured(small, 1.3, 1.0).flag == "below 45 %"
    assert measured(replace(small, bits=4), 1.3, 1.0).flag == "below 45 %"
    assert every.Figure(ENTRY, failure="no").flag == "not measured"
    assert every.rows([measured(ENTRY, 1.7, 1.0)])[0][:3] == ("AdamW +1", "adam", "below 60 %")
    assert every.line(measured(ENTRY, 1.7, 1.0)).endswith("59 % of the roofline  1.70x of fused  below 60 %")
    assert every.alike([measured(ENTRY, 1.7, 1.0)]) == ["AdamW in 32 bits, and so AdamW32bit"]


def test_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setattr(measure, "last_level_cache", lambda: 0)
    budget = replace(bench.QUICK, case_seconds=0.01)
    found = every.entries(["AdamW", "PagedAdamW8bit", "LAMB32bit"], [32, 8])
    shown: list[every.Figure] = []
    figures, rounds = every.measure(found, measure.Bandwidth(), budget, lambda *_: None, shown.extend, CASE)
    assert shown == figures
    assert [one.failure for one in figures] == [""] * len(figures)
    assert {(one.entry.name, one.entry.bits) for one in figures} == {("AdamW", 32), ("AdamW", 8), ("LAMB32bit", 32)}
    assert [one["family"] for one in rounds] == ["adam", "lamb"]
    assert all(one.samples and one.roofline and one.against_fused for one in figures)
    assert all(len(row) == len(every.COLUMNS) for row in every.rows(figures))
    assert len(every.records(figures)) == len(figures)


def test_a_class_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(params: list[torch.Tensor], optim_bits: int = 32) -> torch.optim.Optimizer:
        raise ValueError("not today")

    broken.bits, broken.rule = None, optgen_optim.AdamW.rule  # type: ignore[attr-defined]
    monkeypatch.setattr(optgen_optim, "CLASSES", {**optgen_optim.CLASSES, "AdamW": broken})
    monkeypatch.setattr(measure, "last_level_cache", lambda: 0)
    budget = replace(bench.QUICK, case_seconds=0.01)
    figures, _ = every.measure([ENTRY], measure.Bandwidth(), budget, lambda *_: None, lambda _: None, CASE)
    assert every.line(figures[0]).endswith("not measured; CannotBeMadeError: broken: not today")
    assert "not today" in figures[0].failure
    assert "not measured" in every.rows(figures)[0][2]


@pytest.mark.parametrize("words", [["--case", "gpt2"], ["--imports"], ["--peers", "torch"]])
def test_all_goes_alone(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        bench.arguments(["--all", *words])
    assert ended.value.code == 2
    assert f"leave {words[0]} out" in capsys.readouterr().err
    assert bench.arguments(["--all"]).classes == []
    assert bench.arguments([]).classes == list(bench.DEFAULT_CLASSES)

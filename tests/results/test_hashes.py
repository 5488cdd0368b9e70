"""The results that are written down hold, and their hashes notice what they are there to notice."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles.rounding import ROUNDINGS
from oracles.storage import CODECS, DTYPES
from support.catalogue import rows

from results.files import Record, Recorded, read, write
from results.training import Case, run
from results.work import Workers

TOOL = Path(__file__).parent / "hashes.py"
KEPT = Path(__file__).parent / "kept"
ADAMW = Case("AdamW", "torch", settings={"amsgrad": True, "lr": 0.01})


def hold(*arguments: str) -> None:
    """In a process of its own: what torch computes is decided before it is imported."""
    done = subprocess.run([sys.executable, str(TOOL), "check", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if "0 of 0 cases" in done.stdout:
        pytest.skip(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_results_hold(target: str) -> None:
    hold("--set", "quick", "--target", target, "--jobs", "1")


@pytest.mark.full
def test_all_results_hold() -> None:
    hold()


@pytest.mark.parametrize("target", ["torch", "cpu", "cuda"])
def test_every_class_codec_and_rounding_is_written_down(target: str) -> None:
    cases = [each.case for each in read(KEPT / f"{target}.jsonl").cases]
    assert {case.target for case in cases} == {target}
    shown = {name: row for name, row in rows().items() if row.rule.ndim != 2}  # results/cases.py: of_elements says why
    classes = {name for name, row in shown.items() if target == "torch" or not row.torch_only}
    assert {case.name for case in cases if not case.spec} == classes
    assert {case.dtype for case in cases} == {case.grad_dtype for case in cases} == set(DTYPES)
    assert {*CODECS, "bf16", "fp16"} <= {case.settings.get("codec") for case in cases}
    assert {case.settings.get("rounding", "nearest") for case in cases} == set(ROUNDINGS)


def test_a_training_is_the_same_every_time() -> None:
    first = run(ADAMW)
    torch.manual_seed(5)
    assert run(ADAMW) == first


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.011}, "parameters from call 1 on; param; groups; of 0-dim, one"),
        (
            {"betas": (0.9, 0.998)},
            "parameters from call 1 on; param; exp_avg_sq; max_exp_avg_sq; groups; of 0-dim, one",
        ),
        ({"min_8bit_size": 1}, "groups"),
    ],
)
def test_where_results_differ(settings: dict[str, object], said: str) -> None:
    other = run(replace(ADAMW, settings={**ADAMW.settings, **settings}))
    assert run(ADAMW).difference(other, ADAMW).startswith(said)


def test_what_differs_is_said_and_what_cannot_be_compared_is_left_out() -> None:
    wrong = replace(ADAMW, settings={**ADAMW.settings, "maximize": True})
    right, found = run(ADAMW), run(wrong)
    written = Workers(1).record([ADAMW])[0]
    assert written.cases[0].result == right
    spoilt = Recorded(ADAMW, found, ("libm",))
    elsewhere = Recorded(ADAMW, found, ("libm", "sum"))
    record = Record({**written.probes, "sum": "another"}, (*written.cases, spoilt, elsewhere))
    done = Workers(1).compare(record)
    assert (done.compared, done.left_out, done.reasons) == (2, 1, {"sum": 1})
    assert done.differing == (f"{ADAMW.label}: {found.difference(right, ADAMW)}",)


def test_a_case_that_fails_is_said_to() -> None:
    bad = replace(ADAMW, settings={"no_such": 1})
    record, errors = Workers(1).record([bad])
    assert not record.cases
    assert errors == [f"{bad.label}: TypeError: {errors[0].partition('TypeError: ')[2]}"]


def test_a_file_holds_what_it_was_given(tmp_path: Path) -> None:
    settings = {"betas": (0.9, 0.99), "beta3": None}
    case = Case("Prodigy", "cpu", "bf16", "fp32", settings=settings, second={"weight_decay": 1e-2})
    record = Record({"sum": "0123"}, (Recorded(case, run(ADAMW), ("sum",)),))
    write(tmp_path / "results.jsonl", record)
    assert read(tmp_path / "results.jsonl") == record

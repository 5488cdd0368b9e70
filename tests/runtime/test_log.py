"""The log: what it holds, and that nobody sees it who has not asked."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import optgen_optim
import pytest
import torch
from support.compiling import ROOT
from support.machine import require_compiler

import optgen

Written = Callable[..., str]
PROGRAM = """
import torch, optgen_optim
param = torch.nn.Parameter(torch.ones(300))
optimizer = optgen_optim.SGD([param], lr=0.1, target={target!r})
for _ in range(3):
    param.grad = torch.ones(300)
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
"""


@pytest.fixture
def written(torch_python: str) -> Written:
    """Standard error of a short training, by level, folder of the cache, target, and what the program does before."""
    return partial(_written, torch_python)


def _written(python: str, level: str | None, cache: Path, target: str = "torch", before: str = "") -> str:
    folders = os.pathsep.join([str(ROOT), str(ROOT / "generated")])
    own = {"PYTHONPATH": folders, "OPTGEN_CACHE_DIR": str(cache)} | ({} if level is None else {"OPTGEN_LOG": level})
    environment = {key: value for key, value in os.environ.items() if key != "OPTGEN_LOG"} | own
    command = [python, "-c", before + PROGRAM.format(target=target)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr


def test_a_level_shows_lines_of_it_and_above(tmp_path: Path, written: Written) -> None:
    require_compiler()
    compiled = r"\S+ \S+ optgen\.runtime\.building\.entries INFO: compiled \S+/sgd\.cpp in \d+\.\d s: \S+\.so"
    first = written("info", tmp_path, "cpu").splitlines()
    assert re.fullmatch(compiled, next(line for line in first if "sgd.cpp" in line))
    assert re.search(r"load INFO: SGD: a checkpoint fits: 1 groups, states of \d parameters$", first[-1])
    again = written("debug", tmp_path, "cpu")
    assert "loaded" in again
    assert "compiled" not in again.replace("compiled earlier", "")
    assert again.count("SGD: step prepared for parameters in buckets of 1 on cpu") == 1


def test_without_the_variable_nothing_is_shown(tmp_path: Path, written: Written) -> None:
    assert written(None, tmp_path) == written("", tmp_path) == ""


def test_a_word_that_is_no_level_is_said(tmp_path: Path, written: Written) -> None:
    said = written("loud", tmp_path)
    assert said.count("\n") == 1
    assert said.endswith("optgen WARNING: OPTGEN_LOG=loud is no level; there are debug, info, warning, error\n")


def test_a_program_that_shows_everything_itself_sees_each_line_once(tmp_path: Path, written: Written) -> None:
    before = "import logging; logging.basicConfig(level=logging.DEBUG)\n"
    for level in (None, "debug"):
        assert written(level, tmp_path, before=before).count("step prepared") == 1


def test_programs_take_messages_by_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="optgen"):
        optgen.load(ROOT / "tests" / "runtime" / "data" / "packages" / "kept.yaml")
        param = torch.nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        optimizer = optgen_optim.AdamW([param], target="torch")
        for _ in range(3):
            optimizer.step()
    names = {record.name for record in caplog.records}
    assert names <= {"optgen.compiler", "optgen.runtime.step.run"}
    messages = [record.getMessage() for record in caplog.records if record.name == "optgen.runtime.step.run"]
    assert messages == ["AdamW: step prepared for parameters in buckets of 1 on torch"]

"""Forked processes step, whatever the process that they come from was doing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from optgen_optim import AdamW32bit

from optgen.runtime.engines.cpu_engine import CpuEngine

SCRIPT = Path(__file__).parents[2] / "support" / "forking.py"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no forks")
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_forked_processes_step(compiler: str, torch_python: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    done = subprocess.run(
        [torch_python, str(SCRIPT)],
        env={**os.environ, "OPTGEN_CXX": compiler},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 13
    assert {way: what for way, what in found.items() if what} == {}


@pytest.mark.parametrize(
    ("sizes", "threads"), [([10], 1), ([32_768], 1), ([32_769], 2), ([10] * 100, 1), ([10] * 1000, 8)]
)
def test_little_work_stays_on_the_calling_thread(sizes: list[int], threads: int) -> None:
    params = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = AdamW32bit(params, target="cpu")
    torch.set_num_threads(16)
    optimizer.step()
    engines = [engine for prepared in optimizer._kept.of_all for engine in prepared.engines]
    assert [engine.call.threads for engine in engines if isinstance(engine, CpuEngine)] == [threads]

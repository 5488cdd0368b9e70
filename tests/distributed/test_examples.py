"""The scripts of examples/ run under torchrun on CPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def torchrun(processes: int, *arguments: str) -> str:
    """What a script prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_fsdp2_trains_and_saves(tmp_path: Path) -> None:
    """The loss falls below that of guessing bytes (5.545), and the states of each process are 8-bit ones."""
    folder = tmp_path / "checkpoint"
    text = torchrun(2, str(EXAMPLES / "train_fsdp2.py"), "--steps", "10", "--checkpoint", str(folder))
    found = re.search(r"step 10: loss ([\d.]+)", text)
    assert found, text
    assert float(found.group(1)) < 5.545
    assert (folder / ".metadata").exists()
    assert "AdamW8bit: " in text


@pytest.mark.full
def test_other_numbers_of_processes_go_on(tmp_path: Path) -> None:
    """Three processes go on where two stopped, and tensor parallelism prints the same losses for one and two."""
    folder = str(tmp_path / "checkpoint")
    torchrun(2, str(EXAMPLES / "train_fsdp2.py"), "--steps", "5", "--checkpoint", folder)
    text = torchrun(3, str(EXAMPLES / "train_fsdp2.py"), "--steps", "10", "--checkpoint", folder)
    assert re.search(r"step 10: loss [\d.]+", text), text
    script = str(EXAMPLES / "train_tensor_parallel.py")
    assert torchrun(1, script) == torchrun(2, script)

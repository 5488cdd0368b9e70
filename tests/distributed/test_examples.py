"""The scripts of examples/ run under torchrun on CPUs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(command: list[str], more: dict[str, str]) -> str:
    """Run a command and return what it prints."""
    paths = os.pathsep.join(sys.path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "PYTHONFAULTHANDLER": "1", **more}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout, done.stderr[-8000:])
    return "".join(line for line in done.stdout.splitlines(True) if not line.startswith("[Gloo]"))  # as torch 2.8 says


def torchrun(python: str, processes: int, *arguments: str) -> str:
    """Run a script under torchrun and return what it prints."""
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return run([*command, *arguments], {"PYTHON_EXEC": python})  # of the processes that it starts


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        number: int = listener.getsockname()[1]
    return number


def shown() -> list[str]:
    """The arguments of the command that docs/distributed.md shows, from the script on; it runs from the root."""
    text = (EXAMPLES.parent / "docs" / "distributed.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"(?m)^torchrun --nproc-per-node 2 (examples/.*)$", text)
    words: list[str] = command.split()
    return [str(EXAMPLES.parent / words[0]), *words[1:]]


@pytest.mark.slow
def test_fsdp2_trains_and_saves(tmp_path: Path, torch_python: str) -> None:
    """The loss falls below that of guessing bytes (5.545), and the states of each process are 8-bit ones."""
    folder = tmp_path / "checkpoint"
    text = torchrun(torch_python, 2, *(str(folder) if word == "/tmp/run" else word for word in shown()))
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", text)]
    assert len(losses) == 2, text
    assert 5.545 > losses[0] > losses[1]
    assert (folder / ".metadata").exists()
    assert "AdamW8bit: " in text


@pytest.mark.slow
def test_tensor_parallelism_prints_the_same_losses(torch_python: str) -> None:
    """For two processes as for one, which needs no torchrun."""
    script = str(EXAMPLES / "train_tensor_parallel.py")
    port = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    alone = run([torch_python, script], port)
    assert "step 100: loss" in alone
    assert torchrun(torch_python, 2, script) == alone


@pytest.mark.full
def test_other_numbers_of_processes_go_on(tmp_path: Path, torch_python: str) -> None:
    """Three processes go on where two stopped."""
    folder = str(tmp_path / "checkpoint")
    torchrun(torch_python, 2, str(EXAMPLES / "train_fsdp2.py"), "--steps", "5", "--checkpoint", folder)
    text = torchrun(torch_python, 3, str(EXAMPLES / "train_fsdp2.py"), "--steps", "10", "--checkpoint", folder)
    assert re.search(r"step 10: loss [\d.]+", text), text

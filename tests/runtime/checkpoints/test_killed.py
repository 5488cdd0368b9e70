"""Real kills: processes that get SIGKILL amid steps and amid saving, and others that go on from the last checkpoint.

That every step is one at which a kill changes nothing, for every class and codec, is in test_resume.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from runtime.training import same

ROOT = Path(__file__).parents[3]
LAST = 6
SCRIPT = """
import os, signal, sys, torch
from pathlib import Path
from optgen_optim import AdamW8bit
from runtime.training import SMALL, make_params, train

folder, target, last, how, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
torch.set_num_threads(1)
params = make_params(torch.bfloat16)
opt = AdamW8bit(params, lr=0.1, min_8bit_size=SMALL, rounding="stochastic", seed=5, target=target)
schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.7)
first, kept = 1, folder / "kept.pt"
if kept.exists():
    checkpoint = torch.load(kept, weights_only=True)
    opt.load_state_dict(checkpoint["opt"])
    schedule.load_state_dict(checkpoint["schedule"])
    with torch.no_grad():
        for param, value in zip(params, checkpoint["params"]):
            param.copy_(value)
    first = checkpoint["step"] + 1
print("from", first, flush=True)


class Dying:
    '''A file of which half of the first piece is written.'''

    def __init__(self, file):
        self.file = file

    def write(self, data):
        self.file.write(bytes(data)[: len(data) // 2])
        self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


for step in range(first, last + 1):
    if how == "step" and step == when:
        print("stepping", flush=True)
        while True:  # until the parent kills it; none of these steps was saved
            train(opt, params, step, step)
    train(opt, params, step, step)
    schedule.step()
    with open(folder / "new.pt", "wb") as file:
        values = {"opt": opt.state_dict(), "schedule": schedule.state_dict(), "step": step}
        values["params"] = [param.detach() for param in params]
        torch.save(values, Dying(file) if (how, when) == ("save", step) else file)
    os.replace(folder / "new.pt", kept)
"""


def run(python: str, folder: Path, target: str, how: str = "never", when: int = 0) -> tuple[int, str]:
    """The step that a process begins with, and how it ended: "done" or "killed"."""
    folders = [ROOT, ROOT / "generated", ROOT / "tests"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [python, "-c", SCRIPT, str(folder), target, str(LAST), how, str(when)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = int(process.stdout.readline().split()[1])
        if how == "step":
            assert process.stdout.readline() == "stepping\n"
            time.sleep(0.05)
            process.kill()
        code = process.wait(timeout=300)
    return first, {0: "done", -signal.SIGKILL: "killed"}[code]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("target", ["cpu", pytest.param("torch", marks=pytest.mark.full)], indirect=True)
def test_killed_processes_end_as_one_that_was_not(tmp_path: Path, target: str, torch_python: str) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert run(torch_python, whole, target) == (1, "done")
    assert run(torch_python, killed, target, "step", 1) == (1, "killed")
    assert not list(killed.iterdir()), "killed before there was a checkpoint"
    assert run(torch_python, killed, target, "step", 3) == (1, "killed")
    assert run(torch_python, killed, target, "save", 4) == (3, "killed")
    with pytest.raises(RuntimeError):
        torch.load(killed / "new.pt", weights_only=True)
    assert run(torch_python, killed, target) == (4, "done")
    results = [torch.load(folder / "kept.pt", weights_only=True) for folder in (whole, killed)]
    assert results[0]["step"] == LAST
    assert same(*results)

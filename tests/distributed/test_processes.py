"""Steps of several processes that have parts of parameters, or replicas, are those of one process.

The processes are started once, four of them, then two, then one, and compute everything; each test looks at what came
of one scenario. What they do stands in tests/distributed_*.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

MODULES = {  # for how many processes each has scenarios
    "distributed_scenarios": (4, 2),
    "distributed_counts": (4, 2),
    "distributed_agreement": (2,),
    "distributed_engines": (4, 2),
    "distributed_matrix": (4, 2),
    "distributed_rules": (2,),
    "distributed_checkpoints": (4, 2, 1),
    "distributed_other_checkpoints": (4, 2, 1),
    "distributed_cuda": (2,),
    "distributed_docs": (2,),
}
TESTS = Path(__file__).resolve().parents[1]
SECONDS = 600
SIZES = (4, 2, 1)  # in this order: what some have saved others load


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of every scenario; several workers of pytest share it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "processes"
    with FileLock(root / "processes.lock"):
        done = folder / "done.json"
        if not done.exists():
            found = {str(size): run(folder / str(size), size) for size in SIZES}
            done.write_text(json.dumps(found))
    loaded: dict[str, Any] = json.loads(done.read_text())
    return loaded


def run(folder: Path, size: int, modules: Iterable[str] = MODULES) -> dict[str, Any]:
    """Start the processes, wait for them, and read what they wrote; `log` is what the first one that failed printed."""
    folder.mkdir(parents=True)
    path = os.pathsep.join(sys.path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    logs = [folder / f"{rank}.log" for rank in range(size)]
    processes = []
    for rank, log in enumerate(logs):
        command = [
            sys.executable,
            str(TESTS / "distributed_steps.py"),
            ",".join(modules),
            str(folder),
            str(rank),
            str(size),
        ]
        with log.open("w") as out:
            processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(SECONDS) for process in processes]
    except subprocess.TimeoutExpired:
        codes = [1] * size
    finally:
        for process in processes:
            process.kill()
    written = folder / "results.json"
    found: dict[str, Any] = json.loads(written.read_text()) if written.exists() else {}
    failed = next((log.read_text()[-4000:] for log, code in zip(logs, codes, strict=True) if code), "")
    return {**found, "log": failed}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "module"), [(size, module) for size in SIZES for module, sizes in MODULES.items() if size in sizes]
)
def test_processes_come_to_what_one_does(results: dict[str, Any], size: int, module: str) -> None:
    """Every scenario is within the bounds that it states, on every process."""
    ran = {name.split(":")[0] for name in results[str(size)]} - {"log"}
    assert ran == {name for name, sizes in MODULES.items() if size in sizes}, results[str(size)]["log"]
    judge(results[str(size)], module)


def judge(found: dict[str, Any], module: str) -> None:
    """Fail if a scenario of a module has failed, and skip if one has been left out, with its reason."""
    mine = {name: came for name, came in found.items() if name.startswith(f"{module}:")}
    assert mine, found["log"]
    errors = [f"{name}\n{came['error']}" for name, came in mine.items() if "error" in came]
    assert not errors, "\n".join([f"{len(errors)} of {len(mine)} fail", *errors, found["log"]])
    left_out = [came["left out"] for came in mine.values() if "left out" in came]
    if left_out:
        pytest.skip(f"{len(left_out)} of {len(mine)} are left out: {left_out[0]}")


@pytest.mark.slow
def test_what_is_missing_is_a_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the cuda target without PyCUDA: their test says so, and has not passed."""
    (tmp_path / "without_pycuda.py").write_text(
        """
import sys
sys.modules["pycuda"] = None  # as if it were not installed
from distributed_cuda import SCENARIOS as OF_TWO
SCENARIOS = {1: OF_TWO[2]}
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = run(tmp_path / "run", 1, ["without_pycuda"])
    with pytest.raises(pytest.skip.Exception, match="11 of 11 are left out: PyCUDA is not installed"):
        judge(found, "without_pycuda")

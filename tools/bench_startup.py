"""Costs of starting: importing the stock package, building it from specs, a first step cold and from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]

IMPORT = "import torch, time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
# torch's first optimizer of a process, whichever it is, imports torch._dynamo for about a second: not ours to count.
FIRST_STEP = """
import time, torch
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
p = torch.nn.Parameter(torch.randn(256, 256))
p.grad = torch.randn(256, 256)
t = time.perf_counter()
from optgen_optim import {name}
optimizer = {name}([p], lr=1e-3)
optimizer.step()
t = time.perf_counter() - t
assert set(optimizer.engines()) == {{"cpu"}}, f"ran on {{optimizer.engines()}}"
print(t)
"""
COLD_SECONDS = 3.0
BUILD = "import sys; from optgen.cli import main; sys.argv = ['optgen', *sys.argv[1:]]; main()"


@dataclass(frozen=True)
class Startup:
    """One figure: seconds (the median of `runs`), the most that is allowed, or why it could not be measured."""

    name: str
    limit: float
    seconds: float | None
    runs: int
    failure: str = ""


def startup_figures(classes: tuple[str, ...], quick: bool) -> list[Startup]:
    """Measure all figures in fresh processes."""
    runs = 3 if quick else 7
    figures = [
        *(imports(statement, runs) for statement in ("import optgen_optim", "from optgen_optim import AdamW")),
        repeated("optgen build specs/", 2.0, 3, build_seconds),
    ]
    for name in classes:
        figures += first_steps(name, runs)
    return figures


def imports(statement: str, runs: int) -> Startup:
    """Measure an import in a process that has torch already."""
    return repeated(f"{statement}, after torch", 0.050, runs, lambda: timed_python(IMPORT.format(statement=statement)))


def first_steps(name: str, runs: int) -> list[Startup]:
    """Measure the first step with an empty cache of kernels, then with what it left there."""
    code = FIRST_STEP.format(name=name)
    with tempfile.TemporaryDirectory(prefix="optgen-bench-") as folder:
        return [
            repeated(f"import to first step of {name}, cold", COLD_SECONDS, 1, lambda: timed_python(code, folder)),
            repeated(f"import to first step of {name}, cached", 0.100, runs, lambda: timed_python(code, folder)),
        ]


def repeated(name: str, limit: float, runs: int, measure: Callable[[], float]) -> Startup:
    """Take the median of several runs."""
    try:
        return Startup(name, limit, median(measure() for _ in range(runs)), runs)
    except RuntimeError as error:
        return Startup(name, limit, None, 0, str(error))


def run(command: list[str], cache: str | None = None) -> str:
    """Run a program on this checkout; return what it printed. Raises RuntimeError with its last line if it fails."""
    found = os.pathsep.join(path for path in (str(ROOT / "generated"), str(ROOT), os.environ.get("PYTHONPATH")) if path)
    environment = {**os.environ, "PYTHONPATH": found}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as users have it: modules are compiled once
    if cache is not None:
        environment["OPTGEN_CACHE_DIR"] = cache
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(
            (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        )
    return done.stdout


def timed_python(code: str, cache: str | None = None) -> float:
    """Run code that prints a number of seconds as its last line."""
    return float(run([sys.executable, "-c", code], cache).strip().splitlines()[-1])


def build_seconds() -> float:
    """Time the whole command, from nothing, into a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="optgen-bench-") as folder:
        target = Path(folder) / "optgen_optim"
        start = time.perf_counter()
        run([sys.executable, "-c", BUILD, "build", "specs", "--out", str(target), "--package", "optgen_optim"])
        return time.perf_counter() - start

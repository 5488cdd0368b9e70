"""Processes in the background that run scenarios, and what came of each: tests go on meanwhile, and look at it last."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from distributed.scenarios.listing import Key

_LEADERS: list[subprocess.Popen[bytes]] = []  # which outlive the tests of the worker that has started them


class Processes:
    """Runs of scenarios in a folder, whichever of pytest's workers has started them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, keys: Iterable[Key]) -> None:
        """Start the processes of these scenarios, and of those that they need, unless a worker has."""
        with FileLock(f"{self.folder}.lock"):
            if not self.folder.exists():
                self._start(keys)

    def _start(self, keys: Iterable[Key]) -> None:
        from distributed.scenarios.listing import with_needed  # here, as it imports much that other tests do without

        self.folder.mkdir(parents=True)
        (self.folder / "selection.json").write_text(json.dumps(with_needed(keys)))
        path = os.pathsep.join(sys.path)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        whole_run = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        command = [sys.executable, "-m", "distributed.scenarios.run", str(self.folder), str(whole_run)]
        with (self.folder / "running").open("w") as running, (self.folder / "log").open("w") as log:
            # Locked for as long as any process has it open that was started with it, however that one ends.
            fcntl.flock(running, fcntl.LOCK_EX)
            _LEADERS.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=[running.fileno()]
                )
            )

    def came(self, key: Key) -> dict[str, Any]:
        """Wait for what came of a scenario, or for the end of its processes, which is then the error."""
        while True:
            over, ended = self._over(), self._ended(key.size)
            results = self.folder / str(key.size) / "results.jsonl"
            for line in results.read_text().splitlines(keepends=True) if results.exists() else []:
                if line.endswith("\n") and json.loads(line)["id"] == str(key):
                    found: dict[str, Any] = json.loads(line)
                    return {**found, "log": ended or ""}
            if ended is not None:
                return {"error": "the processes ended before it", "log": ended}
            if over:
                return {"error": "the processes ended before it", "log": (self.folder / "log").read_text()[-4000:]}
            time.sleep(0.1)

    def _ended(self, size: int) -> str | None:
        """The log of the first that failed among so many processes, once they have ended; empty if none has."""
        ended = self.folder / str(size) / "ended"
        return ended.read_text() if ended.exists() else None

    def _over(self) -> bool:
        with (self.folder / "running").open() as running:
            try:
                fcntl.flock(running, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


def selected(items: Iterable[pytest.Item]) -> list[Key]:
    """The scenarios that tests are about."""
    return [item.callspec.params["scenario"] for item in items if looks_at_scenario(item)]  # type: ignore[attr-defined]


def looks_at_scenario(item: pytest.Item) -> bool:
    """Tell if a test is about a scenario."""
    return "processes" in getattr(item, "fixturenames", ())

"""Steps of several processes that have parts of parameters, or replicas, are those of one process.

Each test looks at what came of one scenario of tests/distributed/scenarios. Those that are selected run in the
background from the session's beginning: four processes, then two, then one. One alone:

    pytest "tests/distributed/test_processes.py::test_scenario[2-checkpoints-go-on-from-4-with-columns-8-bits]"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distributed.processes import Processes
from distributed.scenarios.listing import Key, every


def _param(key: Key, full: bool) -> Any:
    return pytest.param(key, id=str(key), marks=[pytest.mark.full] if full else [])


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [_param(key, scenario.full) for key, scenario in every().items()])
def test_scenario(scenario: Key, processes: Processes) -> None:
    """Holds a scenario to the bounds that it states, on every process."""
    judge(processes.came(scenario))


def judge(came: dict[str, Any]) -> None:
    """Fail if a scenario has failed, and skip if it has been left out, with its reason."""
    if "error" in came:
        pytest.fail(f"{came['error']}\n{came['log']}", pytrace=False)
    if "left out" in came:
        pytest.skip(came["left out"])


@pytest.mark.slow
def test_what_is_missing_is_a_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of the cuda target without what calls a driver: their tests say so, and have not passed."""
    (tmp_path / "sitecustomize.py").write_text(
        'import sys\nsys.modules["pycuda"] = sys.modules["cuda"] = None  # as if they were not installed\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    keys = list(every(["distributed.scenarios.cuda"]))
    assert len(keys) == 11
    processes = Processes(tmp_path / "processes")
    processes.begin(keys)
    for key in keys:
        with pytest.raises(pytest.skip.Exception, match="neither PyCUDA nor cuda-bindings is installed"):
            judge(processes.came(key))


@pytest.mark.slow
def test_failures_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario that raises fails with its error alone; one that a process dies in, and those after it, with a log."""
    (tmp_path / "failing.py").write_text(
        """
import os
from distributed.scenarios.world import Scenario

def raises(world):
    assert world.rank == 0, "wrong here"

def dies(world):
    if world.rank == 1:
        print("last words", flush=True)
        os._exit(3)

SCENARIOS = {2: {"raises": Scenario(raises), "goes on": Scenario(lambda world: 1.0), "dies": Scenario(dies),
                 "later": Scenario(lambda world: 1.0)}}
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    processes = Processes(tmp_path / "processes")
    raises, goes_on, dies, later = every(["failing"])
    processes.begin([raises, goes_on, dies, later])
    with pytest.raises(pytest.fail.Exception, match=r"(?s)on process 1:.*wrong here"):
        judge(processes.came(raises))
    judge(processes.came(goes_on))
    for key in (dies, later):
        with pytest.raises(pytest.fail.Exception, match=r"(?s)ended before it.*process 1 ended with 3.*last words"):
            judge(processes.came(key))

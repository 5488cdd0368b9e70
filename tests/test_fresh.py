"""Processes forked from one that has imported torch are as those that Python starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is Python itself")


def run(python: str, *words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *words], capture_output=True, text=True, timeout=120, check=False, **more)  # type: ignore[call-overload, no-any-return]


def test_it_has_torch_and_nothing_of_this_project(torch_python: str) -> None:
    code = "import sys, threading; print('torch._dynamo' in sys.modules, threading.active_count(), *sys.modules)"
    imported, threads, *modules = run(torch_python, "-c", code).stdout.split()
    assert (imported, threads) == ("True", "1")
    assert not [name for name in modules if name.partition(".")[0] in ("optgen", "optgen_optim", "pytest", "support")]


def test_arguments_environment_folder_and_files_are_the_caller_s(torch_python: str, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    (tmp_path / "own").mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "import beside, os, sys, torch\n"
        "print(sys.argv[1:], sys.stdin.read(), beside.VALUE, dict(os.environ), os.getcwd(), torch.get_num_threads())\n"
        "print(__name__, __file__, sys.modules['__main__'].beside is beside, file=sys.stderr)\n"
    )
    environment = {"OMP_NUM_THREADS": "3", "X": "1"}
    done = run(torch_python, "-u", str(script), "a", "-b", input="text", env=environment, cwd=tmp_path / "own")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['a', '-b'] text 7 {")
    assert "'X': '1'" in done.stdout
    assert "PATH" not in done.stdout
    assert done.stdout.endswith(f"{tmp_path / 'own'} 3\n")
    assert done.stderr == f"__main__ {script} True\n"


def test_modules_run_and_paths_are_those_of_the_environment(torch_python: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nprint(sys.argv[1:], __name__)\n")
    done = run(torch_python, "-m", "mine", "a", env={"PYTHONPATH": str(tmp_path)})
    assert (done.stdout, done.stderr) == ("['a'] __main__\n", "")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import atexit, sys; atexit.register(lambda: print('end', file=sys.stderr))", 0, "end\n"),
        ("import threading, time, sys\ndef late(): time.sleep(0.1); print('late', file=sys.stderr)\n"
         "threading.Thread(target=late).start()", 0, "late\n"),
    ],
)  # fmt: skip
def test_it_ends_as_python_does(torch_python: str, code: str, status: int, said: str) -> None:
    done = run(torch_python, "-c", code)
    assert done.returncode == status
    assert done.stderr.endswith(said)
    assert bool(said) == bool(done.stderr)


def test_it_ends_with_the_program_that_was_called(torch_python: str) -> None:
    command = [torch_python, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(100)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as called:
        assert called.stdout is not None
        pid = int(called.stdout.readline())
        os.kill(pid, 0)
        called.kill()
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("it goes on")


def test_numbers_drawn_differ_from_process_to_process(torch_python: str) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.random())"
    first, second = (run(torch_python, "-c", code).stdout.split() for _ in range(2))
    assert not set(first) & set(second)

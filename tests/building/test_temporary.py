"""Temporary folders and what else is done at the end: by the last process that uses a folder, never by a forked one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.owners import ANOTHER, Give

from optgen.runtime.building import temporary
from optgen.runtime.cuda import cuda_device

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
ROOT = Path(__file__).parents[2]


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program whose temporary folders lie in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(directory: Path) -> Path:
    old = time.time() - temporary.ABANDONED_SECONDS - 1
    os.utime(directory, (old, old))
    return directory


def test_a_forked_process_that_ends_first_leaves_the_folder(tmp_path: Path) -> None:
    done = run(
        """
        import os, sys
        from optgen.runtime.building.temporary import temporary_dir
        made = temporary_dir()
        if os.fork() == 0:
            sys.exit()
        os.wait()
        print(made.is_dir())
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert not list(tmp_path.iterdir())


def test_a_forked_process_that_goes_on_keeps_the_folder_and_removes_it(tmp_path: Path) -> None:
    done = run(
        """
        import os, sys, time
        from optgen.runtime.building.temporary import temporary_dir
        made, parent = temporary_dir(), os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.01)
            time.sleep(0.1)
            print(made.is_dir(), flush=True)
        sys.exit()
        """,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert not list(tmp_path.iterdir())


def test_processes_that_were_killed_leave_nothing_for_ever(here: Path) -> None:
    done = run(
        """
        import os
        from optgen.runtime.building.temporary import temporary_dir
        (temporary_dir() / "file").touch()
        os.kill(os.getpid(), 9)
        """,
        here,
    )
    assert done.returncode == -9
    (left,) = here.iterdir()
    young = temporary.temporary_dir()
    assert left.is_dir()
    assert young.is_dir()
    aged(left)
    held = aged(temporary.temporary_dir())
    assert not left.exists()
    assert temporary.temporary_dir().is_dir()
    assert held.is_dir()


@pytest.mark.parametrize("kind", ["another user's", "a link", "of another name"])
def test_what_is_not_ours_is_left_alone(kind: str, here: Path, give: Give) -> None:
    kept = here / "kept"
    kept.mkdir()
    (kept / "file").touch()
    if kind == "a link":
        (here / f"{temporary.PREFIX}x").symlink_to(kept)
        os.utime(here / f"{temporary.PREFIX}x", (0, 0), follow_symlinks=False)
    elif kind == "another user's":
        kept = aged(kept.rename(here / f"{temporary.PREFIX}x"))
        give(kept, ANOTHER)
    aged(kept)
    temporary.temporary_dir()
    assert (kept / "file").exists()


def test_without_locks_the_maker_removes_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_hold", lambda *_, **__: None)
    made = aged(temporary.temporary_dir())
    temporary.temporary_dir()
    temporary._leave(made, None, os.getpid() + 1)
    assert made.is_dir()
    temporary._leave(made, None, os.getpid())
    assert not made.exists()


def test_what_compiles_behind_outlives_a_forked_process(tmp_path: Path) -> None:
    done = run(
        f"""
        import os, sys, threading, time
        from pathlib import Path
        from optgen.runtime.building.programs import run
        said = []
        command = ["sh", "-c", "touch started; sleep 0.5; echo whole"]
        os.chdir({str(tmp_path)!r})
        thread = threading.Thread(target=lambda: said.append(run(command, Path(), 60.0, behind=True)))
        thread.start()
        while not os.path.exists("started"):
            time.sleep(0.01)
        if os.fork() == 0:
            sys.exit()
        os.wait()
        thread.join()
        print(said[0].status, said[0].said)
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["0", "whole"], done.stderr


def test_a_context_is_given_up_by_the_process_that_uses_it() -> None:
    detached: list[bool] = []
    gpu = SimpleNamespace(context=SimpleNamespace(detach=lambda: detached.append(True)))
    cuda_device._detach(gpu, os.getpid() + 1)  # type: ignore[arg-type]
    assert detached == []
    cuda_device._detach(gpu, os.getpid())  # type: ignore[arg-type]
    assert detached == [True]


def test_a_process_forked_while_a_thread_builds_gets_the_kernel_too(tmp_path: Path) -> None:
    done = run(
        """
        import os, signal, sys, threading, time
        from pathlib import Path
        from optgen.runtime.building.entries import Kernel, Loader
        from optgen.runtime.building.programs import Output
        started = threading.Event()
        def build(output, folder):
            started.set()
            time.sleep(0.3)
            output.write_bytes(b"kernel")
            return Output((), 0, "")
        kernel = Kernel(
            source=Path("kernel"), compiler="compiler", key=lambda: "0" * 64, name=lambda key: f"kernel-{key[:32]}.so",
            build=build, load=lambda entry, content: content, advice="", unloadable=lambda directory: "",
        )
        loader = Loader()
        thread = threading.Thread(target=loader.get, args=(kernel,))
        thread.start()
        started.wait()
        if os.fork() == 0:
            signal.alarm(30)
            print(loader.get(kernel), flush=True)
            os._exit(0)
        thread.join()
        print(os.wait()[1])
        """,
        tmp_path,
        OPTGEN_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert done.stdout.split() == ["b'kernel'", "0"], done.stderr

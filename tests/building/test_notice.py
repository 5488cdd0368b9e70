"""Users are told what a step waits for, where it takes longer than a moment: once, on standard error alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import optgen_optim
import pytest
import torch
from support.fake_programs import script

from optgen import paths
from optgen.runtime.building import cache, compilers, entries, notice, private_dir

ROOT = Path(paths.__file__).resolve().parent.parent
TEXT = "compiling Sample for this processor, once"
needs_compiler = pytest.mark.skipif(compilers.find_compiler() is None, reason="no C++ compiler on this machine")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(notice, "_said", set())


def wait() -> None:
    with notice.notice(TEXT):
        time.sleep(0.3)


def test_a_line_once_a_process_and_nothing_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    wait()
    wait()
    assert capfd.readouterr() == ("", f"{TEXT}\n")


def test_what_is_quick_is_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "PATIENCE_SECONDS", 60.0)
    start = time.perf_counter()
    wait()
    assert time.perf_counter() - start < 30.0
    monkeypatch.setattr(notice, "PATIENCE_SECONDS", 0.0)
    with notice.notice(""):
        time.sleep(0.1)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_has_a_spinner_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    wait()
    shown = terminal.getvalue()
    assert TEXT in shown
    assert shown.rstrip("\r").endswith("\x1b[2K")  # its line is erased
    assert "\x1b[?25h" in shown  # and the cursor is there again


@pytest.mark.parametrize("stream", [None, io.TextIOWrapper(io.BytesIO())])
def test_a_closed_standard_error_is_nothing_to_fail_for(
    stream: io.TextIOWrapper | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    wait()


def test_an_error_comes_through(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), notice.notice(TEXT):
        time.sleep(0.3)
        raise KeyboardInterrupt
    assert capfd.readouterr().err == f"{TEXT}\n"


@needs_compiler
def test_a_step_says_the_name_of_the_class_and_only_where_it_compiles(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    for _ in range(2):
        monkeypatch.setattr(cache, "_libraries", entries.Loader())
        monkeypatch.setattr(notice, "_said", set())
        param = torch.nn.Parameter(torch.ones(8))
        param.grad = torch.ones(8)
        optimizer = optgen_optim.SGD([param], lr=0.1, target="cpu")
        optimizer.step()
    assert capfd.readouterr() == ("", "compiling SGD for this processor, once\n")


@needs_compiler
def test_of_several_processes_the_one_that_compiles_says_it(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.cpp"
    kernel.write_text('extern "C" __attribute__((visibility("default"))) int answer() { return 7; }\n')
    compiler = compilers.find_compiler()
    assert compiler is not None
    slow = script(tmp_path / "slow", f'case "$*" in *kernel*) sleep 1;; esac\nexec {compiler.path} "$@"')
    code = f"""
        from pathlib import Path
        from optgen.runtime.building import cache, notice
        notice.PATIENCE_SECONDS = 0.1
        compiler = cache.find_compiler()
        cache.shared_library(Path({str(kernel)!r}), {{}}, compiler, ["answer"], {TEXT!r}).answer()
    """
    set_up = {"PYTHONPATH": str(ROOT), "OPTGEN_CXX": str(slow), "OPTGEN_CACHE_DIR": str(tmp_path / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, **set_up},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert sorted(said) == [("", ""), ("", ""), ("", f"{TEXT}\n")]

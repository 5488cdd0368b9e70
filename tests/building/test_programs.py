"""Running compilers: where, for how long, and what is left of one that is given up."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest
from support.fake_programs import script

from optgen.runtime import precompile
from optgen.runtime.building import cache, private_dir
from optgen.runtime.building.programs import TIMED_OUT, end_all, run
from optgen.runtime.precompile import _at_once

LATE = "(sleep 0.6; touch {late}) &\nwait"


def test_what_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """A compiler is a driver and what works for it."""
    late = tmp_path / "late"
    done = run((str(script(tmp_path / "slow", LATE.format(late=late))),), tmp_path, timeout=0.2)
    assert done.status == TIMED_OUT
    time.sleep(0.8)
    assert not late.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, cache.CompileError])
def test_when_one_of_many_fails_or_ctrl_c_comes_the_others_end(error: type[BaseException], tmp_path: Path) -> None:
    late, over = tmp_path / "late", tmp_path / "over"
    until_over = f"(until [ -e {over} ]; do sleep 0.05; done; touch {late}) &"
    slow = script(tmp_path / "slow", f"touch {tmp_path}/started\n{until_over}\nwait\nsleep 30")

    def build(item: str) -> None:
        if item == "slow":
            run((str(slow),), tmp_path, timeout=60)
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        raise error

    begun = time.monotonic()
    with pytest.raises(error):
        _at_once(build, ["fails", "slow"])
    assert time.monotonic() - begun < 20
    over.touch()
    time.sleep(0.8)
    assert not late.exists()


def test_what_is_started_after_another_has_failed_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, failed = Event(), Event()
    slow = script(tmp_path / "slow", "sleep 30")

    def end() -> None:
        failed.set()
        end_all()

    monkeypatch.setattr(precompile, "end_all", end)

    def build(item: str) -> None:
        if item == "slow":
            running.set()
            failed.wait(20)
            time.sleep(0.2)
            run((str(slow),), tmp_path, timeout=60)
        running.wait(20)
        raise cache.CompileError

    begun = time.monotonic()
    with pytest.raises(cache.CompileError):
        _at_once(build, ["fails", "slow"])
    assert time.monotonic() - begun < 20


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_files_where_the_user_stands_are_no_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty word in CPATH is the current folder, and `export CPATH=/some:$CPATH` often leaves one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "cmath").write_text("#error not this one\n", encoding="utf-8")
    kernel = tmp_path / "kernel.cpp"
    kernel.write_text('#include <cmath>\nextern "C" [[gnu::visibility("default")]] int answer() { return 7; }\n')
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CPATH", ":")
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    compiler = cache.find_compiler()
    assert compiler is not None
    assert cache.shared_library(kernel, {}, compiler).answer() == 7


def test_a_compiler_that_was_ended_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the headers that are parsed already: that is for those that refuse them."""
    monkeypatch.setattr(cache, "parsed_headers", lambda compiler, folder: ("-include", "headers"))
    runs: list[str] = []

    def compile(ending: str) -> Callable[..., object]:
        program = script(tmp_path / "compiler", ending)
        return lambda compiler, arguments, folder: runs.append(ending) or run((str(program),), folder, 0.2)

    for ending, times in (("kill -9 $$", 1), ("sleep 5", 1), ("exit 1", 2)):
        runs.clear()
        monkeypatch.setattr(cache, "compile_library", compile(ending))
        cache._compile(cache.Compiler("g++", "1", "gcc"), [], tmp_path)
        assert len(runs) == times, ending

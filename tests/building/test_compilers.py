"""Finding a C++ compiler: which are tried, in which order, and why one is passed over."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest
from support.fake_programs import script

from optgen.runtime.building import cache, compilers, nvcc, private_dir
from optgen.runtime.building.compilers import Compiler

GXX = shutil.which("g++")
needs_compiler = pytest.mark.skipif(GXX is None, reason="no g++ on this machine")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a cache folder of the test's own, and no compiler that the environment names."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(directory))
    monkeypatch.delenv("OPTGEN_CXX", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    compilers._examine.cache_clear()
    return directory


def compiler() -> Compiler:
    found = cache.find_compiler()
    assert found is not None
    return found


@needs_compiler
def test_flags_of_the_users_own_stand_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = compiler().flags
    monkeypatch.setenv("OPTGEN_CXXFLAGS", "-O1 '-DTITLE=a b'")
    assert compiler().flags == (*plain, "-O1", "-DTITLE=a b")
    monkeypatch.delenv("OPTGEN_CXXFLAGS")
    assert compiler().flags == plain


@needs_compiler
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("-DTITLE='a", "OPTGEN_CXXFLAGS is not a list of words: No closing quotation"),
        ("-fno-such-thing", "does not build C++17: "),
    ],
)
def test_flags_that_cannot_be_are_said(flags: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTGEN_CXX", str(GXX))
    monkeypatch.setenv("OPTGEN_CXXFLAGS", flags)
    assert cache.find_compiler() is None
    assert said in cache.why_no_compiler()


def test_no_compiler(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert cache.find_compiler() is None
    assert cache.why_no_compiler() == "g++: not found; clang++: not found; c++: not found"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 3", "`--version` failed"),
        ('[ "$1" = --version ] && echo "g++ 1" && exit 0\necho "error: unknown -fopenmp" >&2; exit 1', "-fopenmp"),
        (
            """[ "$1" = --version ] && echo "g++ 1" && exit 0
            for last; do :; done; printf "#!/bin/sh\\nexit 9\\n" > "$last"; chmod +x "$last\"""",
            "does not run here (exit status 9)",
        ),
    ],
)
def test_a_compiler_that_cannot_do_the_job_is_passed_over(
    body: str, reason: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "bin" / "g++", body)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    if "printf" in body:  # the script needs chmod
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("OPTGEN_CXX", str(tmp_path / "bin" / "g++"))
    assert cache.find_compiler() is None
    assert reason in cache.why_no_compiler()


TRIED = '[ "$1" = --version ] && echo "g++ 1" && exit 0\n'
LINKER = (
    'echo "collect2: error: ld returned 1 exit status"; echo "ld: final link failed: No space left on device"; exit 1'
)


@needs_compiler
@pytest.mark.parametrize("dies", [LINKER, 'echo "collect2: fatal error: ld terminated with signal 7"; exit 1'])
def test_a_full_disk_is_no_fault_of_the_compiler(
    dies: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder serves, and the compiler is tried there: some linkers say nothing of the disk."""
    full = script(tmp_path / "full-g++", f'{TRIED}case "$TMPDIR" in {folder}/*) {dies};; esac\nexec {GXX} "$@"')
    monkeypatch.setenv("OPTGEN_CXX", str(full))
    temporary_file = tempfile.TemporaryFile

    def room(dir: Path) -> BinaryIO:
        if folder in dir.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return temporary_file(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", room)
    with pytest.warns(RuntimeWarning, match=f"{folder} .No space left on device in {folder}"):
        assert compiler().path == str(full)


def test_a_disk_that_is_full_everywhere_is_said(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTGEN_CXX", str(script(tmp_path / "full-g++", f"{TRIED}{LINKER}")))
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert cache.find_compiler() is None
    fallback = private_dir.cache_dir()
    assert cache.why_no_compiler() == f"{tmp_path}/full-g++: cannot be tried: No space left on device in {fallback}"


def test_without_any_folder_nothing_can_be_tried(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(private_dir, "temporary_dir", full)
    monkeypatch.setenv("OPTGEN_CACHE_DIR", "/dev/null/cache")
    for candidates in (compilers.compiler_candidates(), nvcc.nvcc_candidates()):
        reasons = {candidate.reason for candidate in candidates}
        assert reasons == {f"cannot be tried: [Errno {errno.ENOSPC}] No space left on device"}


@needs_compiler
def test_order_and_overrides(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine", "forced"):
        script(tmp_path / "bin" / name, f'exec {GXX} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert Path(compiler().path).name == "g++"
    monkeypatch.setenv("CXX", "mine -g0")
    assert (Path(compiler().path).name, compiler().arguments) == ("mine", ("-g0",))
    monkeypatch.setenv("CXX", "missing")
    assert Path(compiler().path).name == "g++"
    monkeypatch.setenv("OPTGEN_CXX", "forced")
    assert Path(compiler().path).name == "forced"
    monkeypatch.setenv("OPTGEN_CXX", "missing")
    assert cache.find_compiler() is None
    assert cache.why_no_compiler() == "missing: not found"


@needs_compiler
def test_a_compiler_that_refuses_march_native_still_serves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = script(
        tmp_path / "plain-g++",
        f'for word; do case "$word" in -m*native*) echo "error: bad value"; exit 1;; esac; done\nexec {GXX} "$@"',
    )
    monkeypatch.setenv("OPTGEN_CXX", str(plain))
    assert not any("native" in flag for flag in compiler().flags)
    kernel = tmp_path / "kernel.cpp"
    kernel.write_text(
        'extern "C" __attribute__((visibility("default"))) int answer() { return 7; }\n', encoding="utf-8"
    )
    assert cache.shared_library(kernel, {}, compiler()).answer() == 7

"""The compile cache: built once, loaded quickly, healed when damaged, private, and clear about what fails."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from support.fake_programs import script
from support.owners import ANOTHER, Give

from optgen import paths
from optgen.runtime.building import cache, compilers, entries, private_dir
from optgen.runtime.building.compilers import Compiler

ROOT = Path(paths.__file__).resolve().parent.parent
GXX = shutil.which("g++")
needs_compiler = pytest.mark.skipif(GXX is None, reason="no g++ on this machine")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

KERNEL = """\
#include <omp.h>
#ifndef VALUE
#define VALUE 7
#endif
extern "C" __attribute__((visibility("default"))) int answer() {
    int threads = 0;
#pragma omp parallel reduction(+ : threads)
    threads += 1;
    return threads > 0 ? VALUE : -1;
}
"""


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give a function that forgets all that this process knows, as if it had just started."""

    def forget() -> None:
        monkeypatch.setattr(cache, "_libraries", entries.Loader())
        compilers._examine.cache_clear()

    return forget


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_process: Callable[[], None]) -> Path:
    """Use a cache folder of the test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(directory))
    monkeypatch.delenv("OPTGEN_CXX", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    fresh_process()
    return directory


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    source = tmp_path / "kernel.cpp"
    source.write_text(KERNEL, encoding="utf-8")
    return source


def counting_compiler(tmp_path: Path) -> tuple[Path, Path]:
    """Return a compiler that writes a line for each run, and the file that it writes to."""
    log = tmp_path / "runs.log"
    log.touch()
    return script(tmp_path / "bin" / "counting-g++", f'echo "$@" >> {log}\nexec {GXX} "$@"'), log


def builds(log: Path) -> int:
    return sum("kernel.cpp" in line for line in log.read_text(encoding="utf-8").splitlines())


def compiler() -> Compiler:
    found = cache.find_compiler()
    assert found is not None
    return found


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# Building and loading


@needs_compiler
def test_builds_loads_and_remembers(folder: Path, kernel: Path) -> None:
    library = cache.shared_library(kernel, {}, compiler())
    assert library.answer() == 7
    assert cache.shared_library(kernel, {}, compiler()) is library
    assert cache.shared_library(kernel, {"VALUE": "9"}, compiler()).answer() == 9
    assert len(libraries(folder)) == 2


@needs_compiler
def test_the_second_process_does_not_run_the_compiler(
    folder: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_process: Callable[[], None]
) -> None:
    counting, log = counting_compiler(tmp_path)
    monkeypatch.setenv("OPTGEN_CXX", str(counting))
    cache.shared_library(kernel, {}, compiler())
    runs = log.read_text(encoding="utf-8")
    assert builds(log) == 1
    fresh_process()
    assert cache.shared_library(kernel, {}, compiler()).answer() == 7
    assert log.read_text(encoding="utf-8") == runs


@needs_compiler
def test_a_changed_compiler_is_examined_again_and_gets_its_own_entry(
    folder: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_process: Callable[[], None]
) -> None:
    counting, log = counting_compiler(tmp_path)
    monkeypatch.setenv("OPTGEN_CXX", str(counting))
    cache.shared_library(kernel, {}, compiler())
    script(counting, f'echo "$@" >> {log}\n[ "$1" = --version ] && echo "g++ 99" && exit 0\nexec {GXX} "$@"')
    fresh_process()
    assert compiler().version == "g++ 99"
    cache.shared_library(kernel, {}, compiler())
    assert builds(log) == 2


@needs_compiler
@pytest.mark.parametrize("change", ["source", "header", "define", "flags"])
def test_whatever_decides_the_content_decides_the_key(
    change: str, folder: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    include = tmp_path / "include"
    header = include / "optgen" / "value.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define VALUE 1\n", encoding="utf-8")
    monkeypatch.setattr(entries, "include_dir", lambda: include)
    kernel.write_text("#ifndef VALUE\n#include <optgen/value.h>\n#endif\n" + KERNEL, encoding="utf-8")
    used, defines, expected = compiler(), {}, 1
    assert cache.shared_library(kernel, defines, used).answer() == 1
    if change == "source":
        kernel.write_text(KERNEL, encoding="utf-8")
        expected = 7
    elif change == "header":
        header.write_text("#define VALUE 2\n", encoding="utf-8")
        expected = 2
    elif change == "define":
        defines, expected = {"VALUE": "3"}, 3
    else:
        used = Compiler(used.path, used.version, used.family, used.arguments, (*used.flags, "-g0"))
    assert cache.shared_library(kernel, defines, used).answer() == expected
    assert len(libraries(folder)) == 2


@needs_compiler
def test_a_source_that_changes_while_it_is_compiled_is_not_stored_under_its_old_key(
    folder: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = compiler()
    racing = script(
        tmp_path / "racing-g++",
        f'{GXX} "$@" || exit 1\n[ -e {tmp_path}/raced ] || (echo "//" >> {kernel}; touch {tmp_path}/raced)',
    )
    used = Compiler(str(racing), used.version, used.family, (), used.flags)
    assert cache.shared_library(kernel, {}, used).answer() == 7
    assert len(libraries(folder)) == 1
    key = cache._entry_key(kernel, {}, used, cache._renamed_openmp())
    assert key[:32] in libraries(folder)[0].name


@needs_compiler
def test_four_processes_compile_once(folder: Path, kernel: Path, tmp_path: Path) -> None:
    counting, log = counting_compiler(tmp_path)
    code = f"""
        from pathlib import Path
        from optgen.runtime.building import cache
        print(cache.shared_library(Path({str(kernel)!r}), {{}}, cache.find_compiler()).answer())
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPTGEN_CXX": str(counting)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["7"] * 4
    assert builds(log) == 1
    assert sum("--version" in line for line in log.read_text(encoding="utf-8").splitlines()) == 1


@needs_compiler
def test_a_warm_load_starts_no_program(
    folder: Path, kernel: Path, fresh_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.shared_library(kernel, {}, compiler())
    fresh_process()
    used = compiler()  # a new process has asked it for its version
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **options: pytest.fail(f"{words} is started"))
    assert cache.shared_library(kernel, {}, used).answer() == 7


@needs_compiler
@needs_linux
def test_one_openmp_serves_torch_and_the_kernels(folder: Path, kernel: Path) -> None:
    done = run_python(f"""
        import torch
        from pathlib import Path
        from optgen.runtime.building import cache
        assert cache.shared_library(Path({str(kernel)!r}), {{}}, cache.find_compiler()).answer() == 7
        print(*{{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line}})
    """)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 1, done.stdout


@needs_compiler
@needs_linux
def test_an_openmp_with_a_name_of_its_own_is_shared_too(folder: Path, kernel: Path, tmp_path: Path) -> None:
    """Some torch wheels ship libgomp-<hash>.so.1, which the loader does not take for libgomp.so.1."""
    asked = subprocess.run([str(GXX), "-print-file-name=libgomp.so.1"], capture_output=True, text=True, check=True)
    original = Path(asked.stdout.strip())
    if not original.is_absolute():
        pytest.skip("this compiler has no shared libgomp")
    renamed = tmp_path / "libgomp-1.so"
    # A name of the same length can be put in place in the binary.
    renamed.write_bytes(original.read_bytes().replace(b"libgomp.so.1\0", b"libgomp-1.so\0"))
    done = run_python(f"""
        import ctypes
        from pathlib import Path
        ctypes.CDLL({str(renamed)!r})
        from optgen.runtime.building import cache
        assert cache.shared_library(Path({str(kernel)!r}), {{}}, cache.find_compiler()).answer() == 7
        print(*{{line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}})
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(renamed)]


# Damage


@needs_compiler
@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "not ours", "garbage with a good footer"])
def test_a_damaged_entry_is_rebuilt_silently(
    damage: str, folder: Path, kernel: Path, recwarn: pytest.WarningsRecorder
) -> None:
    code = f"""
        from pathlib import Path
        from optgen.runtime.building import cache
        print(cache.shared_library(Path({str(kernel)!r}), {{}}, cache.find_compiler()).answer())
    """
    assert run_python(code).stdout.strip() == "7"
    (entry,) = libraries(folder)
    good = entry.read_bytes()
    if damage == "truncated":
        entry.write_bytes(good[: len(good) // 2])
    elif damage == "empty":
        entry.write_bytes(b"")
    elif damage == "flipped":
        entry.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    elif damage == "not ours":
        entry.chmod(0o777)
    else:
        entry.write_bytes(entries.with_footer(b"no library at all"))
    done = run_python(code)
    assert (done.stdout.strip(), done.stderr) == ("7", "")
    assert entry.read_bytes() == good
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700


@needs_compiler
def test_what_is_known_of_a_compiler_survives_damage(folder: Path, fresh_process: Callable[[], None]) -> None:
    first = compiler()
    (record,) = folder.glob("compiler-*.json")
    for text in ("", "{", "[]", '{"path": 1}'):
        record.write_text(text, encoding="utf-8")
        fresh_process()
        assert compiler() == first


@needs_compiler
@needs_linux
def test_a_kill_while_compiling_leaves_nothing_but_a_temporary_folder(
    folder: Path, kernel: Path, tmp_path: Path
) -> None:
    used = compiler()
    before = cache.cache_size()
    started = tmp_path / "started"
    slow = script(tmp_path / "slow-g++", f"touch {started}\nsleep 60")
    code = f"""
        from pathlib import Path
        from optgen.runtime.building import cache
        from optgen.runtime.building.compilers import Compiler
        cache.shared_library(Path({str(kernel)!r}), {{}}, Compiler({str(slow)!r}, "1", "gcc"))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    for _ in range(600):
        if started.exists():
            break
        time.sleep(0.05)
    assert started.exists()
    os.killpg(child.pid, signal.SIGKILL)
    child.wait(timeout=30)
    assert not libraries(folder)
    left = list(folder.glob(".tmp-*"))
    assert left
    assert cache.cache_size() == before
    # Somebody else may be building right now: what is young stays, what is an hour old goes at the next build.
    assert cache.shared_library(kernel, {}, used).answer() == 7
    assert all(path.exists() for path in left)
    old = time.time() - private_dir.STALE_SECONDS - 1
    for path in left:
        os.utime(path, (old, old))
    assert cache.shared_library(kernel, {"VALUE": "8"}, used).answer() == 8
    assert not list(folder.glob(".tmp-*"))


@needs_compiler
def test_size_and_clear(folder: Path, kernel: Path, fresh_process: Callable[[], None]) -> None:
    assert cache.cache_size() == (0, 0)
    library = cache.shared_library(kernel, {}, compiler())
    stranger = folder / "notes.txt"
    stranger.write_text("mine", encoding="utf-8")
    files, size = cache.cache_size()
    assert files == 2  # the library and what is known of the compiler
    assert size > 1000
    assert cache.clear_cache() == (files, size)
    assert cache.cache_size() == (0, 0)
    assert library.answer() == 7
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    fresh_process()
    assert cache.shared_library(kernel, {}, compiler()).answer() == 7


@needs_compiler
@needs_linux
def test_what_was_checked_is_what_is_loaded(
    folder: Path, kernel: Path, tmp_path: Path, fresh_process: Callable[[], None]
) -> None:
    """Another file may take the entry's place after it has been checked."""
    cache.shared_library(kernel, {"VALUE": "8"}, compiler())
    (other,) = libraries(folder)
    other = other.rename(tmp_path / "other")
    cache.shared_library(kernel, {}, compiler())
    (entry,) = libraries(folder)
    load, loaded = cache._load, []

    def exchanged(way: str, functions: Iterable[str]) -> object:
        shutil.copy(other, tmp_path / "copy")
        (tmp_path / "copy").replace(entry)
        loaded.append(way)
        return load(way, functions)

    fresh_process()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache, "_load", exchanged)
        assert cache.shared_library(kernel, {}, compiler()).answer() == 7
    assert len(loaded) == 1
    fresh_process()
    assert cache.shared_library(kernel, {}, compiler()).answer() == 8  # by another path, so no library loaded before


def test_ways_to_open_files_are_all_spelled_differently(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb+") as file:
        ways = [private_dir.way_to(file, tmp_path / "file") for _ in range(300)]
        assert all(os.path.samefile(way, tmp_path / "file") for way in ways)  # noqa: PTH121
    assert len(set(ways)) == (300 if sys.platform == "linux" else 1)
    assert max(map(len, ways)) < 256


@needs_compiler
@needs_linux
def test_what_was_built_is_loaded_whatever_others_do_to_the_entry(
    folder: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(temporary: Path, target: Path) -> None:
        private_dir.publish(temporary, target)
        cache.clear_cache()

    monkeypatch.setattr(entries, "publish", removed)
    assert cache.shared_library(kernel, {}, compiler()).answer() == 7
    assert not libraries(folder)


@needs_compiler
def test_a_library_without_its_functions_is_built_again_or_refused(
    folder: Path, kernel: Path, fresh_process: Callable[[], None]
) -> None:
    """Whole and checked, but another one: a cache that was copied or restored with names mixed up."""
    cache.shared_library(kernel, {}, compiler(), ["answer"])
    (entry,) = libraries(folder)
    kernel.write_text(KERNEL.replace("answer", "reply"), encoding="utf-8")
    assert cache.shared_library(kernel, {}, compiler(), ["reply"]).reply() == 7
    (other,) = set(libraries(folder)) - {entry}
    shutil.copy(entry, other)
    fresh_process()
    assert cache.shared_library(kernel, {}, compiler(), ["reply"]).reply() == 7
    fresh_process()
    with pytest.raises(cache.CompileError, match=f"cannot be loaded: {other} lacks question, word\n"):
        cache.shared_library(kernel, {}, compiler(), ["question", "reply", "word"])


@needs_compiler
def test_a_folder_that_holds_other_things_too_keeps_them(folder: Path, kernel: Path) -> None:
    """As where OPTGEN_CACHE_DIR names a project's folder: neither builds nor `optgen cache clear` take away from it."""
    folder.mkdir(0o755)
    names = (
        "lock-file.json",
        ".tmp-experiment",
        ".tmp-2025-results_1",
        "headers-notes.gch",
        "model.so",
        "compiler.json",
    )
    for name in names:
        (folder / name).mkdir()
        os.utime(folder / name, (0, 0))
    cache.shared_library(kernel, {}, compiler())
    cache.clear_cache()
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# The folder


def test_the_folder_is_private(folder: Path) -> None:
    assert cache.cache_dir() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_own_folder_that_is_open_is_closed(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    assert cache.cache_dir() == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_shared_folder_with_other_files_is_refused_and_left_alone(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "other").touch()
    with pytest.warns(RuntimeWarning, match="others may write to it") as caught:
        fallback = cache.cache_dir()
    assert cache.cache_dir() == fallback != folder
    assert len(caught) == 1
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777
    assert stat.S_IMODE(fallback.stat().st_mode) == 0o700


def test_a_folder_of_someone_else_is_refused(folder: Path, give: Give) -> None:
    folder.mkdir(mode=0o700)
    give(folder, ANOTHER)
    with pytest.warns(RuntimeWarning, match=f"it belongs to user {ANOTHER}"):
        assert cache.cache_dir() != folder


def test_without_a_home_a_temporary_folder_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    monkeypatch.delenv("OPTGEN_CACHE_DIR")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *_, **__: "~/.cache/optgen")
    with pytest.warns(RuntimeWarning, match="no home folder"):
        assert cache.cache_dir().is_absolute()


@needs_compiler
def test_a_folder_that_cannot_be_made_falls_back_with_one_warning(
    kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="OPTGEN_CACHE_DIR") as caught:
        first = cache.shared_library(kernel, {}, compiler())
    assert len(caught) == 1
    assert first.answer() == 7
    assert cache.shared_library(kernel, {"VALUE": "8"}, compiler()).answer() == 8


@needs_compiler
def test_the_temporary_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_python(
        "from optgen.runtime.building import cache; print(cache.cache_dir())",
        OPTGEN_CACHE_DIR=str(tmp_path / "file" / "cache"),
    )
    assert "RuntimeWarning" in done.stderr
    assert not Path(done.stdout.strip()).exists()


@needs_compiler
def test_a_full_disk_falls_back_then_says_so(
    folder: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = compiler()
    full = script(
        tmp_path / "full-g++",
        f'case "$TMPDIR" in {folder}/*) echo "error: No space left on device"; exit 1;; esac\nexec {GXX} "$@"',
    )
    used = Compiler(str(full), used.version, used.family, (), used.flags)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert cache.shared_library(kernel, {}, used).answer() == 7
    script(full, 'echo "error: No space left on device"; exit 1')
    with pytest.raises(cache.CompileError, match="Make room there, or set OPTGEN_CACHE_DIR"):
        cache.shared_library(kernel, {"VALUE": "1"}, used)


@needs_compiler
def test_a_write_that_fails_at_the_last_moment_leaves_no_entry(
    folder: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = compiler()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(entries, "publish", full)
    with pytest.warns(RuntimeWarning), pytest.raises(cache.CompileError, match="No space left on device"):
        cache.shared_library(kernel, {}, used)
    assert not libraries(folder)
    assert not list(folder.glob(".tmp-*"))


# What fails


@needs_compiler
def test_the_error_of_a_compiler_is_shown(folder: Path, kernel: Path) -> None:
    kernel.write_text("\n".join(f"int f{i}() {{ return nowhere{i}; }}" for i in range(50)), encoding="utf-8")
    with pytest.raises(cache.CompileError) as caught:
        cache.shared_library(kernel, {}, compiler())
    lines = str(caught.value).splitlines()
    assert lines[0] == f"compiling {kernel} failed (exit status 1)"
    assert "-fopenmp" in lines[1]
    assert "nowhere0" in str(caught.value)
    assert "more lines" in lines[-2]
    assert 'target="torch"' in lines[-1]
    assert len(lines) < 20
    assert not list(folder.glob(".tmp-*"))


def test_a_missing_source_and_a_missing_compiler(folder: Path, kernel: Path, tmp_path: Path) -> None:
    gone = Compiler(str(tmp_path / "gone-g++"), "1", "gcc")
    with pytest.raises(cache.CompileError, match="cannot read the C\\+\\+ source"):
        cache.shared_library(tmp_path / "absent.cpp", {}, gone)
    with pytest.raises(cache.CompileError, match="cannot run the compiler"):
        cache.shared_library(kernel, {}, gone)


def test_importing_the_cache_is_light() -> None:
    done = run_python("""
        import sys
        from optgen.runtime.building import cache
        heavy = {"torch", "platformdirs", "filelock", "yaml", "pydantic", "jinja2", "numpy"} & set(sys.modules)
        print(sorted(heavy))
    """)
    assert done.stdout.strip() == "[]", done.stderr

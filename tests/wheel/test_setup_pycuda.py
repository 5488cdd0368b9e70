"""PyCUDA for `make test`: where CUDA's headers are looked for, what the build is told, how it fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import setup_pycuda
from support.machine import require_compiler

SKIP = "OPTGEN_SKIP_PYCUDA=1 make test"
PYTHON = Path(sys.executable)


def put_on_path(monkeypatch: pytest.MonkeyPatch, nvcc: str | None) -> None:
    """Make this the nvcc on PATH; None for none. All other programs stay there."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **how: nvcc if name == "nvcc" else which(name, **how))


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without CUDA; returns the folder that stands for /usr/local."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "OPTGEN_CUDA_HEADERS", "OPTGEN_SKIP_PYCUDA"):
        monkeypatch.delenv(name, raising=False)
    put_on_path(monkeypatch, None)
    place = tmp_path / "local"
    place.mkdir()
    return place


def toolkit(root: Path, include: str = "include", version: str = "13000") -> Path:
    """A folder like a CUDA toolkit; returns the one that holds its headers."""
    folder = root / include
    folder.mkdir(parents=True)
    (folder / "cuda.h").write_text(f"#pragma once\n#define CUDA_VERSION {version}\n")
    (folder / "cudaProfiler.h").touch()
    return folder


def script(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def fake_pip(python: Path, prints: str = "", status: int = 1) -> Path:
    """A Python whose pip says something and ends."""
    script(python, f"echo '{prints}'", f"exit {status}")
    return python


# The headers.


def test_no_headers_are_found_where_there_are_none(bare: Path) -> None:
    assert setup_pycuda.find_headers(bare) is None


def test_cuda_home_comes_before_nvcc_and_usr_local(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = toolkit(bare / "cuda-13.0")
    assert setup_pycuda.find_headers(bare) == local
    beside = toolkit(tmp_path / "beside")
    nvcc = script(tmp_path / "beside" / "bin" / "nvcc", "exit 1")
    put_on_path(monkeypatch, nvcc)
    assert setup_pycuda.find_headers(bare) == beside
    home = toolkit(tmp_path / "home")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert setup_pycuda.find_headers(bare) == home


def test_a_script_called_nvcc_is_asked_for_the_real_one(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = toolkit(tmp_path / "real toolkit")
    says = f"#$ _NVVM_BRANCH_=nvvm\\n#$ _HERE_={tmp_path}/real toolkit/bin\\n"
    nvcc = script(tmp_path / "bin" / "nvcc", f'[ "$1" = --dryrun ] && printf "{says}" >&2')
    put_on_path(monkeypatch, nvcc)
    assert setup_pycuda.find_headers(bare) == headers


def test_a_link_called_nvcc_is_followed(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = toolkit(tmp_path / "real")
    real = script(tmp_path / "real" / "bin" / "nvcc", "exit 1")
    link = tmp_path / "bin" / "nvcc"
    link.parent.mkdir()
    link.symlink_to(real)
    put_on_path(monkeypatch, str(link))
    assert setup_pycuda.find_headers(bare) == headers


def test_of_several_toolkits_the_newest_is_taken(bare: Path) -> None:
    for version in ("9.2", "13.0", "12.4"):
        toolkit(bare / f"cuda-{version}")
    assert setup_pycuda.find_headers(bare) == bare / "cuda-13.0" / "include"
    toolkit(bare / "cuda")
    assert setup_pycuda.find_headers(bare) == bare / "cuda" / "include"


def test_a_toolkit_without_one_of_the_headers_is_passed_over(bare: Path) -> None:
    (toolkit(bare / "cuda-13.1") / "cudaProfiler.h").unlink()
    assert setup_pycuda.find_headers(bare) is None
    headers = toolkit(bare / "cuda-13.0", "targets/x86_64-linux/include")
    assert setup_pycuda.find_headers(bare) == headers


def test_chosen_headers_are_taken(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit(bare / "cuda")
    headers = toolkit(tmp_path / "chosen")
    monkeypatch.setenv("OPTGEN_CUDA_HEADERS", str(headers))
    assert setup_pycuda.find_headers(bare) == headers
    monkeypatch.setenv("OPTGEN_CUDA_HEADERS", "pypi")
    assert setup_pycuda.find_headers(bare) is None


def test_chosen_headers_that_are_not_there_are_an_error(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = toolkit(tmp_path / "chosen")
    (headers / "cudaProfiler.h").unlink()
    monkeypatch.setenv("OPTGEN_CUDA_HEADERS", str(headers))
    with pytest.raises(setup_pycuda.BuildError, match=r"chosen/include does not hold cudaProfiler\.h; name the"):
        setup_pycuda.find_headers(bare)


def test_headers_come_from_pypi_as_files(tmp_path: Path) -> None:
    python = tmp_path / "python"
    made = tmp_path / "headers" / "nvidia" / "cu13" / "include"
    script(python, f"mkdir -p {made} && touch {made}/cuda.h {made}/cudaProfiler.h", f'echo "$@" >{tmp_path}/asked')
    assert setup_pycuda.fetch_headers(python, tmp_path, tmp_path / "headers") == made
    asked = (tmp_path / "asked").read_text()
    assert f"--no-deps --target {tmp_path}/headers nvidia-cuda-runtime==13" in asked


def test_headers_that_pip_cannot_fetch_name_the_fix(tmp_path: Path) -> None:
    python = fake_pip(tmp_path / "python", "ERROR: No matching distribution found for nvidia-cuda-runtime")
    with pytest.raises(setup_pycuda.BuildError) as caught:
        setup_pycuda.fetch_headers(python, tmp_path, tmp_path / "headers")
    text = str(caught.value)
    assert "ERROR: No matching distribution" in text
    assert "point CUDA_HOME at a CUDA toolkit" in text
    assert "PIP_FIND_LINKS" in text
    assert SKIP in text


# The build.


def test_options_are_python_that_names_headers_and_stub(tmp_path: Path) -> None:
    """PyCUDA runs them; a quote in a path must not end a string."""
    headers = tmp_path / "it's CUDA" / "include"
    found: dict[str, object] = {}
    exec(setup_pycuda.options(headers, tmp_path / "stub"), found)
    del found["__builtins__"]
    assert found == {
        "CUDA_ROOT": str(headers.parent),
        "CUDA_INC_DIR": [str(headers)],
        "CUDADRV_LIB_DIR": [str(tmp_path / "stub")],
        "CUDA_ENABLE_CURAND": False,
    }


def test_the_home_folder_of_the_build_holds_what_pip_needs_and_no_options(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / ".config" / "pip").mkdir(parents=True)
    (real / ".config" / "pip" / "pip.conf").write_text("[global]\n")
    (real / ".aksetup-defaults.py").write_text("CUDA_ROOT = '/nowhere'\n")
    home = setup_pycuda.make_home(tmp_path / "home", real)
    assert (home / ".config" / "pip" / "pip.conf").read_text() == "[global]\n"
    assert [path.name for path in home.iterdir()] == [".config"]


@pytest.mark.skipif(sys.platform != "linux", reason="PyCUDA is built on Linux only")
def test_the_stub_is_linked_with_under_the_drivers_name(tmp_path: Path) -> None:
    require_compiler()
    folder = setup_pycuda.make_stub(tmp_path / "stub", "c++")
    user = tmp_path / "user.cpp"
    user.write_text('extern "C" int cuInit(unsigned); int use() { return cuInit(0); }\n')
    library = tmp_path / "libuser.so"
    linked = ["c++", "-shared", "-fPIC", str(user), f"-L{folder}", "-Wl,--as-needed", "-lcuda", "-o", str(library)]
    subprocess.run(linked, check=True)
    assert b"\0libcuda.so.1\0" in library.read_bytes()


def test_a_compiler_that_does_not_work_is_named(tmp_path: Path) -> None:
    compiler = script(tmp_path / "cc", "echo 'cc: fatal error: no input' >&2", "exit 1")
    with pytest.raises(setup_pycuda.BuildError, match="cc does not work") as caught:
        setup_pycuda.make_stub(tmp_path / "stub", compiler)
    assert "cc: fatal error: no input" in str(caught.value)


def test_missing_headers_of_python_name_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_pycuda.sysconfig, "get_path", lambda name: str(tmp_path / "none"))
    with pytest.raises(setup_pycuda.BuildError, match="apt install python3-dev") as caught:
        setup_pycuda.build(PYTHON, "c++", tmp_path / "c", None, tmp_path, tmp_path / "log")
    assert SKIP in str(caught.value)


def test_source_that_pip_cannot_fetch_names_the_fix(tmp_path: Path) -> None:
    python = fake_pip(tmp_path / "python", "ERROR: Could not find a version that satisfies pycuda")
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("pycuda==2026.1\n")
    with pytest.raises(setup_pycuda.BuildError, match=r"let pip find pycuda==2026\.1") as caught:
        setup_pycuda.fetch_source(python, tmp_path, constraints, tmp_path / "source")
    assert "Could not find a version" in str(caught.value)
    assert SKIP in str(caught.value)


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Builds a package of one setup.py in PyCUDA's place; returns what is said."""

    def build(text: str) -> str:
        source = tmp_path / "source" / "pycuda-1"
        source.mkdir(parents=True)
        (source / "setup.py").write_text(text)
        (tmp_path / "home").mkdir()
        monkeypatch.setattr(setup_pycuda, "make_stub", lambda folder, compiler: folder)
        monkeypatch.setattr(setup_pycuda, "fetch_source", lambda *arguments: source)
        monkeypatch.setattr(setup_pycuda.sysconfig, "get_path", lambda name: str(tmp_path))
        (tmp_path / "Python.h").touch()
        with pytest.raises(setup_pycuda.BuildError) as caught:
            headers = toolkit(tmp_path / "cuda")
            setup_pycuda.build(PYTHON, "c++", tmp_path / "c", headers, tmp_path, tmp_path / "log")
        return str(caught.value)

    return build


def test_a_failed_build_says_the_errors_alone_and_where_the_rest_is(
    failing: Callable[[str], str], tmp_path: Path
) -> None:
    said = failing("print('compiling\\n' * 500)\nprint('a.cpp:1: error: no')\nraise SystemExit(1)")
    assert "a.cpp:1: error: no" in said
    assert "compiling" not in said
    assert SKIP in said
    assert str(tmp_path / "log") in said
    assert (tmp_path / "log").read_text().count("compiling") == 500
    assert len(said.splitlines()) < 10


def test_the_build_reads_its_options_from_its_own_home(failing: Callable[[str], str], tmp_path: Path) -> None:
    said = failing("import os\nprint('error:', open(os.path.expanduser('~/.aksetup-defaults.py')).readline())")
    assert f"error: CUDA_ROOT = '{tmp_path / 'cuda'}'" in said


SETUP = """\
from setuptools import Extension, setup
setup(name="thing", ext_modules=[Extension("thing", ["one.cpp", "two.cpp"])])
"""


@pytest.mark.parametrize("fault", ["", "#error no such thing\n"])
def test_all_files_of_an_extension_are_compiled_and_faults_are_not_lost(tmp_path: Path, fault: str) -> None:
    require_compiler()
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip("Python's headers are missing")
    (tmp_path / "setup.py").write_text(SETUP)
    (tmp_path / "one.cpp").write_text('extern "C" { const char* PyInit_thing() { return "the first file"; } }\n')
    (tmp_path / "two.cpp").write_text(f'{fault}extern "C" {{ const char* two() {{ return "the second file"; }} }}\n')
    command = [sys.executable, str(setup_pycuda.TOOLS / "compile_in_parallel.py"), "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if fault:
        assert done.returncode != 0
        assert "no such thing" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("thing*.so")
    assert all(text in built.read_bytes() for text in (b"the first file", b"the second file"))


WAITING_COMPILER = """\
case "$*" in *" one.cpp "*) touch one;; *" two.cpp "*) touch two;; *) exec c++ "$@";; esac
tries=0
until [ -e one ] && [ -e two ]; do
    tries=$((tries + 1))
    if [ $tries -gt 400 ]; then echo "the other file was not begun" >&2; exit 1; fi
    sleep 0.05
done
exec c++ "$@"
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor compiles one file at a time")
def test_files_are_compiled_at_the_same_time(tmp_path: Path) -> None:
    """The compiler goes on with each of two files only when both have been begun."""
    require_compiler()
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip("Python's headers are missing")
    (tmp_path / "setup.py").write_text(SETUP)
    for name in ("one", "two"):
        (tmp_path / f"{name}.cpp").write_text(f"int {name};\n")
    compiler = script(tmp_path / "compiler", WAITING_COMPILER)
    command = [sys.executable, str(setup_pycuda.TOOLS / "compile_in_parallel.py"), "build_ext", "--inplace"]
    environment = {**os.environ, "CC": compiler, "CXX": compiler}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Keeping what was built, and going without it.


def test_a_kept_wheel_is_for_one_pycuda_and_one_cuda(tmp_path: Path) -> None:
    python = fake_pip(tmp_path / "python", str(tmp_path / "cache"), 0)
    old, new, again = (
        toolkit(tmp_path / name, version=version) for name, version in (("a", "12040"), ("b", "13000"), ("c", "13000"))
    )
    places = [setup_pycuda.kept_wheels(python, "1", headers) for headers in (old, new, again, None)]
    assert all(place is not None and place.parent == tmp_path / "cache" / "optgen" for place in places)
    assert places[1] == places[2]
    assert len({*places, setup_pycuda.kept_wheels(python, "2", old)}) == 4


def test_where_pip_keeps_no_cache_none_is_kept(tmp_path: Path) -> None:
    assert setup_pycuda.kept_wheels(fake_pip(tmp_path / "python", "ERROR: disabled"), "1", None) is None


def test_a_wheel_is_kept_and_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    wheel = tmp_path / "pycuda-1.whl"
    wheel.write_bytes(b"wheel")
    kept = setup_pycuda.keep(wheel, tmp_path / "cache" / "key")
    assert kept == tmp_path / "cache" / "key" / "pycuda-1.whl"
    assert [path.read_bytes() for path in kept.parent.iterdir()] == [b"wheel"]
    (tmp_path / "file").touch()
    assert setup_pycuda.keep(wheel, tmp_path / "file" / "key") == wheel


def test_an_installed_pycuda_of_the_pinned_version_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("mako==1\npycuda==2026.1\n")
    header = tmp_path / "include" / "cuda" / "cuda.h"
    (tmp_path / "bin").mkdir()
    header.parent.mkdir(parents=True)
    header.touch()
    monkeypatch.setattr(setup_pycuda, "find_headers", lambda: pytest.fail("nothing is to be built"))
    setup_pycuda.setup_pycuda(fake_pip(tmp_path / "bin" / "python", "2026.1", 0), "c++", constraints)


def test_constraints_must_pin_pycuda() -> None:
    with pytest.raises(setup_pycuda.BuildError, match="add a line pycuda==VERSION"):
        setup_pycuda.pinned("pycuda>=2024.1\n", "pycuda")


@pytest.mark.parametrize(("value", "skipped"), [("1", True), ("0", False), ("", False)])
def test_the_user_may_go_without(monkeypatch: pytest.MonkeyPatch, value: str, skipped: bool) -> None:
    monkeypatch.setenv("OPTGEN_SKIP_PYCUDA", value)
    assert setup_pycuda.skipped() is skipped


def test_what_a_tool_said_is_cut_to_what_matters() -> None:
    assert setup_pycuda.mistakes("one\ntwo error: x\nthree\n") == "    two error: x"
    assert setup_pycuda.mistakes("\n".join(str(line) for line in range(9))).split() == ["4", "5", "6", "7", "8"]
    assert setup_pycuda.mistakes("") == "    it said nothing"

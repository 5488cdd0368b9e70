"""Finding nvcc: where it is looked for, in which order, what it must be able to do, what is said where it is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_programs import fake_nvcc, real_nvcc, runs, script

from optgen.runtime.building import archs, nvcc, private_dir


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that forgets all that this process knows, as if it had just started."""
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    return nvcc._examine.cache_clear


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]) -> Path:
    """A machine of the test's own: no nvcc anywhere, a C++ compiler by name only. Returns the folder on PATH."""
    forget()
    for name in ("OPTGEN_NVCC", "CUDA_HOME", "CUDA_PATH", "OPTGEN_CXX", "CXX", *nvcc.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(nvcc, "SYSTEM_ROOT", tmp_path / "local")
    monkeypatch.setattr(nvcc, "nvidia_folders", list)
    folder = tmp_path / "bin"
    script(folder / "g++", "exit 0")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def found() -> nvcc.Nvcc:
    result = nvcc.find_nvcc()
    assert result is not None, nvcc.why_no_nvcc()
    return result


def test_the_real_one_builds_for_what_it_lists() -> None:
    real = real_nvcc()
    assert real.release == real.version.partition("release ")[2].partition(",")[0]
    assert int(real.release.partition(".")[0]) >= 12
    assert "sm_90" in real.archs
    assert nvcc.why_no_nvcc() == ""


def test_none(machine: Path) -> None:
    assert nvcc.find_nvcc() is None
    assert nvcc.why_no_nvcc() == "nvcc: not found"


def test_order(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    monkeypatch.setattr(nvcc, "nvidia_folders", lambda: [site / "nvidia"])
    inside = [fake_nvcc(site / "nvidia" / folder / "bin" / "nvcc") for folder in ("cu14", "cu13", "cuda_nvcc")]
    toolkits = [
        fake_nvcc(tmp_path / "local" / name / "bin" / "nvcc") for name in ("cuda-12.10", "cuda-12.9", "cuda-12")
    ]
    (tmp_path / "local" / "cuda").symlink_to("cuda-12.9")
    by_path = fake_nvcc(tmp_path / "path" / "bin" / "nvcc")
    by_home = fake_nvcc(tmp_path / "home" / "bin" / "nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    own = fake_nvcc(machine / "nvcc")
    expected = [own, by_home, by_path, *toolkits, *inside]
    for path in expected:
        assert os.path.realpath(found().path) == str(path)
        path.unlink()
        nvcc._examine.cache_clear()


def test_the_one_asked_for_is_tried_alone(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvcc(machine / "nvcc")
    mine = fake_nvcc(tmp_path / "mine" / "my nvcc")
    monkeypatch.setenv("OPTGEN_NVCC", str(mine))
    assert found().path == str(mine)
    monkeypatch.setenv("OPTGEN_NVCC", "nvcc -lineinfo")
    assert found().command == (str(machine / "nvcc"), "-lineinfo")
    monkeypatch.setenv("OPTGEN_NVCC", str(tmp_path / "absent"))
    assert nvcc.find_nvcc() is None
    assert nvcc.why_no_nvcc() == f"{tmp_path / 'absent'}: not found"


def test_a_later_one_serves_where_the_first_cannot(machine: Path, tmp_path: Path) -> None:
    fake_nvcc(machine / "nvcc", release="11.8")
    newer = fake_nvcc(tmp_path / "local" / "cuda-12.4" / "bin" / "nvcc", release="12.4")
    assert (found().path, found().release) == (str(newer), "12.4")
    first, _ = nvcc.nvcc_candidates()
    assert (first.name, first.origin, first.reason) == ("nvcc", "PATH", "is of CUDA 11.8; 12.0 or newer is needed")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exit 3", "nvcc: `--version` failed"),
        ("echo 'not what you think'", "nvcc: `--version` names no release of CUDA: not what you think"),
        (
            '[ "$1" = --version ] && echo "release 12.1," && exit 0\necho "nvcc fatal : Unknown option"; exit 1',
            "nvcc: `--list-gpu-code` failed: nvcc fatal : Unknown option",
        ),
    ],
)
def test_what_is_no_nvcc(machine: Path, body: str, reason: str) -> None:
    script(machine / "nvcc", body)
    assert nvcc.find_nvcc() is None
    assert nvcc.why_no_nvcc() == reason


def test_one_that_does_not_build_says_why(machine: Path) -> None:
    fake_nvcc(machine / "nvcc", build="echo 'sh: 1: cicc: not found'; exit 127")
    assert nvcc.why_no_nvcc() == "nvcc: does not build C++17 for sm_90: sh: 1: cicc: not found"


def test_without_a_host_compiler_it_says_so(machine: Path) -> None:
    (machine / "g++").unlink()
    fake_nvcc(machine / "nvcc", build="echo 'gcc: No such file or directory'; exit 1")
    assert nvcc.why_no_nvcc() == (
        "nvcc: needs a C++ compiler beside it, and there is no g++ or clang++; install one (apt install g++)"
    )


def test_the_real_one_without_a_host_compiler(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    real = real_nvcc()
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(machine.parent / "other"))
    monkeypatch.setenv("OPTGEN_NVCC", str(Path(real.path).resolve()))
    monkeypatch.setenv("PATH", str(machine.parent))
    nvcc._examine.cache_clear()
    assert "needs a C++ compiler beside it" in nvcc.why_no_nvcc()
    nvcc._examine.cache_clear()


def test_another_host_compiler_is_taken_where_the_usual_one_is_missing(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvcc(machine / "nvcc", build='case "$all" in *-ccbin*clang*) ;; *) echo "gcc: No such file"; exit 1;; esac')
    (machine / "g++").unlink()
    host = script(machine / "clang++", "exit 0")
    assert found().flags == ("-ccbin", str(host))
    monkeypatch.setenv("CXX", str(script(tmp_path / "own" / "clang-19", "exit 0")))
    nvcc._examine.cache_clear()
    assert found().flags == ("-ccbin", str(tmp_path / "own" / "clang-19"))


def test_a_host_compiler_that_is_too_new_is_allowed(machine: Path) -> None:
    refusal = "echo '#error -- unsupported GNU version! gcc versions later than 14 are not supported!'; exit 1"
    fake_nvcc(machine / "nvcc", build=f'case "$all" in *-allow-unsupported-compiler*) ;; *) {refusal};; esac')
    assert found().flags == ("-allow-unsupported-compiler",)


def test_what_was_found_out_is_remembered(machine: Path, tmp_path: Path, forget: Callable[[], None]) -> None:
    log = tmp_path / "log"
    fake_nvcc(machine / "nvcc", log=log)
    first = found()
    before = log.read_text(encoding="utf-8")
    assert runs(log, "--version") == 1
    forget()
    assert found() == first
    assert log.read_text(encoding="utf-8") == before
    (record,) = (tmp_path / "cache").glob("nvcc-*.json")
    for text in ("", "{", "[]", '{"path": 1}', record.read_text(encoding="utf-8").replace("sm_75", "x")):
        record.write_text(text, encoding="utf-8")
        forget()
        assert found() == first


@pytest.mark.parametrize("change", ["nvcc", "host compiler", "variable"])
def test_what_changes_is_examined_again(
    machine: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None], change: str
) -> None:
    path = fake_nvcc(machine / "nvcc")
    found()
    forget()
    # A change that only another examination shows: the stand-in's answers come from a file that nothing looks at.
    if change == "nvcc":
        fake_nvcc(path, release="13.1")
        assert found().release == "13.1"
        return
    stamp = path.stat()
    fake_nvcc(path, release="14.0")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert found().release == "13.0"
    forget()
    if change == "host compiler":
        script(machine / "g++", "exit 0 # newer")
    else:
        monkeypatch.setenv("NVCC_APPEND_FLAGS", "-lineinfo")
    assert found().release == "14.0"


def test_one_that_is_not_executable(machine: Path, tmp_path: Path) -> None:
    path = fake_nvcc(tmp_path / "local" / "cuda-13.0" / "bin" / "nvcc")
    path.chmod(0o644)
    assert nvcc.find_nvcc() is None
    assert f"is not executable; chmod +x {path}" in nvcc.why_no_nvcc()


def test_packages_from_pypi_are_found_where_this_python_imports_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia" / "cu13").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (tmp_path / "nvidia") in nvcc.nvidia_folders()


def test_the_package_for_cuda_12_holds_none(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "nvidia" / "cuda_nvcc" / "bin").mkdir(parents=True)
    monkeypatch.setattr(nvcc, "nvidia_folders", lambda: [tmp_path / "site" / "nvidia"])
    assert "holds no nvcc; pip install nvidia-cuda-nvcc brings that of CUDA 13" in nvcc.why_no_nvcc()


def test_the_package_without_its_companions(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "site" / "nvidia" / "cu13"
    fake_nvcc(root / "bin" / "nvcc", build=f'[ -e "{root}/nvvm/bin/cicc" ] || {{ echo "cicc: not found"; exit 1; }}')
    (root / "include").mkdir()
    (root / "include" / "cuda_runtime.h").touch()
    monkeypatch.setattr(nvcc, "nvidia_folders", lambda: [tmp_path / "site" / "nvidia"])
    assert nvcc.why_no_nvcc().endswith(
        "does not work without nvidia-nvvm and nvidia-cuda-crt; pip install nvidia-nvvm nvidia-cuda-crt"
    )
    script(root / "nvvm" / "bin" / "cicc", "exit 0")
    nvcc._examine.cache_clear()
    assert found().path == str(root / "bin" / "nvcc")


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvcc(machine / "nvcc")
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(RuntimeWarning, match="OPTGEN_CACHE_DIR"):
        assert found().release == "13.0"


@pytest.mark.parametrize(
    ("built", "device", "runs_there"),
    [
        ("sm_80", "sm_80", True),
        ("sm_80", "sm_86", True),
        ("sm_86", "sm_80", False),
        ("sm_80", "sm_90", False),
        ("sm_90", "sm_100", False),
        ("sm_100", "sm_103", True),
        ("sm_120", "sm_121", True),
        ("sm_12", "sm_120", False),
        ("sm_87", "sm_89", False),  # integrated GPUs stand alone
        ("sm_80", "sm_87", False),
        ("sm_87", "sm_87", True),
    ],
)
def test_which_code_runs_where(built: str, device: str, runs_there: bool) -> None:
    assert archs.serves(built, device) is runs_there


def test_names_of_architectures() -> None:
    assert archs.capability("sm_121") == (12, 1)
    assert archs.in_order(["sm_100", "sm_90", "sm_75", "sm_90"]) == ["sm_75", "sm_90", "sm_100"]
    assert archs.best(["sm_80", "sm_86", "sm_90"], "sm_89") == "sm_86"
    assert archs.best(["sm_80"], "sm_75") is None
    for name in ("sm_8x", "sm_9", "sm_90a", "compute_90", "90", ""):
        assert not archs.is_arch(name)
        with pytest.raises(ValueError, match="is not a GPU architecture"):
            archs.capability(name)

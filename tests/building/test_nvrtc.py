"""NVRTC in the place of nvcc: where it is looked for, which one is taken, what it says, what its kernels are called."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import standin
from support.fake_programs import fake_nvcc

from optgen.runtime.building import nvcc, nvrtc, private_dir
from optgen.runtime.building.cubins import build_cubin, cubin
from optgen.runtime.building.entries import CompileError
from optgen.runtime.building.nvcc import Nvcc
from optgen.runtime.building.programs import first_found, why_none
from optgen.runtime.building.run_nvrtc import Failure, split

KERNEL = """\
#include <stdint.h>
#include <string.h>
#include <type_traits>
extern "C" __global__ void probe(float* values, int64_t count) {
  static_assert(std::is_same_v<float, float> && !std::is_same_v<float, double>, "");
  if (int64_t(threadIdx.x) < count) values[threadIdx.x] = fabsf(SCALE * values[threadIdx.x]);
}
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of the test's own, with no compiler at all. Returns the folder `nvidia` of its packages."""
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    for name in ("OPTGEN_NVCC", "CUDA_HOME", "CUDA_PATH", *nvcc.VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(nvcc, "SYSTEM_ROOT", tmp_path / "local")
    monkeypatch.setattr(nvrtc, "SYSTEM_ROOT", tmp_path / "local")
    monkeypatch.setattr(nvrtc, "PREFIX", tmp_path / "prefix")
    monkeypatch.setattr(nvcc, "nvidia_folders", lambda: [tmp_path / "nvidia"])
    monkeypatch.setattr(nvrtc, "nvidia_folders", lambda: [tmp_path / "nvidia"])
    monkeypatch.setattr(nvrtc, "loaded_torch", lambda: None)
    monkeypatch.setattr(nvcc, "_wanted", lambda: iter([(str(tmp_path / "bin" / "nvcc"), "PATH")]))
    nvcc._examine.cache_clear()
    return tmp_path / "nvidia"


def library(folder: Path, name: str = "libnvrtc.so.13") -> Path:
    """The stand-in for NVRTC, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(standin.nvrtc())
    return folder / name


def found() -> Nvcc:
    result = nvrtc.find_cuda_compiler()
    assert result is not None, nvrtc.why_no_cuda_compiler()
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.cu"
    path.write_text(KERNEL, encoding="utf-8")
    return path


def test_where_there_is_neither_both_are_named(machine: Path, tmp_path: Path) -> None:
    assert nvrtc.find_cuda_compiler() is None
    assert nvrtc.why_no_cuda_compiler() == (
        f"{tmp_path / 'bin' / 'nvcc'}: not found; NVRTC: not found; pip install nvidia-cuda-nvrtc"
    )


def test_it_serves_where_there_is_no_nvcc(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library(machine / "cu13" / "lib")
    only = found()
    assert (only.file, only.release, only.is_library) == (str(path), "13.0", True)
    assert "sm_90" in only.archs
    fake_nvcc(tmp_path / "bin" / "nvcc")
    nvcc._examine.cache_clear()
    assert (found().file, found().is_library) == (str(tmp_path / "bin" / "nvcc"), False)
    monkeypatch.setenv("OPTGEN_NVCC", "nvrtc")
    assert found() == only
    monkeypatch.setenv("OPTGEN_NVCC", str(tmp_path / "absent"))
    assert nvrtc.why_no_cuda_compiler() == f"{tmp_path / 'absent'}: not found"


def test_it_serves_where_nvcc_does_not_work(machine: Path, tmp_path: Path) -> None:
    fake_nvcc(tmp_path / "bin" / "nvcc", build="echo 'sh: 1: cicc: not found'; exit 127")
    library(machine / "cu13" / "lib")
    assert found().is_library


def test_that_of_torch_comes_first(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [machine / "cu13" / "lib", tmp_path / "torch" / "lib", tmp_path / "local" / "cuda-14.1" / "lib64"]
    names = ["libnvrtc.so.13", "libnvrtc-0a1b2c.so.12", "libnvrtc.so.14.1.7"]
    paths = []
    for folder, name in zip(places, names, strict=True):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
        (folder / "libnvrtc-builtins.so.13.0").touch()
        (folder / "libnvrtc.alt.so.13").touch()
        paths.append(folder / name)
    (places[0] / "libnvrtc.so").symlink_to(paths[0])
    assert nvrtc.libraries() == [paths[2], paths[0]], "the newest first, each file once"
    torch = SimpleNamespace(__file__=str(tmp_path / "torch" / "__init__.py"), version=SimpleNamespace(cuda="13.2"))
    monkeypatch.setattr(nvrtc, "loaded_torch", lambda: torch)
    assert nvrtc.libraries() == [paths[0], paths[2], paths[1]]
    torch.version.cuda = "12.8"
    assert nvrtc.libraries() == [paths[1], paths[2], paths[0]]
    torch.version.cuda = None
    assert nvrtc.libraries() == [paths[2], paths[0], paths[1]]


def test_what_is_no_library_says_so(machine: Path) -> None:
    (machine / "cu13" / "lib").mkdir(parents=True)
    path = machine / "cu13" / "lib" / "libnvrtc.so.13"
    path.write_bytes(b"no library")
    assert f"{path}: `--version` failed: error: {path}: " in nvrtc.why_no_cuda_compiler()


def test_a_kernel_is_compiled_and_kept(machine: Path, source: Path) -> None:
    library(machine / "cu13" / "lib")
    code = cubin(source, {"SCALE": "2.0f"}, "sm_90", found())
    assert code.startswith(b"\x7fELF")
    assert cubin(source, {"SCALE": "2.0f"}, "sm_90", None) == code, "from the cache, without a compiler"


def test_another_compiler_makes_another_kernel(
    machine: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of an entry has the compiler in it: NVRTC's release and content, or nvcc's."""
    library(machine / "cu13" / "lib")
    entries = []
    compilers = [found(), *(Nvcc(**{**vars(found()), "version": f"NVRTC\nrelease 13.0\nBuild {n}"}) for n in "12")]
    monkeypatch.setenv("OPTGEN_NVCC", str(standin.nvcc()))
    for compiler in (*compilers, found()):
        build_cubin(source, {"SCALE": "2.0f"}, "sm_90", compiler)
        entries.append(len(list((tmp_path / "cache").glob("kernel-sm_90-*.cubin"))))
    assert entries == [1, 2, 3, 4]


def test_its_errors_are_shown_as_those_of_nvcc(machine: Path, source: Path) -> None:
    path = library(machine / "cu13" / "lib")
    source.write_text(KERNEL.replace("fabsf(", "fabsq("), encoding="utf-8")
    with pytest.raises(CompileError) as raised:
        build_cubin(source, {"SCALE": "2.0f"}, "sm_90", found())
    first, command, *rest = str(raised.value).splitlines()
    assert first == f"compiling {source} failed (exit status 1)"
    program = [sys.executable, "-I", str(nvrtc.PROGRAM), str(path)]
    assert shlex.split(command)[: len(program)] == program, "what can be run again"
    assert any(f"{source}:6:" in line and "fabsq" in line for line in rest)
    assert "set OPTGEN_NVCC" in rest[-1]


def test_command_lines() -> None:
    words = ["-O3", "--cubin", "-std=c++17", "-I/a\\,b", "-DX=f(1\\,2)", "-arch=sm_90", "/k.cu", "-o", "/k.cubin"]
    kept = ["-std=c++17", "-I/a,b", "-DX=f(1,2)", "-arch=sm_90"]
    assert split(words) == (Path("/k.cu"), Path("/k.cubin"), kept)
    for wrong in (["-o", "/k.cubin"], ["/a.cu", "/b.cu", "-o", "/k"], ["/a.cu"], ["/a.cu", "-o"]):
        with pytest.raises(Failure, match=r"one \.cu file and -o are needed"):
            split(wrong)


class TestReal:
    """NVIDIA's own, where it is installed."""

    @pytest.fixture
    def real(self) -> Nvcc:
        compiler = first_found(nvrtc.nvrtc_candidates())
        if compiler is None:
            pytest.skip(f"no NVRTC: {why_none(nvrtc.nvrtc_candidates())}")
        return compiler

    def test_it_needs_nothing_beside_it(self, real: Nvcc, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(source.parent))
        monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
        code = build_cubin(source, {"SCALE": "3.0f"}, "sm_90", real)
        assert code.startswith(b"\x7fELF")
        assert b"probe" in code

    def test_its_log_is_shown(self, real: Nvcc, source: Path) -> None:
        source.write_text(KERNEL.replace("fabsf(", "fabsq("), encoding="utf-8")
        with pytest.raises(CompileError, match=r'kernel\.cu\(6\): error: identifier "fabsq" is undefined'):
            build_cubin(source, {"SCALE": "2.0f"}, "sm_90", real)

    def test_an_architecture_that_it_does_not_know(self, real: Nvcc, source: Path) -> None:
        with pytest.raises(CompileError, match=r"invalid value for --gpu-architecture"):
            build_cubin(source, {"SCALE": "2.0f"}, "sm_10", real)

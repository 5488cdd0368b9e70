"""The doctor's findings, also of machines that lack things."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_programs import fake_nvcc, no_nvcc
from support.machine import require_compiler

from optgen import doctor
from optgen.distribution import RUNTIME
from optgen.doctor import Finding, examine, is_usable, readable_size
from optgen.runtime.building import compilers, nvcc, nvidia, nvrtc
from optgen.runtime.building.nvcc import Nvcc
from optgen.runtime.building.nvidia import Driver, Gpu
from optgen.runtime.building.programs import Candidate


def named(findings: tuple[Finding, ...], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_a_missing_torch_is_said_and_makes_the_machine_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else real(name))
    findings = examine()
    assert named(findings, "torch").status == "missing"
    assert "pip install torch" in named(findings, "torch").advice
    assert not is_usable(findings)


def test_a_runtime_beside_optgen_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    found = named(examine(), "optgen")
    assert (found.status, found.advice) == ("ok", "")
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.9" if name == RUNTIME else real(name))
    found = named(examine(), "optgen")
    assert found.status == "problem"
    assert found.found.endswith("and optgen-runtime 0.0.9 is installed over it")
    assert found.advice.startswith("pip uninstall optgen-runtime, then install optgen again")


def test_a_missing_compiler_is_advice_not_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    rejected = Candidate("g++", "the search path", None, "is not installed")
    monkeypatch.setattr(compilers, "compiler_candidates", lambda: iter([rejected]))
    findings = examine()
    finding = named(findings, "C++ compiler")
    assert finding.status == "missing"
    assert finding.found == "g++: is not installed"
    assert "torch target" in finding.advice
    assert is_usable(findings)


def test_vectors_and_threads_of_kernels_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.delenv("OPTGEN_CXXFLAGS", raising=False)
    found = named(examine(), "C++ compiler").found
    assert re.search(r": kernels with (no vectors|[\w-]+, \d+ bits), on OpenMP's threads$", found)
    monkeypatch.setenv("OPTGEN_CXXFLAGS", "-fno-openmp -fopenmp-simd -pthread")
    assert named(examine(), "C++ compiler").found.endswith("on threads of their own, without OpenMP")


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("broken driver")

    monkeypatch.setitem(doctor._LOOKS, "NVIDIA driver", fail)
    assert named(examine(), "NVIDIA driver") == Finding("NVIDIA driver", "problem", "RuntimeError: broken driver")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver], tuple[Finding, ...]]:
    """The findings of a machine with this driver."""

    def findings(driver: Driver) -> tuple[Finding, ...]:
        monkeypatch.setattr(doctor, "ask_driver", lambda: driver)
        return examine()

    return findings


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Set what calls the driver is installed, by the name of its module, and why it cannot serve."""
    monkeypatch.delenv("OPTGEN_CUDA_DRIVER", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "2026.1")

    def install(reasons: dict[str, str]) -> None:
        own = ("pycuda", "cuda.bindings")
        monkeypatch.setattr(nvidia, "is_installed", lambda name: name in reasons and name in own)
        absent = "is not installed: pip install it"
        monkeypatch.setattr(nvidia, "why_no_pycuda", lambda: reasons.get("pycuda", f"PyCUDA {absent}"))
        monkeypatch.setattr(nvidia, "why_no_bindings", lambda: reasons.get("cuda.bindings", f"cuda-bindings {absent}"))

    return install


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NVRTC on this machine."""
    monkeypatch.setattr(nvrtc, "libraries", list)


def test_a_machine_without_a_gpu_is_fine(
    asked: Callable[[Driver], tuple[Finding, ...]],
    installed: Callable[[dict[str, str]], None],
    no_nvrtc: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    installed({})
    no_nvcc(monkeypatch, tmp_path)
    findings = asked(Driver(False, "libcuda.so.1: cannot open shared object file"))
    assert is_usable(findings)
    for name in ("NVIDIA driver", "PyCUDA", "cuda-bindings", "nvcc", "NVRTC"):
        assert named(findings, name).status == "missing"
        assert named(findings, name).advice.startswith("nothing to do on a machine without an NVIDIA GPU; with one: ")
    assert named(findings, "PyCUDA").advice.endswith("pip install pycuda")
    assert named(findings, "cuda-bindings").advice.endswith("pip install cuda-bindings")
    assert "pip install nvidia-cuda-nvcc" in named(findings, "nvcc").advice
    assert "absent-nvcc: not found" in named(findings, "nvcc").found
    assert named(findings, "NVRTC").advice.endswith("pip install nvidia-cuda-nvrtc")


def test_gpus_are_named_and_counted(asked: Callable[[Driver], tuple[Finding, ...]]) -> None:
    gpus = (Gpu("NVIDIA H200", "sm_90"), Gpu("NVIDIA H200", "sm_90"), Gpu("NVIDIA L4", "sm_89"))
    finding = named(asked(Driver(True, "", "13.0", gpus)), "NVIDIA driver")
    assert (finding.status, finding.advice) == ("ok", "")
    assert finding.found == "runs CUDA 13.0: 2 x NVIDIA H200 (sm_90), 1 x NVIDIA L4 (sm_89)"


def test_a_driver_without_a_gpu(
    asked: Callable[[Driver], tuple[Finding, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    finding = named(asked(Driver(True, "", "13.0")), "NVIDIA driver")
    assert finding.status == "missing"
    assert finding.found == "runs CUDA 13.0, and shows no GPU (CUDA_VISIBLE_DEVICES='')"


def test_a_driver_that_fails(asked: Callable[[Driver], tuple[Finding, ...]]) -> None:
    finding = named(asked(Driver(True, "cuInit failed with 999: unknown error", "12.4")), "NVIDIA driver")
    assert finding.status == "problem"
    assert finding.found == "runs CUDA 12.4, but cuInit failed with 999: unknown error"
    assert "reload or update the driver" in finding.advice


@pytest.mark.parametrize(
    ("release", "driver", "status"),
    [("13.0", "13.0", "ok"), ("13.1", "13.0", "ok"), ("12.9", "13.0", "ok"), ("13.0", "12.8", "problem")],
)
def test_an_nvcc_that_is_too_new_for_the_driver(
    asked: Callable[[Driver], tuple[Finding, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    release: str,
    driver: str,
    status: str,
) -> None:
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("OPTGEN_NVCC", str(fake_nvcc(tmp_path / "nvcc", release=release)))
    finding = named(asked(Driver(True, "", driver, (Gpu("A GPU", "sm_80"),))), "nvcc")
    assert finding.status == status
    assert finding.found == f"CUDA {release} at {tmp_path / 'nvcc'}, for sm_75, sm_80, sm_86, sm_87, sm_90; serves"
    assert ("update the driver" in finding.advice) == (status == "problem")


WORKS = Driver(True, "", "12.0", (Gpu("A GPU", "sm_80"),))
OLDER = "the NVIDIA driver is older. Update the driver"


def test_pycuda_that_does_not_work_says_what_mends_it(
    asked: Callable[[Driver], tuple[Finding, ...]], installed: Callable[[dict[str, str]], None]
) -> None:
    installed({"pycuda": OLDER})
    assert named(asked(WORKS), "PyCUDA") == Finding(
        "PyCUDA", "problem", "2026.1: the NVIDIA driver is older", "Update the driver"
    )
    assert named(asked(Driver(False, "none")), "PyCUDA").status == "missing"


def test_what_calls_the_driver_and_why(
    asked: Callable[[Driver], tuple[Finding, ...]],
    installed: Callable[[dict[str, str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_LOOKS", {"PyCUDA": doctor._driver_calls})

    def told() -> list[tuple[str, str, str]]:
        return [(finding.status, finding.found, finding.advice) for finding in asked(WORKS)]

    first, second = "2026.1, serves: the first that works", "2026.1, is not used: pycuda comes first"
    installed({"pycuda": "", "cuda.bindings": ""})
    assert told() == [("ok", first, ""), ("ok", second, "")]
    monkeypatch.setenv("OPTGEN_CUDA_DRIVER", "cuda-bindings")
    asked_for = "2026.1, serves: OPTGEN_CUDA_DRIVER asks for it"
    assert told() == [("ok", "2026.1, is not used: cuda-bindings comes first", ""), ("ok", asked_for, "")]
    monkeypatch.delenv("OPTGEN_CUDA_DRIVER")
    installed({"cuda.bindings": ""})
    assert told() == [("missing", "not installed", "nothing to do: cuda-bindings serves"), ("ok", first, "")]
    installed({"pycuda": OLDER, "cuda.bindings": ""})
    nothing = "nothing to do: cuda-bindings serves"
    assert told() == [("missing", "2026.1: the NVIDIA driver is older", nothing), ("ok", first, "")]
    installed({"pycuda": ""})
    assert told() == [("ok", first, ""), ("missing", "not installed", "nothing to do: pycuda serves")]


def test_what_compiles_for_gpus_and_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = Nvcc("python", "NVRTC\nrelease 13.2\nBuild 1", ("sm_90",), ("-I", "run_nvrtc.py", "/x/libnvrtc.so.13"))
    monkeypatch.setattr(nvrtc, "nvrtc_candidates", lambda: iter([Candidate("/x", "NVRTC", library)]))
    monkeypatch.setattr(doctor, "ask_driver", lambda: Driver(True, "", "13.0"))
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(nvcc, "_wanted", lambda: iter([(str(tmp_path / "nvcc"), "PATH")]))
    monkeypatch.delenv("OPTGEN_NVCC", raising=False)

    def told() -> list[tuple[str, str, str]]:
        nvcc._examine.cache_clear()
        return [(finding.status, finding.found, finding.advice) for finding in doctor._cuda_compilers()]

    own = "CUDA 13.2 at /x/libnvrtc.so.13, for sm_90"
    nothing = "nothing to do: NVRTC serves"
    assert told() == [("missing", f"{tmp_path / 'nvcc'}: not found", nothing), ("ok", f"{own}; serves", "")]
    fake_nvcc(tmp_path / "nvcc", archs="sm_90")
    real = f"CUDA 13.0 at {tmp_path / 'nvcc'}, for sm_90"
    assert told() == [("ok", f"{real}; serves", ""), ("ok", f"{own}; is not used: nvcc comes first", "")]
    monkeypatch.setenv("OPTGEN_NVCC", "nvrtc")
    assert told() == [("missing", "not looked for: OPTGEN_NVCC asks for NVRTC", ""), ("ok", f"{own}; serves", "")]
    monkeypatch.setenv("OPTGEN_NVCC", "/nowhere/nvcc")
    assert told()[1] == ("ok", f"{own}; is not used: OPTGEN_NVCC names another", "")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (12_345_678, "12.3 MB"), (5e9, "5.0 GB")]
)
def test_sizes(size: int, text: str) -> None:
    assert readable_size(size) == text


def test_missing_headers_of_python_are_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from optgen.runtime.building import extension

    monkeypatch.setattr(extension, "_headers", lambda: tmp_path)
    finding = named(examine(), "Python headers")
    assert finding.status == "missing"
    assert finding.found.endswith(f"{tmp_path} has no Python.h") or finding.found.startswith("no C++ compiler")
    assert "python3-dev" in finding.advice
    if finding.found.startswith("no C++ compiler"):
        return
    (tmp_path / "Python.h").write_text("#error these are no headers\n")
    finding = named(examine(), "Python headers")
    assert finding.status == "problem"
    assert "sweep.cpp failed" in finding.found


def test_a_cache_folder_that_is_not_taken_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also though a temporary one serves each process."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "shared" / "cache"))
    (finding,) = doctor._cache()
    assert finding.status == "problem"
    assert finding.found.startswith(f"{tmp_path}/shared/cache: others may write to {tmp_path}/shared (mode 777)")
    assert "set OPTGEN_CACHE_DIR to a folder of your own" in finding.advice
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    (finding,) = doctor._cache()
    assert (finding.status, finding.found) == ("ok", f"{tmp_path}/cache: 0 files, 0 B")

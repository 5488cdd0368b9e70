"""The stand-in for nvcc: what it accepts, and what it says of errors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import standin
from optgen.runtime.building.nvcc import escaped, find_nvcc, why_no_nvcc
from standin.build import NVCC
from standin.texts import nvcc

KERNEL = 'extern "C" __global__ void k(float* a) { a[0] = 1; }\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "kernel.cu"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_version_is_in_nvcc_s_form(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> str:
        return subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout

    plain = version()
    assert "Cuda compilation tools, release 13.0, V13.0" in plain
    monkeypatch.setenv("STANDIN_SANITIZE", "1")
    assert version() != plain


def test_it_serves_as_optgen_s_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTGEN_NVCC", str(standin.nvcc()))
    found = find_nvcc()
    assert found is not None, why_no_nvcc()
    assert (found.release, "sm_90" in found.archs) == ("13.0", True)


def test_the_program_s_path_changes_with_what_it_makes() -> None:
    assert standin.nvcc() == standin.nvcc() != standin.nvcc(sanitize=True)


def test_an_error_is_shown_at_its_line(tmp_path: Path) -> None:
    source = write(
        tmp_path, f'#include "helper.h"\n\n{KERNEL}extern "C" __global__ void bad() {{\n  undefined_name = 1;\n}}\n'
    )
    (tmp_path / "helper.h").write_text("#pragma once\n", encoding="utf-8")
    done = nvcc(source)
    assert done.returncode != 0
    assert f"{source}:5:3: error: " in done.stderr
    assert "undefined_name" in done.stderr
    assert not source.with_suffix(".cubin").exists()


def test_an_error_of_a_header_is_shown_there(tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    header = tmp_path / "include" / "wrong.h"
    header.write_text("inline int f() {\n  return nothing;\n}\n", encoding="utf-8")
    done = nvcc(write(tmp_path, f"#include <wrong.h>\n{KERNEL}"), f"-I{tmp_path / 'include'}")
    assert done.returncode != 0
    assert f"{header}:2:10: error: " in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--use_fast_math"], "unknown option '--use_fast_math'"),
        (["-arch=native"], "-arch=native: not of the form sm_XX"),
        (["-gencode=arch=compute_90,code=sm_90"], "unknown option"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, options: list[str], said: str) -> None:
    done = nvcc(write(tmp_path, KERNEL), *options)
    assert done.returncode != 0
    assert said in done.stderr


def test_options_that_are_taken(tmp_path: Path) -> None:
    source = write(tmp_path, f"#if A != 3 || B != 4 || defined(C)\n#error defines\n#endif\n{KERNEL}")
    options = ["-DA=3", "-D", "B=4", "-DC", "-UC", "-I", str(tmp_path), "-Xptxas", "-v", "-lineinfo", "-w", "-G"]
    assert nvcc(source, *options).returncode == 0


def test_a_comma_ends_a_value_unless_it_is_escaped(tmp_path: Path) -> None:
    source = write(tmp_path, "template <class T, int n> struct A {};\nusing B = TYPE;\n" + KERNEL)
    assert nvcc(source, *escaped(["-DTYPE=A<int, 3>"])).returncode == 0
    assert nvcc(source, "-DTYPE=A<int, 3>").returncode != 0


def test_a_text_without_kernels_is_refused(tmp_path: Path) -> None:
    done = nvcc(write(tmp_path, "template <class T> __global__ void k(T* a) {}\n"))
    assert done.returncode != 0
    assert 'no kernel declared as extern "C" __global__' in done.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("atomicAdd(a, 1.0f);", "error: "),  # no order of floats is defined
        ("__shared__ float tile[2] = {1, 2}; a[0] = tile[0];", "initializer is not allowed for a shared variable"),
    ],
)
def test_what_does_not_compile(tmp_path: Path, body: str, said: str) -> None:
    source = write(tmp_path, f'extern "C" __global__ void k(float* a) {{\n{body}\n}}\n')
    done = nvcc(source)
    assert done.returncode != 0
    assert f"{source}:2:" in done.stderr
    assert said in done.stderr


def test_bounds_in_either_place_and_kernels_behind_conditions(tmp_path: Path) -> None:
    """Comments and inactive text hold no kernels; bounds may be expressions."""
    text = f"""
// extern "C" __global__ void comment(int a);
#if 0
extern "C" __global__ void inactive(int a) {{}}
#endif
constexpr int THREADS = 128;
#define KERNEL extern "C" __global__
KERNEL void __launch_bounds__(THREADS * (1 + 1), 2) after(float* a) {{ a[0] = 1; }}
extern "C" __launch_bounds__(64) __global__ void before(float* a) {{ a[0] = 2; }}
{KERNEL}
"""
    source = write(tmp_path, text)
    done = nvcc(source)
    assert done.returncode == 0, done.stderr
    symbols = subprocess.run(
        ["nm", "-D", str(source.with_suffix(".cubin"))], capture_output=True, text=True, check=True
    )
    found = {line.split("standin_kernel_")[1] for line in symbols.stdout.splitlines() if "standin_kernel_" in line}
    assert found == {"after", "before", "k"}


def test_a_cuda_header_is_found() -> None:
    assert standin.cuda_header().name == "cuda.h"

"""Cubins: from the package, from the cache, or by nvcc; and clear about what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_programs import fake_nvcc, no_nvcc, real_nvcc, runs, script

from optgen import paths
from optgen.runtime.building import cubins, entries, nvcc, private_dir
from optgen.runtime.building.cache import CompileError, cache_size, clear_cache
from optgen.runtime.building.cubins import build_cubin, cubin, drop_stale_cubins, store_cubin, stored_cubins
from optgen.runtime.building.nvcc import Nvcc

ROOT = Path(paths.__file__).resolve().parent.parent

KERNEL = """\
#include <optgen/dtypes.h>
#ifndef VALUE
#define VALUE 7
#endif
extern "C" __global__ void answer(float* values) {
    values[threadIdx.x] = optgen::load(optgen::bf16{uint16_t(threadIdx.x)}) * VALUE;
}
"""


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that forgets all that this process knows, as if it had just started."""

    def forget() -> None:
        monkeypatch.setattr(cubins, "_cubins", entries.Loader())
        nvcc._examine.cache_clear()

    return forget


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Callable[[], None]) -> Iterator[Path]:
    """A cache folder of the test's own."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(directory))
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    forget()
    yield directory
    nvcc._examine.cache_clear()


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    source = tmp_path / "package" / "kernel.cu"
    source.parent.mkdir()
    source.write_text(KERNEL, encoding="utf-8")
    return source


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "runs.log"


@pytest.fixture
def fake(tmp_path: Path, log: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Nvcc:
    """A stand-in that writes a line for each run, found like any nvcc."""
    monkeypatch.setenv("OPTGEN_NVCC", str(fake_nvcc(tmp_path / "bin" / "nvcc", log=log)))
    found = nvcc.find_nvcc()
    assert found is not None
    return found


def builds(log: Path) -> int:
    return runs(log, "kernel.cu")


def stored(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.cubin"))


def elf_machine(content: bytes) -> int:
    return int.from_bytes(content[18:20], "little")


# By nvcc


def test_the_real_nvcc_builds_it(folder: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = real_nvcc()
    content = cubin(kernel, {}, "sm_90", real)
    assert content.startswith(b"\x7fELF")
    assert elf_machine(content) == 190  # EM_CUDA
    assert b"answer" in content
    assert cubin(kernel, {"VALUE": "9"}, "sm_90", real) != content
    assert cubin(kernel, {}, "sm_80", real) != content
    assert len(stored(folder)) == 3


def test_products_are_not_fused_into_sums(folder: Path, kernel: Path) -> None:
    """As on every other target, so that results agree: what is written plainly is what is written with roundings."""
    real = real_nvcc()

    def built(expression: str) -> bytes:
        kernel.write_text(f'extern "C" __global__ void f(float* x) {{ x[0] = {expression}; }}', encoding="utf-8")
        return cubin(kernel, {}, "sm_90", real)

    plain = built("x[1] * x[2] + x[3]")
    assert plain == built("__fadd_rn(__fmul_rn(x[1], x[2]), x[3])")
    assert plain != built("fmaf(x[1], x[2], x[3])")


def test_the_error_of_nvcc_is_shown_with_its_place(folder: Path, kernel: Path) -> None:
    real = real_nvcc()
    kernel.write_text(KERNEL + "__global__ void wrong() { nowhere = 1; }\n", encoding="utf-8")
    with pytest.raises(CompileError) as caught:
        cubin(kernel, {"VALUE": "3"}, "sm_90", real)
    first, command, *message, advice = str(caught.value).splitlines()
    assert first.startswith(f"compiling {kernel} failed (exit status ")
    for word in (real.path, "-DVALUE=3", "-arch=sm_90", "-fmad=false", str(kernel)):
        assert word in command
    assert any(f"{kernel}(8): error: " in line and "nowhere" in line for line in message)
    assert 'target="torch"' in advice
    assert "OPTGEN_NVCC" in advice
    assert not stored(folder)


def test_errors_behind_many_warnings_are_shown(folder: Path, kernel: Path, tmp_path: Path, fake: Nvcc) -> None:
    warnings = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do echo warning $i; done"
    fake_nvcc(Path(fake.path), build=f"{warnings}; echo 'kernel.cu(3): error: no'; exit 2")
    with pytest.raises(CompileError, match=r"kernel\.cu\(3\): error: no"):
        cubin(kernel, {}, "sm_90", fake)


def test_one_that_writes_nothing_is_an_error(folder: Path, kernel: Path, fake: Nvcc) -> None:
    fake_nvcc(Path(fake.path), build="echo would compile; exit 0")
    with pytest.raises(CompileError, match=r"failed \(it wrote nothing\)[^$]*would compile"):
        cubin(kernel, {}, "sm_90", fake)


def test_what_is_no_cubin_is_refused(folder: Path, kernel: Path, fake: Nvcc) -> None:
    script(Path(fake.path), 'while [ $# -gt 0 ]; do [ "$1" = -o ] && out="$2"; shift; done; echo text > "$out"')
    with pytest.raises(CompileError, match=f"Is {fake.path} a compiler of CUDA"):
        cubin(kernel, {}, "sm_90", fake)


def test_an_architecture_that_it_cannot_build(folder: Path, kernel: Path, fake: Nvcc, log: Path) -> None:
    before = log.read_text(encoding="utf-8")
    with pytest.raises(CompileError) as caught:
        cubin(kernel, {}, "sm_120", fake)
    said = str(caught.value)
    assert f"{fake.path} of CUDA 13.0 cannot build it: it builds for sm_75, sm_80, sm_86, sm_87, sm_90" in said
    assert "pip install nvidia-cuda-nvrtc" in said
    assert "optgen build --arch sm_120" in said
    assert log.read_text(encoding="utf-8") == before


def test_a_newer_device_of_the_same_generation_gets_the_nearest(folder: Path, kernel: Path, fake: Nvcc) -> None:
    assert b"-arch=sm_86" in cubin(kernel, {}, "sm_89", fake)


def test_a_wrong_name_is_refused(folder: Path, kernel: Path, fake: Nvcc) -> None:
    with pytest.raises(ValueError, match="'sm_9x' is not a GPU architecture"):
        cubin(kernel, {}, "sm_9x", fake)


# The cache


def test_the_second_process_does_not_run_nvcc(
    folder: Path, kernel: Path, fake: Nvcc, log: Path, forget: Callable[[], None]
) -> None:
    content = cubin(kernel, {}, "sm_90", fake)
    assert cubin(kernel, {}, "sm_90", fake) is content
    forget()
    assert cubin(kernel, {}, "sm_90", fake) == content
    assert builds(log) == 1


@pytest.mark.parametrize("change", ["source", "header", "define", "arch", "flags", "version", "command", "variables"])
def test_whatever_decides_the_content_decides_the_key(
    change: str, folder: Path, kernel: Path, fake: Nvcc, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    include = tmp_path / "include"
    header = include / "optgen" / "dtypes.h"
    header.parent.mkdir(parents=True)
    header.touch()
    monkeypatch.setattr(entries, "include_dir", lambda: include)
    cubin(kernel, {}, "sm_90", fake)
    used, defines, arch = dict(vars(fake)), {}, "sm_90"
    match change:
        case "source":
            kernel.write_text(KERNEL + "//", encoding="utf-8")
        case "header":
            header.write_text("//", encoding="utf-8")
        case "define":
            defines = {"VALUE": "3"}
        case "arch":
            arch = "sm_80"
        case "flags":
            used["flags"] = ("-ccbin", "other")
        case "version":
            used["version"] = "release 13.1"
        case "command":
            used["arguments"] = ("-lineinfo",)
        case _:
            used["variables"] = ("", "-lineinfo", "")
    cubin(kernel, defines, arch, Nvcc(**used))
    assert builds(log) == 2
    assert len(stored(folder)) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "not ours", "garbage with a good footer"])
def test_a_damaged_entry_is_rebuilt(
    damage: str, folder: Path, kernel: Path, fake: Nvcc, log: Path, forget: Callable[[], None]
) -> None:
    content = cubin(kernel, {}, "sm_90", fake)
    (entry,) = stored(folder)
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
        entry.write_bytes(entries.with_footer(b"no machine code"))
    forget()
    assert cubin(kernel, {}, "sm_90", fake)[:4] == content[:4]
    assert builds(log) == 2
    assert entries.without_footer(entry.read_bytes()) is not None


def test_a_source_that_changes_while_it_is_compiled(folder: Path, kernel: Path, fake: Nvcc, tmp_path: Path) -> None:
    once = f'[ -e "{tmp_path}/raced" ] || {{ echo "//" >> "{kernel}"; : > "{tmp_path}/raced"; }}'
    fake_nvcc(Path(fake.path), build=once)
    cubin(kernel, {}, "sm_90", fake)
    (entry,) = stored(folder)
    assert cubins._content(kernel) in entry.name


def test_four_processes_compile_once(folder: Path, kernel: Path, fake: Nvcc, log: Path) -> None:
    fake_nvcc(Path(fake.path), log=log, build="/bin/sleep 0.2 2>/dev/null || /usr/bin/sleep 0.2")
    code = f"""
        from pathlib import Path
        from optgen.runtime.building.cubins import cubin
        from optgen.runtime.building.nvcc import find_nvcc
        print(len(cubin(Path({str(kernel)!r}), {{}}, "sm_90", find_nvcc())) > 0)
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["True"] * 4
    assert builds(log) == 1


def test_a_full_disk_falls_back(folder: Path, kernel: Path, fake: Nvcc) -> None:
    full = f'case "$TMPDIR" in "{folder}"/*) echo "error: No space left on device"; exit 1;; esac'
    fake_nvcc(Path(fake.path), build=full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert cubin(kernel, {}, "sm_90", fake).startswith(b"\x7fELF")


def test_size_and_clear_know_cubins(folder: Path, kernel: Path, fake: Nvcc) -> None:
    cubin(kernel, {}, "sm_90", fake)
    files, size = cache_size()
    assert files == 2  # the cubin and what is known of nvcc
    assert clear_cache() == (files, size)
    assert not list(folder.iterdir())


# Without nvcc


def test_what_is_stored_nowhere_needs_nvcc(
    folder: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_nvcc(monkeypatch, tmp_path)
    with pytest.raises(CompileError) as caught:
        cubin(kernel, {}, "sm_90", None)
    said = str(caught.value)
    assert f"no kernel of {kernel} for sm_90 is stored, and there is no nvcc or NVRTC to build it" in said
    assert "absent-nvcc: not found" in said
    assert "pip install nvidia-cuda-nvrtc" in said
    assert "`optgen build --arch sm_90`" in said


def test_the_cache_serves_without_the_nvcc_that_filled_it(
    folder: Path, kernel: Path, fake: Nvcc, forget: Callable[[], None]
) -> None:
    content = cubin(kernel, {}, "sm_86", fake)
    forget()
    assert cubin(kernel, {}, "sm_86", None) == content
    assert cubin(kernel, {}, "sm_89", None) == content
    for defines, arch in (({}, "sm_80"), ({}, "sm_90"), ({"VALUE": "1"}, "sm_86")):
        with pytest.raises(CompileError, match="is stored"):
            cubin(kernel, defines, arch, None)
    stored(folder)[0].chmod(0o666)
    with pytest.raises(CompileError, match="is stored"):
        cubin(kernel, {}, "sm_86", None)


# Inside the package


@pytest.fixture
def packaged(kernel: Path, fake: Nvcc) -> Path:
    """The cubin of the kernel for sm_80, in its package; the cache is empty again."""
    path = store_cubin(kernel, {"A": "1"}, "sm_80", build_cubin(kernel, {"A": "1"}, "sm_80", fake))
    clear_cache()
    cubins._cubins.loaded.clear()
    return path


def test_nothing_is_written_or_removed_through_a_linked_folder(packaged: Path, kernel: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    packaged.parent.rename(elsewhere)
    (kernel.parent / "cubins").symlink_to(elsewhere)
    kernel.write_text(KERNEL + "//", encoding="utf-8")
    assert drop_stale_cubins(kernel.parent) == 0
    assert [path.name for path in elsewhere.iterdir()] == [packaged.name]
    with pytest.raises(OSError, match="cubins is a link"):
        store_cubin(kernel, {}, "sm_80", b"\x7fELF")
    assert [path.name for path in elsewhere.iterdir()] == [packaged.name]


def test_the_package_serves_without_nvcc(packaged: Path, kernel: Path) -> None:
    assert packaged.parent == kernel.parent / "cubins"
    for arch in ("sm_80", "sm_86", "sm_89"):
        assert b"-arch=sm_80" in cubin(kernel, {"A": "1"}, arch, None)
    for arch in ("sm_75", "sm_87", "sm_90"):
        with pytest.raises(CompileError, match="is stored"):
            cubin(kernel, {"A": "1"}, arch, None)
    with pytest.raises(CompileError, match="is stored"):
        cubin(kernel, {"A": "2"}, "sm_80", None)


def test_the_package_comes_before_nvcc_and_its_version_does_not_matter(
    packaged: Path, kernel: Path, fake: Nvcc, log: Path
) -> None:
    before = builds(log)
    other = Nvcc("/nowhere/nvcc", "release 14.0", fake.archs)
    assert cubin(kernel, {"A": "1"}, "sm_86", other) == cubin(kernel, {"A": "1"}, "sm_80", None)
    assert builds(log) == before


def test_the_best_in_the_package_serves(packaged: Path, kernel: Path, fake: Nvcc) -> None:
    store_cubin(kernel, {"A": "1"}, "sm_86", build_cubin(kernel, {"A": "1"}, "sm_86", fake))
    assert b"-arch=sm_86" in cubin(kernel, {"A": "1"}, "sm_89", None)
    assert b"-arch=sm_80" in cubin(kernel, {"A": "1"}, "sm_80", None)


def test_a_package_that_lies_elsewhere_serves_too(packaged: Path, kernel: Path, tmp_path: Path) -> None:
    moved = kernel.parent.rename(tmp_path / "moved")
    assert cubin(moved / "kernel.cu", {"A": "1"}, "sm_80", None).startswith(b"\x7fELF")


def test_a_damaged_one_in_the_package_is_passed_over(packaged: Path, kernel: Path, fake: Nvcc, log: Path) -> None:
    packaged.write_bytes(packaged.read_bytes()[:-1])
    before = builds(log)
    cubin(kernel, {"A": "1"}, "sm_80", fake)
    assert builds(log) == before + 1
    store_cubin(kernel, {"A": "1"}, "sm_80", b"\x7fELF whole")
    assert cubin(kernel, {"A": "1"}, "sm_80", None) == b"\x7fELF whole"


def test_one_of_another_source_does_not_serve_and_is_dropped(
    packaged: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = kernel.parent
    (package / "cubins" / "notes.txt").touch()
    assert drop_stale_cubins(package) == 0
    assert stored_cubins(package) == [packaged]
    kernel.write_text(KERNEL + "//", encoding="utf-8")
    no_nvcc(monkeypatch, tmp_path)
    with pytest.raises(CompileError, match="is stored"):
        cubin(kernel, {"A": "1"}, "sm_80", None)
    assert drop_stale_cubins(package) == 1
    assert stored_cubins(package) == []
    assert (package / "cubins" / "notes.txt").exists()


def test_those_of_a_source_that_is_gone_are_dropped_with_their_folder(packaged: Path, kernel: Path) -> None:
    kernel.unlink()
    assert drop_stale_cubins(kernel.parent) == 1
    assert not packaged.parent.exists()


def test_importing_cubins_is_light() -> None:
    code = """
        import sys
        from optgen.runtime.building import cubins
        print(sorted({"torch", "platformdirs", "filelock", "yaml", "pydantic", "jinja2", "numpy"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"

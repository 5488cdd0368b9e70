"""Headers that are parsed once and kept: kernels are the same with them, and never wait for them or fail by them."""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.cpp_headers import COMPILERS, INCLUDE
from support.fake_programs import script

from optgen.runtime.building import cache, compilers, entries, headers, private_dir
from optgen.runtime.building.compilers import Compiler
from optgen.runtime.building.entries import with_footer, without_footer
from optgen.runtime.building.programs import Output


@pytest.fixture
def gcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    """g++, a cache folder that is empty, and a process that knows nothing."""
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    monkeypatch.setattr(headers, "_parsed", entries.Loader())
    monkeypatch.setattr(headers, "_makers", {})
    monkeypatch.setattr(cache, "_libraries", entries.Loader())
    monkeypatch.setattr(cache, "parsed_headers", headers.parsed_headers)
    monkeypatch.setattr(headers, "HEADER", Path("optgen", "function.h"))  # a small one
    found = (candidate.compiler for candidate in compilers.compiler_candidates())
    compiler = next((each for each in found if each is not None and each.family == "gcc"), None)
    if compiler is None:
        pytest.skip("no g++ on this machine")
    yield compiler
    for maker in headers._makers.values():
        maker.join()


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("cache/headers-*.gch"))


def made(folder: Path, compiler: Compiler) -> bytes:
    """The kernel that is in the cache after it was asked for."""
    path = folder / "kernel.cpp"
    path.write_text(
        '#include <optgen/cpu.h>\nextern "C" __attribute__((visibility("default"))) double root(double x) '
        "{ return optgen::sqrt(x) + OPTGEN_MORE; }\n"
    )
    assert cache.shared_library(path, {"OPTGEN_MORE": "1"}, compiler).root
    (stored,) = folder.glob("cache/kernel-*.so")
    return stored.read_bytes()


def taken(folder: Path, compiler: Compiler) -> tuple[str, ...]:
    """Headers that a compiler is given which runs in a folder of its own."""
    own = Path(tempfile.mkdtemp(dir=folder))
    return headers.parsed_headers(compiler, own)


def test_a_first_kernel_does_not_wait_and_a_later_one_takes_them(tmp_path: Path, gcc: Compiler) -> None:
    assert taken(tmp_path, gcc) == ()
    (maker,) = headers._makers.values()
    maker.join()
    (header,) = kept(tmp_path)
    option, included = taken(tmp_path, gcc)
    assert option == "-include"
    assert Path(f"{included}.gch").samefile(header)
    assert len(headers._makers) == 1


def test_kernels_are_the_same_byte_for_byte(tmp_path: Path, gcc: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "HEADER", Path("optgen", "cpu.h"))
    headers.parse_headers(gcc)
    seen: list[tuple[str, ...]] = []
    parsed = headers.parsed_headers
    monkeypatch.setattr(cache, "parsed_headers", lambda compiler, own: seen.append(parsed(compiler, own)) or seen[-1])
    runs: list[Output] = []
    compile_library = cache.compile_library
    monkeypatch.setattr(cache, "compile_library", lambda *given: runs.append(compile_library(*given)) or runs[-1])
    with_them = made(tmp_path, gcc)
    assert len(seen) == len(runs) == 1  # the compiler has taken them
    assert seen[0]
    cache.clear_cache()
    assert not kept(tmp_path)
    monkeypatch.setattr(cache, "_libraries", entries.Loader())
    monkeypatch.setattr(cache, "parsed_headers", lambda compiler, own: ())
    assert made(tmp_path, gcc) == with_them


def test_headers_that_the_compiler_does_not_take_cost_time_alone(tmp_path: Path, gcc: Compiler) -> None:
    headers.parse_headers(gcc)
    (header,) = kept(tmp_path)
    header.write_bytes(with_footer(b"gpch.013" + bytes(1000)))
    headers._parsed.loaded.clear()
    assert made(tmp_path, gcc)


def test_what_was_checked_is_what_the_compiler_reads(tmp_path: Path, gcc: Compiler) -> None:
    headers.parse_headers(gcc)
    (header,) = kept(tmp_path)
    checked = header.read_bytes()
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(header)
    assert Path(f"{taken(tmp_path, gcc)[1]}.gch").read_bytes() == checked
    cache.clear_cache()
    assert Path(f"{taken(tmp_path, gcc)[1]}.gch").read_bytes() == checked


def test_a_disk_too_small_for_them_holds_the_kernels(tmp_path: Path, gcc: Compiler) -> None:
    """They take a hundred times as much, and kernels are compiled without them too."""
    full = script(
        tmp_path / "small-g++",
        f'case "$*" in *c++-header*) echo "error: No space left on device"; exit 1;; esac\nexec {gcc.path} "$@"',
    )
    compiler = replace(gcc, path=str(full))
    headers.parse_headers(compiler)
    assert not kept(tmp_path)
    assert made(tmp_path, compiler)
    assert private_dir.cache_dir() == tmp_path / "cache"


def test_damaged_ones_are_parsed_again(tmp_path: Path, gcc: Compiler) -> None:
    headers.parse_headers(gcc)
    (header,) = kept(tmp_path)
    header.write_bytes(header.read_bytes()[:1000])
    headers._parsed.loaded.clear()
    assert taken(tmp_path, gcc) == ()
    (maker,) = headers._makers.values()
    maker.join()
    assert taken(tmp_path, gcc)
    assert without_footer(header.read_bytes()) is not None


def test_each_set_of_flags_has_its_own(tmp_path: Path, gcc: Compiler) -> None:
    for compiler in (gcc, replace(gcc, flags=(*gcc.flags, "-O1"))):
        headers.parse_headers(compiler)
    assert len(kept(tmp_path)) == 2


def test_clang_goes_without(tmp_path: Path, gcc: Compiler) -> None:
    headers.parse_headers(replace(gcc, family="clang"))
    assert taken(tmp_path, replace(gcc, family="clang")) == ()
    assert not kept(tmp_path)


def test_those_that_nobody_reads_any_more_are_removed(tmp_path: Path, gcc: Compiler) -> None:
    folder = private_dir.cache_dir()
    names = (f"headers-{1:032}.gch", f"headers-{2:032}.gch", f"adam-{1:032}.so", "headers-mine.gch")
    old, recent, kernel, other = (folder / name for name in names)
    for path, days in ((old, 31), (recent, 29), (kernel, 400), (other, 400)):
        path.write_bytes(b"")
        then = time.time() - days * 86400
        os.utime(path, (then, then))
    headers.parse_headers(gcc)
    assert [path.exists() for path in (old, recent, kernel, other)] == [False, True, True, True]


def test_kernels_read_no_header_of_cpp_or_of_intrinsics_that_they_can_do_without() -> None:
    """C++'s own headers and those of intrinsics take longer to read than all of a kernel takes to compile."""
    for name in COMPILERS:
        flags = ("-std=c++17", "-march=x86-64-v3") if platform.machine() == "x86_64" else ("-std=c++17",)
        command = (name, *flags, "-fopenmp", f"-I{INCLUDE}", "-M", str(INCLUDE / headers.HEADER))
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        read = {Path(word) for word in said.replace("\\\n", " ").split()[1:]}
        assert INCLUDE / "optgen" / "math.h" in read
        foreign = {path.name for path in read if not path.is_relative_to(INCLUDE)}
        assert not foreign & {"math.h", "cmath", "immintrin.h", "omp.h"}, (name, foreign)
        assert not [path for path in read if "c++" in path.parts], name

"""Command lines of compilers on systems that are not at hand: programs in their place note what they are asked.

Nothing is run on macOS or Windows here.
"""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from support.fake_programs import script

from optgen.paths import include_dir
from optgen.runtime.building import compilers, flags, private_dir
from optgen.runtime.building.cache import shared_library
from optgen.runtime.building.compilers import Compiler
from optgen.runtime.building.entries import CompileError

CLANG = "Apple clang version 17.0.0 (clang-1700.0.13.3)"
MICROSOFT = "clang version 20.1.0\\nTarget: x86_64-pc-windows-msvc"
GNU = "g++-15 (Homebrew GCC 15.1.0) 15.1.0"
# Writes a program that runs, in the place of whatever was to be compiled.
BUILD = """\
echo "$@" >> "{log}"
case "$*" in *--version*) printf '{version}\\n'; exit 0;; {refuse}) echo "error: refused"; exit 1;; esac
while [ $# -gt 0 ]; do [ "$1" = -o ] && out="$2"; shift; done
printf '#!/bin/sh\\nexit 0\\n' > "$out" && chmod +x "$out"
"""


class Machine:
    """A system of the test's own: compilers by name, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"

    def install(self, name: str, version: str, refuse: str = "nothing") -> Path:
        text = BUILD.format(log=self.log, version=version, refuse=refuse)
        return script(self.folder / "bin" / name, text)

    def asked(self) -> list[list[str]]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [line.split() for line in lines if "--version" not in line]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("OPTGEN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("OPTGEN_CXX", "CXX", "OPTGEN_CXXFLAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(private_dir, "_fallbacks", {})
    monkeypatch.setattr(compilers, "processor", lambda: "a processor")
    compilers._examine.cache_clear()
    made = Machine(tmp_path)
    # The programs of the scripts themselves, which are not asked for here.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "chmod").symlink_to("/bin/chmod")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{tools}")
    return made


def system(monkeypatch: pytest.MonkeyPatch, name: str, machine: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: name)
    monkeypatch.setattr(platform, "machine", lambda: machine)


def found() -> Compiler:
    compiler = compilers.find_compiler()
    assert compiler is not None, compilers.why_no_compiler()
    return compiler


@pytest.fixture
def torch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch's libraries, with an OpenMP."""
    folder = tmp_path / "torch" / "lib"
    folder.mkdir(parents=True)
    (folder / "libomp.dylib").touch()
    monkeypatch.setattr(flags, "torch_libraries", lambda: folder)
    return folder


class TestMac:
    """Apple's clang, which is called g++ too, and those of brew."""

    @pytest.fixture(autouse=True)
    def _mac(self, monkeypatch: pytest.MonkeyPatch) -> None:
        system(monkeypatch, "Darwin", "arm64")

    def test_clang_takes_the_openmp_of_torch(self, machine: Machine, torch_folder: Path) -> None:
        machine.install("g++", CLANG, refuse="*-march=native*")
        compiler = found()
        openmp = ("-Xpreprocessor", "-fopenmp", f"-L{torch_folder}", "-lomp", f"-Wl,-rpath,{torch_folder}")
        assert compiler.flags == ("-O3", "-mcpu=native", *flags.COMMON_FLAGS[1:], *openmp)
        assert (compiler.family, compiler.openmp) == ("clang", True)
        (*_, last) = machine.asked()
        program = [flag for flag in compiler.flags if flag not in ("-shared", "-fPIC")]
        assert last[: len(program) + 1] == [*program, f"-I{include_dir()}"]

    def test_where_it_does_not_link_threads_are_our_own(self, machine: Machine, torch_folder: Path) -> None:
        machine.install("g++", CLANG, refuse="*-lomp*")
        assert found().flags[-2:] == flags.OWN_THREADS
        assert not found().openmp

    def test_without_that_of_torch_none_is_asked_for(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flags, "torch_libraries", lambda: None)
        machine.install("clang++", CLANG)
        assert found().flags[-2:] == flags.OWN_THREADS
        assert all("-fopenmp" not in words for words in machine.asked())

    def test_brews_gcc_is_found_by_its_number(self, machine: Machine, torch_folder: Path) -> None:
        for number in (9, 14, 15):
            machine.install(f"g++-{number}", GNU)
        machine.install("g++-mingw", GNU)
        compiler = found()
        assert (Path(compiler.path).name, compiler.family) == ("g++-15", "gcc")
        assert compiler.flags[-2:] == flags.OWN_THREADS, "its OpenMP would be a second one"

    def test_apples_comes_before_it(self, machine: Machine, torch_folder: Path) -> None:
        machine.install("g++-15", GNU)
        machine.install("c++", CLANG)
        assert Path(found().path).name == "c++"


class TestWindows:
    """clang-cl; Microsoft's own compiler does not take kernels."""

    @pytest.fixture(autouse=True)
    def _windows(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        system(monkeypatch, "Windows", "AMD64")
        monkeypatch.setattr(compilers, "WINDOWS_LLVM", tmp_path / "LLVM" / "clang-cl.exe")

    def test_its_command_line(self, machine: Machine, tmp_path: Path) -> None:
        path = machine.install("clang-cl", MICROSOFT)
        compiler = found()
        assert (compiler.path, compiler.family, compiler.openmp) == (str(path), "clang-cl", False)
        assert compiler.flags == ("/O2", "/clang:-march=native", *flags.CL_FLAGS[1:])
        source = tmp_path / "kernel.cpp"
        source.write_text("int a;\n", encoding="utf-8")
        with pytest.raises(CompileError, match="cannot be loaded"):  # what was written is no library
            shared_library(source, {"CODEC": "Plain<float>"}, compiler)
        (*_, last) = machine.asked()
        words = [f"-I{include_dir()}", "-DCODEC=Plain<float>", str(source)]
        assert last[: len(compiler.flags) + 3] == [*compiler.flags, *words]
        assert last[-2] == "-o"

    def test_the_program_that_tries_it_is_no_library(self, machine: Machine) -> None:
        machine.install("clang-cl", MICROSOFT, refuse="*-march=native*")
        assert found().flags == flags.CL_FLAGS
        (*_, last) = machine.asked()
        assert "/LD" not in last
        assert last[-2:][0] == "-o"
        assert last[-1].endswith("probe.exe")

    def test_none(self, machine: Machine, tmp_path: Path) -> None:
        machine.install("g++", GNU)
        assert compilers.find_compiler() is None
        assert compilers.why_no_compiler() == f"clang-cl: not found; {tmp_path}/LLVM/clang-cl.exe: not found"


class TestOrders:
    """g++ on x86 orders instructions before it gives them registers, but for AVX-512."""

    @pytest.fixture(autouse=True)
    def _linux(self, monkeypatch: pytest.MonkeyPatch) -> None:
        system(monkeypatch, "Linux", "x86_64")

    @pytest.mark.parametrize(
        ("instructions", "own", "tuned"),
        [
            ("avx2", "", ("-march=native", *flags.SCHEDULED)),
            ("avx2 avx512f", "", ("-march=native", "-mprefer-vector-width=512")),
            ("avx2 avx512f", "-mno-avx512f", ("-march=native", *flags.SCHEDULED)),
        ],
    )
    def test_flags(
        self, instructions: str, own: str, tuned: tuple[str, ...], machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compilers, "processor", lambda: f"Linux x86_64 flags {instructions}")
        monkeypatch.setenv("OPTGEN_CXXFLAGS", own)
        machine.install("g++", GNU)
        assert found().flags == ("-O3", *tuned, *flags.COMMON_FLAGS[1:], flags.OPENMP, *own.split())

    def test_a_compiler_that_refuses_them(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compilers, "processor", lambda: "Linux x86_64 flags avx2")
        machine.install("g++", GNU, refuse=f"*{flags.SCHEDULED[1]}*")
        assert found().flags[1:3] == ("-march=native", flags.COMMON_FLAGS[1])

    def test_clang_has_them_not(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compilers, "processor", lambda: "Linux x86_64 flags avx2")
        machine.install("g++", CLANG)
        assert found().flags[1:3] == ("-march=native", flags.COMMON_FLAGS[1])


def test_a_compiler_by_its_number_serves_on_linux_too(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    system(monkeypatch, "Linux", "x86_64")
    machine.install("g++-13", GNU)
    assert found().flags[-1] == flags.OPENMP

"""Kernels of a compiler without OpenMP run on threads of our own, and leave the same bits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import optgen_optim
import pytest
import torch
from support.asked import ask
from support.fake_programs import script

from optgen.paths import include_dir
from optgen.runtime.building.cache import find_compiler
from optgen.runtime.building.flags import OPENMP, OWN_THREADS

COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]
WITHOUT_OPENMP = " ".join(("-fno-openmp", *OWN_THREADS))
SHAPES = ((3, 40, 51), (300, 400), (33_001,))  # several chunks, so that there is work for three threads


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_number_is_one_threads(compiler: str, tmp_path: Path) -> None:
    """Also with several callers, and in a forked process."""
    source, program = Path(__file__).with_name("own_threads.cpp"), tmp_path / "own_threads"
    flags = ["-std=c++17", "-O2", *OWN_THREADS, "-Wall", "-Wextra", "-Werror", f"-I{include_dir()}"]
    ask([compiler, *flags, str(source), "-o", str(program)], source, program)
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ (apt install clang)")
def test_a_compiler_without_openmp_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Apple's, which refuses the flag."""
    refusal = f"""[ "$word" = {OPENMP} ] && echo "clang: error: unsupported option '{OPENMP}'" >&2 && exit 1"""
    plain = script(tmp_path / "clang++", f'for word; do {refusal}; done\nexec {shutil.which("clang++")} "$@"')
    monkeypatch.setenv("OPTGEN_CXX", str(plain))
    used = find_compiler()
    assert used is not None
    assert not used.openmp
    assert set(OWN_THREADS) <= set(used.flags)
    monkeypatch.setenv("OPTGEN_CXX", "clang++")
    monkeypatch.setenv("OPTGEN_CXXFLAGS", WITHOUT_OPENMP)
    used = find_compiler()
    assert used is not None
    assert not used.openmp


def trained(name: str, compiler: str, flags: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Parameters and states after three steps."""
    monkeypatch.setenv("OPTGEN_CXX", compiler)
    monkeypatch.setenv("OPTGEN_CXXFLAGS", flags)
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(5)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = getattr(optgen_optim, name)(params, target="cpu")
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    assert optimizer.engines() == {"cpu": len(SHAPES)}
    states = [state for param in params for state in optimizer.state[param].values()]
    return [value.detach().reshape(-1).view(torch.uint8) for value in [*params, *states]]


# Without sums, in a codec with scales; with sums of tensors; of rows and columns.
@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ (apt install clang)")
@pytest.mark.parametrize("name", ["AdamW8bit", "LAMB", "Adafactor"])
def test_own_threads_leave_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trained(name, "clang++", WITHOUT_OPENMP, 3, monkeypatch)
    others = [trained(name, "clang++", WITHOUT_OPENMP, 1, monkeypatch)]
    if name == "AdamW8bit" and shutil.which("g++"):  # another compiler may take sums in another order
        others.append(trained(name, "g++", "", 3, monkeypatch))
    for other in others:
        assert all(map(torch.equal, ours, other))

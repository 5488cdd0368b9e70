"""Pairs of what calls the driver and what compiles, on the stand-in: the same bits, of paged states too."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from support.machine import require_compiler, why_no_gpu

from optgen.runtime.building import nvidia
from optgen.runtime.step import target_choice
from optgen.runtime.step.target_choice import choose_target

CALLS = {nvidia.PYCUDA: "pycuda", nvidia.BINDINGS: "cuda.bindings"}
COMPILERS = {"nvcc": "False", "nvrtc": "True"}
TRAINING = """
import hashlib, io, sys, torch
from support.cuda_training import CASES, SHAPES, new, train
from support.gpu import install_standin
from support.paged import SHAPES as LARGE
from optgen.runtime.building.nvrtc import find_cuda_compiler
gpu = install_standin()
hashed = hashlib.sha256()
for name, settings in CASES.values():
    opt, params = new(name, SHAPES, **settings)
    kept = io.BytesIO()
    torch.save(train(opt, params, 3), kept)
    hashed.update(kept.getvalue())
    assert opt.engines() == {"cuda": len(params)}
for managed in (True, False):
    import standin
    standin.load().configure(concurrent_managed_access=managed)
    opt, params = new("PagedAdamW8bit", LARGE)
    kept = io.BytesIO()
    torch.save({"state": opt.state_dict() if train(opt, params, 2) else None, "params": params}, kept)
    hashed.update(kept.getvalue())
    assert opt.paged_bytes()
print(hashed.hexdigest(), gpu.driver.__name__, find_cuda_compiler().is_library)
"""


@pytest.mark.slow
def test_all_give_the_same_bits() -> None:
    require_compiler()
    if not why_no_gpu():
        pytest.skip("the stand-in cannot be loaded beside a real driver")
    there = {name: module for name, module in CALLS.items() if nvidia.is_installed(module)}
    if not there:
        pytest.skip("neither PyCUDA nor cuda-bindings is installed")
    modules = {nvidia.PYCUDA: "pycuda.driver", nvidia.BINDINGS: "optgen.runtime.cuda.bindings"}
    pairs = [(name, "nvcc") for name in there] + [(list(there)[-1], "nvrtc")]
    path = os.pathsep.join(path for path in sys.path if path)
    running = {
        pair: subprocess.Popen(
            [sys.executable, "-c", TRAINING],
            env={**os.environ, "PYTHONPATH": path, "OPTGEN_CUDA_DRIVER": pair[0], "STANDIN_COMPILER": pair[1]},
            stdout=subprocess.PIPE,
            text=True,
        )
        for pair in pairs
    }
    said = {pair: process.communicate()[0].split() for pair, process in running.items()}
    assert {process.returncode for process in running.values()} == {0}
    assert {words[0] for words in said.values()} == {said[pairs[0]][0]}
    assert {pair: words[1:] for pair, words in said.items()} == {
        (name, compiler): [modules[name], COMPILERS[compiler]] for name, compiler in pairs
    }


# Which one serves, and what is said

NO_PYCUDA = "PyCUDA is not installed: pip install pycuda"
NO_BINDINGS = "cuda-bindings is not installed: pip install cuda-bindings"
NO_DRIVER = "the NVIDIA driver is missing: libcuda.so.1: no. Install it"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Set why PyCUDA and cuda-bindings cannot serve."""
    monkeypatch.delenv("OPTGEN_CUDA_DRIVER", raising=False)

    def answer(pycuda: str, bindings: str) -> None:
        monkeypatch.setattr(nvidia, "why_no_pycuda", lambda: pycuda)
        monkeypatch.setattr(nvidia, "why_no_bindings", lambda: bindings)

    return answer


@pytest.mark.parametrize(
    ("pycuda", "bindings", "serves", "reason"),
    [
        ("", "", "pycuda", ""),
        ("", NO_BINDINGS, "pycuda", ""),
        (NO_PYCUDA, "", "cuda-bindings", ""),
        ("the NVIDIA driver is older than the CUDA that PyCUDA was built with", "", "cuda-bindings", ""),
        (NO_PYCUDA, NO_BINDINGS, None, "neither PyCUDA nor cuda-bindings is installed: pip install cuda-bindings"),
        (NO_DRIVER, NO_DRIVER, None, NO_DRIVER),
        (NO_DRIVER, NO_BINDINGS, None, NO_DRIVER),
        ("PyCUDA does not import: x", NO_BINDINGS, None, "PyCUDA does not import: x"),
        ("PyCUDA does not import: x", "cuda-bindings does not import: y", None, None),
    ],
)
def test_pycuda_serves_where_it_works_else_cuda_bindings(
    answers: Callable[[str, str], None], pycuda: str, bindings: str, serves: str | None, reason: str | None
) -> None:
    answers(pycuda, bindings)
    assert nvidia.find_driver() == serves
    assert nvidia.why_no_driver() == ("; ".join((pycuda, bindings)) if reason is None else reason)


def test_one_can_be_asked_for(answers: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    answers("", "")
    monkeypatch.setenv("OPTGEN_CUDA_DRIVER", "cuda-bindings")
    assert nvidia.find_driver() == "cuda-bindings"
    answers("", NO_BINDINGS)
    assert (nvidia.find_driver(), nvidia.why_no_driver()) == (None, NO_BINDINGS)
    monkeypatch.setenv("OPTGEN_CUDA_DRIVER", "cupy")
    assert nvidia.find_driver() is None
    assert nvidia.why_no_driver() == "OPTGEN_CUDA_DRIVER is 'cupy'; it can be pycuda or cuda-bindings"


def test_without_both_torch_serves_and_it_is_said_once(
    answers: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(NO_PYCUDA, NO_BINDINGS)
    monkeypatch.setattr(target_choice, "_said", set())
    gpu = torch.device("cuda:0")
    with pytest.warns(RuntimeWarning, match=r"pip install cuda-bindings; so the torch target serves"):
        assert choose_target("AdamW", gpu, None) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_target("AdamW", gpu, None) == "torch"
    with pytest.raises(
        RuntimeError, match=r"target='cuda' cannot serve: neither PyCUDA nor cuda-bindings is installed"
    ):
        choose_target("AdamW", gpu, "cuda")


@pytest.mark.parametrize("text", ["import a_module_that_nobody_has", "raise OSError('broken')"])
def test_bindings_that_do_not_import_say_why(text: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "cuda" / "bindings").mkdir(parents=True)
    for part in ("", "bindings"):
        (tmp_path / "cuda" / part / "__init__.py").touch()
    (tmp_path / "cuda" / "bindings" / "driver.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(nvidia, "LIBRARY", "libc.so.6")  # anything that loads
    nvidia.why_no_bindings.cache_clear()
    try:
        assert nvidia.why_no_bindings().startswith("cuda-bindings does not import: ")
        assert nvidia.why_no_bindings().endswith("Reinstall it: pip install cuda-bindings")
    finally:
        nvidia.why_no_bindings.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "cuda"]:
            del sys.modules[name]


def test_gpus_of_amd_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls them cuda too."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(target_choice, "_said", set())
    with pytest.warns(
        RuntimeWarning, match=r"cuda:0 is a GPU of AMD's \(ROCm\), for which there are no kernels; so the"
    ):
        assert choose_target("AdamW", torch.device("cuda:0"), None) == "torch"

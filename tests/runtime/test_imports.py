"""Modules that an import loads: nothing that was not asked for, however large the catalogue is."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import optgen_optim
import pytest
from support.machine import require_compiler

ROOT = Path(__file__).parents[2]
CUDA = ("cuda.cuda_device", "cuda.driver", "cuda.paging")
ENGINE = ("engines.cuda_engine", "engines.cuda_factory", "engines.cuda_paging")
BUILDING = ("building.nvcc", "building.nvrtc", "building.nvidia", "building.cubins")
CUDA_ONLY = [f"optgen.runtime.{name}" for name in (*CUDA, *ENGINE, *BUILDING)]
STEP = """
import torch
p = torch.nn.Parameter(torch.ones(8))
p.grad = torch.ones(8)
opt = optgen_optim.AdamW([p], target={target!r})
opt.step()
opt.load_state_dict(opt.state_dict())
opt.step()
assert opt.engines() == {{{target!r}: 1}}
"""


def imported(code: str, python: str = sys.executable) -> set[str]:
    """The modules of a fresh process after this code."""
    folders = os.pathsep.join([str(ROOT), str(ROOT / "generated")])
    whole = f"{code}\nimport sys\nprint(*sys.modules)"
    run = [python, "-c", whole]
    done = subprocess.run(run, env={**os.environ, "PYTHONPATH": folders}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def own(modules: set[str]) -> set[str]:
    return {name for name in modules if name.startswith("optgen_optim.")}


def test_the_package_alone_imports_no_class_and_no_torch() -> None:
    modules = imported("import optgen_optim\ndir(optgen_optim); list(optgen_optim.CLASSES); optgen_optim.create")
    assert not own(modules)
    assert "torch" not in modules
    assert "optgen.runtime.optimizer" not in modules


@pytest.mark.parametrize(
    "code",
    [
        "from optgen_optim import LAMB8bit",
        "import optgen_optim; optgen_optim.LAMB",
        "import optgen_optim, torch; optgen_optim.create('lamb', [torch.nn.Parameter(torch.ones(2))])",
        "import optgen_optim; optgen_optim.lamb.RULE",
    ],
)
def test_a_class_imports_its_module_alone(code: str, torch_python: str) -> None:
    modules = imported(code, torch_python)
    assert own(modules) == {"optgen_optim.lamb", "optgen_optim.shared"}
    assert not modules & {*CUDA_ONLY, "optgen.runtime.engines.cpu_engine", "pycuda"}
    assert not any(name.startswith("optgen.runtime.building") for name in modules)


@pytest.mark.parametrize("target", ["torch", "cpu"])
def test_a_step_on_the_cpu_imports_nothing_for_gpus(target: str, torch_python: str) -> None:
    if target == "cpu":
        require_compiler()
    modules = imported("import optgen_optim\n" + STEP.format(target=target), torch_python)
    assert not modules & {*CUDA_ONLY, "pycuda"}
    assert ("optgen.runtime.engines.cpu_engine" in modules) == (target == "cpu")


def test_these_modules_exist(torch_python: str) -> None:
    """The names above are no misspellings."""
    assert set(CUDA_ONLY) <= imported("import optgen.runtime.engines.cuda_factory", torch_python)


def test_everything_at_once() -> None:
    space: dict[str, object] = {}
    exec("from optgen_optim import *", space)
    assert set(optgen_optim.__all__) <= space.keys()
    assert {name: space[name] for name in optgen_optim.CLASSES} == dict(optgen_optim.CLASSES)
    assert set(optgen_optim.__all__) <= set(dir(optgen_optim))
    others = {*optgen_optim.__all__} - {*optgen_optim.CLASSES}
    assert others == {"CLASSES", "GlobalOptimManager", "CombinedOptimizer", "StoredAnewWarning", "create", "for_model"}
    for name in optgen_optim.CLASSES:
        found = getattr(optgen_optim, name)
        assert found.__name__ == name
        assert pickle.loads(pickle.dumps(found)) is found


def test_what_there_is_not() -> None:
    with pytest.raises(AttributeError, match="module 'optgen_optim' has no attribute 'AdamV'") as caught:
        _ = optgen_optim.AdamV
    assert (caught.value.name, caught.value.obj) == ("AdamV", optgen_optim)  # what Python's own suggestions need
    with pytest.raises(ImportError, match="AdamV"):
        exec("from optgen_optim import AdamV")
    assert "AdamV" not in optgen_optim.CLASSES
    with pytest.raises(KeyError):
        _ = optgen_optim.CLASSES["AdamV"]

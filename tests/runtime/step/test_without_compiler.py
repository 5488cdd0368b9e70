"""Without a C++ compiler the torch target serves, and says so once a process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
WITHOUT_COMPILER = """
import sys, warnings, torch
from optgen_optim import AdamW, LAMB
warnings.simplefilter("always")
for cls in (AdamW, AdamW, LAMB):
    param = torch.nn.Parameter(torch.ones(300))
    opt = cls([param], target=None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            param.grad = torch.ones(300)
            opt.step()
    print(opt.engines(), [f"{w.category.__name__}: {w.message}" for w in seen])
    opt = cls([param], target="torch")
    opt.step()
try:
    AdamW([param], target="cpu").step()
except RuntimeError as error:
    print("refused:", error, param.grad.sum().item())
"""


@pytest.mark.parametrize(
    "change", [{"OPTGEN_CXX": "/nonexistent"}, {"PATH": "", "CXX": ""}], ids=["OPTGEN_CXX", "PATH"]
)
def test_without_a_compiler_the_torch_target_serves(change, tmp_path: Path, torch_python: str) -> None:
    environment = {**os.environ, "OPTGEN_CACHE_DIR": str(tmp_path), **change}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "generated")])
    command = [torch_python, "-c", WITHOUT_COMPILER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, third, refused = done.stdout.splitlines()
    assert first.startswith("{'torch': 1} ['RuntimeWarning: no C++ compiler can be used, so the torch target serves")
    assert first.count("RuntimeWarning") == 1
    assert second == third == "{'torch': 1} []", "said once a process"
    assert refused.startswith("refused: AdamW: target='cpu' needs a C++ compiler: ")
    assert next(iter(change.values())) in first

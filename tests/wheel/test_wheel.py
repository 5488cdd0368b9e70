"""The wheel: what it holds, and that it works in an environment that has nothing else."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from support.environments import ROOT, built_wheel, empty_environment, run

TRAIN_A_STEP = """
import sys
from pathlib import Path
import torch
import optgen
import optgen_optim
from optgen_optim import AdamW8bit
from optgen.paths import include_dir, specs_dir

prefix = Path(sys.prefix).resolve()
for path in (optgen.__file__, optgen_optim.__file__, specs_dir(), include_dir()):
    assert prefix in Path(path).resolve().parents, path
assert not {"jinja2", "pydantic", "yaml", "typer", "rich"} & set(sys.modules), "the runtime imports the compiler"

param = torch.nn.Parameter(torch.ones(64, 256))
optimizer = AdamW8bit([param], lr=0.1)
param.square().sum().backward()
optimizer.step()
assert param.max() < 0.95, param
assert optimizer.state[param]["exp_avg"].dtype == torch.uint8
print("engines", optimizer.engines())
"""

OWN_RULE = """
import optgen, torch
param = torch.nn.Parameter(torch.ones(64, 256))
optimizer = optgen.load("fresh.yaml").Fresh([param], lr=0.1)
param.square().sum().backward()
optimizer.step()
assert param.max() < 0.95, param
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_code_templates_specs_and_the_stock_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("templates", "optgen/_data/templates"), ("specs", "optgen/_data/specs")):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                assert f"{inside}/{path.relative_to(ROOT / folder).as_posix()}" in names
    for path in (ROOT / "generated" / "optgen_optim").iterdir():
        if path.is_file():
            assert f"optgen_optim/{path.name}" in names
    for path in (ROOT / "optgen").rglob("*"):
        if path.suffix in (".py", ".cpp", ".typed"):
            assert path.relative_to(ROOT).as_posix() in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"optgen", "optgen_optim"}


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    programs = empty_environment(tmp_path, wheel)
    python = programs / "python"
    assert "engines" in run(python, "-c", TRAIN_A_STEP, cwd=tmp_path)
    command = programs / "optgen"
    assert run(command, "list", cwd=tmp_path).count("\n") > 15
    run(command, "new", "fresh", cwd=tmp_path)
    run(command, "build", "fresh.yaml", cwd=tmp_path)
    run(python, "-c", OWN_RULE, cwd=tmp_path)

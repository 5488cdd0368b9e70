"""The wheel: what it holds, and that it works in an environment that has nothing else."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

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


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout, without its paths; fail with what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def setup_venv() -> ModuleType:
    """The script that `make` sets environments up with; it knows where torch comes from."""
    spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "tools" / "setup_venv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (path,) = out.glob("optgen-*.whl")
    return path


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
        if path.suffix in (".py", ".cpp"):
            assert path.relative_to(ROOT).as_posix() in names
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"optgen", "optgen_optim"}


def lend_torch(home: Path, folder: Path) -> None:
    """Let another environment import the torch of this one, by links: its gigabyte is neither fetched nor unpacked."""
    torch = metadata.distribution("torch")
    folder.mkdir()
    for name in {path.parts[0] for path in torch.files or ()} - {"..", "__pycache__"}:
        (folder / name).symlink_to(Path(str(torch.locate_file(name))))
    Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}), "lent.pth").write_text(f"{folder}\n")


@pytest.mark.slow
def test_the_wheel_trains_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "empty"
    venv.create(home)
    python = home / "bin" / "python"
    lend_torch(home, tmp_path / "lent")
    tools = setup_venv()
    index = tools.torch_index(tools.pip_config())
    into = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    pip = (*into, "install", "--quiet", "--no-compile")
    run(*pip, str(wheel), "-c", str(ROOT / "constraints.txt"), *index, cwd=tmp_path)
    assert "engines" in run(python, "-c", TRAIN_A_STEP, cwd=tmp_path)
    command = home / "bin" / "optgen"
    assert run(command, "list", cwd=tmp_path).count("\n") > 15
    run(command, "new", "fresh", cwd=tmp_path)
    run(command, "build", "fresh.yaml", cwd=tmp_path)
    run(python, "-c", OWN_RULE, cwd=tmp_path)

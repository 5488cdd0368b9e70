"""Environments of their own, in which wheels are installed and used."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


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


def built_wheel(source: Path, out: Path) -> Path:
    """Build the wheel of a source folder."""
    out.mkdir(exist_ok=True)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    (path,) = out.glob("*.whl")
    return path


def lend_torch(home: Path, folder: Path) -> None:
    """Let another environment import the torch of this one, by links: its gigabyte is neither fetched nor unpacked."""
    torch = metadata.distribution("torch")
    folder.mkdir()
    for name in {path.parts[0] for path in torch.files or ()} - {"..", "__pycache__"}:
        (folder / name).symlink_to(Path(str(torch.locate_file(name))))
    Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}), "lent.pth").write_text(f"{folder}\n")


def empty_environment(folder: Path, *wheels: Path) -> Path:
    """Make an environment in `folder` with these wheels and what they require; return its folder of programs."""
    home = folder / "empty"
    venv.create(home)
    python = home / "bin" / "python"
    lend_torch(home, folder / "lent")
    tools = setup_venv()
    index = tools.torch_index(tools.pip_config())
    into = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    pip = (*into, "install", "--quiet", "--no-compile")
    run(*pip, *map(str, wheels), "-c", str(ROOT / "constraints.txt"), *index, cwd=folder)
    return home / "bin"

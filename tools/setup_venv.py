"""Makes .venv ready for `make demo` or `make test`; quick if it is ready already.

Uses nothing but Python's own modules. A torch that can be imported already is used: the environment sees the packages
of the Python that makes it. Otherwise torch is installed from pip's own index settings (PIP_INDEX_URL,
PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS, pip.conf) if there are any, else from PyTorch's builds for the CPU, or from the
address in TORCH_INDEX: plain pip would take the build for CUDA on Linux, several gigabytes. For tests on Linux PyCUDA
is built too: setup_pycuda.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setup_pycuda import BuildError, setup_pycuda, skipped

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

OLD_PYTHON = """\
{python} is Python {version}; 3.11 or newer is needed.
  name another: make PYTHON=/path/to/python"""

NO_VENV = """\
{python} cannot make virtual environments ({module} is missing).
  Debian, Ubuntu: apt install python3-venv (or python3.{minor}-venv)
  Fedora: dnf install python3-pip
  macOS: brew install python
  or name another Python: make PYTHON=/path/to/python"""

NO_COMPILER = """\
no C++ compiler was found (g++, clang++ or c++).
  Debian, Ubuntu: apt install g++
  Fedora: dnf install gcc-c++
  macOS: xcode-select --install"""


class SetupError(Exception):
    """The environment cannot be made; the message names the fix."""


def main(purpose: str) -> None:
    """Make .venv ready for "demo" or "test".

    Raises:
        SetupError: see above.
    """
    if sys.version_info < (3, 11):
        raise SetupError(OLD_PYTHON.format(python=sys.executable, version=sys.version.split()[0]))
    compiler = check_compiler(purpose)
    key = hashlib.sha256()
    for path in (*sorted(Path(__file__).parent.glob("setup_*.py")), ROOT / "pyproject.toml", CONSTRAINTS):
        key.update(path.read_bytes())
    key.update(f"{sys.version} {skipped()}".encode())
    stamps = {name: VENV / f"ready-for-{name}" for name in ("demo", "test")}
    enough = [stamps["test"], stamps[purpose]]
    if PYTHON.exists() and any(stamp.exists() and stamp.read_text() == key.hexdigest() for stamp in enough):
        return
    make_venv()
    constraints = install_torch(pinned=purpose == "test")
    needed = [".[demo]"] if purpose == "demo" else [".", *group(purpose)]
    pip_install("--quiet", "-c", str(constraints), "-e", *needed)
    if purpose == "test":
        pip_install("--quiet", "-c", str(constraints), "--no-deps", *group("oracles"))
        add_pycuda(compiler, constraints)
    stamps[purpose].write_text(key.hexdigest())


def group(name: str) -> list[str]:
    """Requirements of a dependency group of pyproject.toml, which the pip of a new environment may be too old for."""
    import tomllib  # which older Pythons lack, and are told so

    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    found: list[str] = []
    for requirement in groups[name]:
        found += group(requirement["include-group"]) if isinstance(requirement, dict) else [requirement]
    return found


def check_compiler(purpose: str) -> str:
    """Return the C++ compiler, "" if there is none: the demo then runs on plain torch operations, and says so.

    Raises:
        SetupError: if there is none, and the tests need one.
    """
    names = [name for name in (os.environ.get("OPTGEN_CXX"), os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    for name in names:
        if shutil.which(name.split()[0]):
            return name
    if purpose == "test":
        raise SetupError(NO_COMPILER)
    print(f"note: {NO_COMPILER}\nGenerated optimizers will run as plain torch operations, which is slower.")
    return ""


def add_pycuda(compiler: str, constraints: Path) -> None:
    """Install PyCUDA where the tests can use it: on Linux, unless the user goes without. Raises SetupError."""
    if sys.platform != "linux":
        print("note: PyCUDA is built on Linux only; the tests that need it will be skipped.")
    elif skipped():
        print("note: without PyCUDA (OPTGEN_SKIP_PYCUDA); the tests that need it will be skipped.")
    else:
        try:
            setup_pycuda(PYTHON, compiler, constraints)
        except BuildError as error:
            raise SetupError(str(error)) from error


def make_venv() -> None:
    """Make .venv if it is missing or broken, with a view of an installed torch."""
    if PYTHON.exists() and succeeds(str(PYTHON), "-m", "pip", "--version"):
        return
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            raise SetupError(NO_VENV.format(python=sys.executable, module=module, minor=sys.version_info.minor))
    has_torch = succeeds(sys.executable, "-c", "import torch")
    print("making .venv" + (", with the torch that is installed already" if has_torch else ""), flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    options = ["--system-site-packages"] if has_torch else []
    if not run(sys.executable, "-m", "venv", *options, str(VENV)):
        raise SetupError(NO_VENV.format(python=sys.executable, module="ensurepip", minor=sys.version_info.minor))
    if has_torch and sys.prefix != sys.base_prefix:
        # This Python is itself of a virtual environment, whose packages .venv would not see.
        directory = next((VENV / "lib").glob("python3.*/site-packages"))
        (directory / "outer_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")


def install_torch(pinned: bool) -> Path:
    """Install torch unless one is there that will do: any for the demo, the pinned version for tests.

    Returns:
        The constraints for what is installed after it, which leave that torch alone.
    """
    wanted = re.search(r"(?m)^torch==(\S+)$", CONSTRAINTS.read_text())
    assert wanted is not None
    version = installed_torch()
    if not version or (pinned and version.partition("+")[0] != wanted[1]):
        print(f"installing torch {wanted[1]}", flush=True)
        pip_install(f"torch=={wanted[1]}", "-c", str(CONSTRAINTS), *torch_index(pip_config()))
        version = installed_torch()
        if not version:
            raise SetupError("torch was installed but cannot be imported: .venv/bin/python -c 'import torch'")
    constraints = VENV / "constraints.txt"
    constraints.write_text(re.sub(r"(?m)^torch==\S+$", f"torch=={version}", CONSTRAINTS.read_text()))
    return constraints


def installed_torch() -> str:
    """The version of the torch that .venv imports, "" if there is none."""
    command = [str(PYTHON), "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""


def torch_index(config: str) -> list[str]:
    """Arguments that make pip find a torch for the CPU; none where the user has told pip where to look.

    Args:
        config: the output of `pip config list`.
    """
    own = re.search(r"(?m)^[^=]*\.(index-url|extra-index-url|find-links|no-index)\s*=", config)
    chosen = os.environ.get("TORCH_INDEX") or ("" if own else TORCH_INDEX)
    return ["--extra-index-url", chosen] if chosen else []


def pip_config() -> str:
    """pip's settings from its files and from the environment."""
    command = [str(PYTHON), "-m", "pip", "config", "list"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def pip_install(*arguments: str) -> None:
    """Install into .venv. Raises SetupError if that fails; pip has said why.

    Bytecode is left to be made at a first import: most of what is installed never has one.
    """
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
    if not run(*pip, "install", "--no-compile", *arguments):
        raise SetupError("pip failed, see above. Without a network, point PIP_FIND_LINKS at a folder of wheels.")


def run(*command: str) -> bool:
    """Run a command in the repository's root; say whether it went well."""
    return subprocess.run(command, cwd=ROOT).returncode == 0


def succeeds(*command: str) -> bool:
    """Run a command without showing what it prints; say whether it went well."""
    return subprocess.run(command, cwd="/", capture_output=True).returncode == 0


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except SetupError as error:
        sys.exit(f"error: {error}")

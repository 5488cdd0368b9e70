"""Runs the tests of the runtime with the oldest torch that pyproject.toml allows and with the newest there is.

    python tools/torch_versions.py                 # both
    python tools/torch_versions.py oldest 2.10.0   # some
    python tools/torch_versions.py newest --into /scratch -- tests/runtime -x

Each version has an environment of its own, `.venv-torch/VERSION` unless `--into` names another folder, which stays for
later runs; `newest` is asked again each time. The tests are those of what calls torch, and those named after `--` in
their place. torch comes from where tools/setup_venv.py takes it: pip's own settings, TORCH_INDEX, or PyTorch's builds
for the CPU.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from setup_venv import CONSTRAINTS, ROOT, torch_index

# What calls torch: the rest is the same with every version.
TESTS = (
    "tests/runtime", "tests/codecs", "tests/distributed", "tests/test_signatures.py", "tests/numerics/test_first.py",
    "tests/parity/test_torch_rules.py", "tests/parity/test_torch_messages.py",
)  # fmt: skip
# What these tests import beside the package and what it needs.
LIBRARIES = ("hypothesis", "numpy", "pytest", "pytest-xdist", "setuptools")
SKIPPED = "not full and not gpu"


def wanted(version: str) -> str:
    """Requirement for pip, for a version or for `oldest` or `newest` of those that pyproject.toml allows.

    Raises:
        ValueError: if it is none of these.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (least,) = (item for item in project["dependencies"] if re.match(r"torch\b", item))
    match version:
        case "oldest":
            return str(least.replace(">=", "==") + ".*")
        case "newest":
            return str(least)
    if re.fullmatch(r"\d+(\.\d+)+(\+\w+)?", version) is None:
        raise ValueError(f"{version!r} is neither oldest nor newest nor a version of torch")
    return f"torch=={version}"


def run(*command: str) -> bool:
    """Run a command in the repository's root; say whether it went well."""
    return subprocess.run(command, cwd=ROOT).returncode == 0


def config_of(pip: list[str]) -> str:
    """pip's settings, from its files and from the environment."""
    return subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout


def make(version: str, folder: Path) -> Path | None:
    """The Python of an environment with this torch, made if it is not there; None if pip fails, and has said why."""
    python = folder / version / "bin" / "python"
    if not python.exists() and not run(sys.executable, "-m", "venv", str(folder / version)):
        return None
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    fresh = ["--upgrade"] if version == "newest" else []
    if not run(*pip, "install", "--quiet", *fresh, wanted(version), *torch_index(config_of(pip))):
        return None
    pins = folder / version / "constraints.txt"  # of the tests' own libraries; what else there is, torch says
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    pins.write_text("\n".join(line for line in lines if line.partition("==")[0] in LIBRARIES) + "\n", encoding="utf-8")
    return python if run(*pip, "install", "--quiet", "-e", ".", *LIBRARIES, "-c", str(pins)) else None


def main(arguments: list[str]) -> int:
    """Test with each version; 1 if any fails, in its installation or in a test."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    tests = arguments[end + 1 :] or TESTS
    parser = argparse.ArgumentParser(description="Tests with other versions of torch.")
    parser.add_argument("versions", nargs="*", help="oldest, newest, or versions; both by default")
    parser.add_argument("--into", type=Path, default=ROOT / ".venv-torch", help="the folder of the environments")
    given = parser.parse_args(arguments[:end])
    failed = []
    for version in given.versions or ["oldest", "newest"]:
        try:
            wanted(version)
        except ValueError as error:
            parser.error(str(error))
        python = make(version, given.into.resolve())
        if python is None:
            failed.append(f"{version} (not installed)")
            continue
        run(str(python), "-c", "import torch; print('torch', torch.__version__, flush=True)")
        if not run(str(python), "-m", "pytest", "-p", "no:cacheprovider", "-n", "3", "-m", SKIPPED, *tests):
            failed.append(version)
    if failed:
        print(f"failed with torch: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

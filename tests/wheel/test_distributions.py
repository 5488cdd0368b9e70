"""The runtime by itself, and a generated package that is distributed with it: both without the compiler."""

from __future__ import annotations

import sys
import tomllib
import zipfile
from pathlib import Path

import check_layers
import pytest
from support.environments import ROOT, built_wheel, empty_environment, run

RUNTIME = ROOT / "packaging" / "runtime"
SPEC = ROOT / "tests" / "runtime" / "data" / "packages" / "kept.yaml"
TRAIN = """
import sys
from pathlib import Path
import torch
import my_rules
from my_rules import Kept
from optgen.paths import include_dir

assert Path(sys.prefix).resolve() in Path(my_rules.__file__).resolve().parents
assert Path(sys.prefix).resolve() in include_dir().resolve().parents

def train(param, optimizer):
    for _ in range(3):
        optimizer.zero_grad()
        param.square().sum().backward()
        optimizer.step()

ends = []
for target in ("cpu", "torch"):
    param = torch.nn.Parameter(torch.linspace(-1, 1, 64 * 128).reshape(64, 128))
    optimizer = Kept([param], lr=0.01, optim_bits=8, target=target)
    train(param, optimizer)
    assert optimizer.engines() == {target: 1}, optimizer.engines()
    resumed = Kept([param], lr=0.01, optim_bits=8, target=target)
    resumed.load_state_dict(optimizer.state_dict())
    train(param, resumed)
    ends.append(param.detach())
assert torch.equal(*ends)
assert ends[0].abs().max() < 0.96
assert not {"jinja2", "pydantic", "yaml", "typer", "rich"} & set(sys.modules)

import optgen
try:
    optgen.load("kept.yaml")
except ImportError as error:
    print(error)
"""


def project(folder: Path) -> dict[str, object]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def runtime_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(RUNTIME, tmp_path_factory.mktemp("runtime"))


def test_the_runtime_needs_torch_and_what_finds_its_cache_alone() -> None:
    names = {str(text).partition(">")[0] for text in project(RUNTIME)["dependencies"]}  # type: ignore[attr-defined]
    assert names == {"torch", "filelock", "platformdirs"}


def test_requirements_and_licence_are_those_of_optgen() -> None:
    own, whole = project(RUNTIME), project(ROOT)
    assert set(own["dependencies"]) < set(whole["dependencies"])  # type: ignore[call-overload]
    extras = whole["optional-dependencies"]
    assert own["optional-dependencies"] == {name: extras[name] for name in own["optional-dependencies"]}  # type: ignore
    for key in ("requires-python", "license"):
        assert own[key] == whole[key]
    assert (RUNTIME / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_wheel_of_the_runtime_is_a_part_of_optgen(runtime_wheel: Path) -> None:
    with zipfile.ZipFile(runtime_wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    for name, content in files.items():
        path = ROOT / name.replace("optgen/_data/templates", "templates")
        assert path.read_bytes() == content, name
    for folder in ("optgen/runtime", "optgen/integrations", "templates/include"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert path.relative_to(ROOT).as_posix().replace("templates/", "optgen/_data/templates/") in files


def test_all_that_the_runtime_may_import_is_in_its_wheel(runtime_wheel: Path) -> None:
    names = set(zipfile.ZipFile(runtime_wheel).namelist())
    for module in {"abi", *check_layers.APART["runtime"], *check_layers.APART["integrations"]}:
        assert {f"optgen/{module}.py", f"optgen/{module}/__init__.py"} & names, module


@pytest.mark.slow
def test_a_generated_package_trains_in_an_empty_environment(runtime_wheel: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    out = source / "my_rules"
    command = (sys.executable, "-m", "optgen", "build", str(SPEC), "--out", str(out), "--dist")
    said = run(*command, cwd=ROOT)
    assert "pyproject.toml written" in said
    (source / ".gitignore").write_text("my_rules\n")  # as generated files often are
    (out / "cubins").mkdir()
    (out / "cubins" / "kept.cubin").touch()
    wheel = built_wheel(source, tmp_path / "wheels")
    assert {f"my_rules/{name}" for name in ("kept.cpp", "shared.py", "py.typed", "cubins/kept.cubin")} <= set(
        zipfile.ZipFile(wheel).namelist()
    )
    assert wheel.name == "my_rules-0.1.0-py3-none-any.whl"
    programs = empty_environment(tmp_path, runtime_wheel, wheel)
    installed = programs.parent.glob("lib/python*/site-packages/*.dist-info")
    names = {path.name.partition("-")[0].lower() for path in installed}
    assert {"my_rules", "optgen_runtime", "filelock", "platformdirs"} <= names
    assert not names & {"optgen", "pydantic", "pyyaml", "rich", "typer"}  # torch itself needs jinja2
    assert not (programs / "optgen").exists()
    said = run(programs / "python", "-c", TRAIN, cwd=tmp_path)
    assert said.startswith("optgen.load is part of the compiler, of which optgen.loading is not installed here")
    assert "pip install ." in said

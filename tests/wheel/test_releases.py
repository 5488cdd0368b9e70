"""Releases: what is uploaded, and the files that say how; that versions agree."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import setup_venv
import yaml
from support.environments import ROOT, built_wheel, run

import optgen

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINK = re.compile(r"\]\((?!#)([^)\s]+)\)")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is uploaded."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    runtime = tmp_path_factory.mktemp("runtime")
    wheel = built_wheel(ROOT / "packaging" / "runtime", runtime)
    wheel.rename(out / wheel.name)
    return out


def metadata(dist: Path, name: str) -> email.message.Message:
    (wheel,) = dist.glob(f"{name}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(path))


@pytest.mark.slow
def test_an_index_takes_what_is_built(dist: Path) -> None:
    pytest.importorskip("twine")
    files = sorted(dist.iterdir())
    assert [path.suffix for path in files].count(".whl") == 2
    assert any(path.name.endswith(".tar.gz") for path in files)
    said = run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=dist)
    assert said.count("PASSED") == 3


@pytest.mark.slow
def test_metadata_is_for_users(dist: Path) -> None:
    for name in ("optgen", "optgen_runtime"):
        found = metadata(dist, name)
        assert found["Version"] == optgen.__version__
        assert set(found.get_all("Provides-Extra")) <= {"cuda", "demo", "nvcc", "pycuda"}
        assert found["License-Expression"] == "MIT"


@pytest.mark.slow
def test_the_source_archive_builds_both(dist: Path, tmp_path: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for folder, name in ((source, "optgen"), (source / "packaging" / "runtime", "optgen_runtime")):
        (first,) = dist.glob(f"{name}-*.whl")
        with zipfile.ZipFile(first) as one, zipfile.ZipFile(built_wheel(folder, tmp_path / name)) as two:
            contents = [{i.filename: i.CRC for i in z.infolist() if "RECORD" not in i.filename} for z in (one, two)]
        assert contents[0] == contents[1]


def test_versions_agree() -> None:
    assert PROJECT["project"]["version"] == optgen.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first = re.search(r"(?m)^## (\d+\.\d+\.\d+), (.+)$", changes)
    assert first is not None
    assert first[1] == optgen.__version__
    assert first[2] == "not released yet" or re.fullmatch(r"\d{4}-\d{2}-\d{2}", first[2])


def test_with_an_address_links_are_absolute_and_without_one_a_page_says_so() -> None:
    pages = [ROOT / PROJECT["project"]["readme"], ROOT / "packaging" / "runtime" / "README.md"]
    relative = [link for page in pages for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    if "urls" in PROJECT["project"]:
        assert {"Repository", "Documentation", "Changelog"} <= set(PROJECT["project"]["urls"])
        assert not relative
    else:
        assert "no public address of the project yet" in (ROOT / "docs" / "releases.md").read_text(encoding="utf-8")


def test_no_text_of_the_product_names_optgen_on_an_index() -> None:
    """It is on none: who follows such an advice gets nothing, or something else."""
    texts = [*(ROOT / "optgen").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    for path in [*texts, ROOT / "README.md", ROOT / "packaging" / "runtime" / "README.md"]:
        found = re.findall(
            r"pip3? install (?:-\S+ )*['\"]?optgen(?:\[\w+\])?(?:['\"]|\b(?![_*-]))", path.read_text("utf-8")
        )
        assert not found, (path, found)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_what_the_host_takes(path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_workflows_run_what_there_is() -> None:
    for path in WORKFLOWS:
        for name, job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].items():
            assert job["timeout-minutes"] <= 90, name
            for step in job["steps"]:
                for word in step.get("run", "").split():
                    if word.startswith(("tests/", "tools/", ".ci/", "packaging/")):
                        assert (ROOT / word).exists(), word
                assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1"))


def test_the_matrix_has_every_python_and_system() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    assert jobs["torch"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
    systems = {row["os"].partition("-")[0] for row in jobs["platforms"]["strategy"]["matrix"]["include"]}
    assert systems == {"ubuntu", "macos", "windows"}
    assert any("qemu-user" in step.get("run", "") for step in jobs["aarch64"]["steps"])


def test_the_image_has_what_the_wheel_is_built_of() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed |= {str(name).partition("/")[0] for name in (*wheel["packages"], *wheel["force-include"])}
    assert needed <= copied
    assert all((ROOT / name).exists() for name in copied)


def test_the_group_of_the_tests_needs_no_new_pip() -> None:
    assert any(requirement.startswith("pytest>=") for requirement in setup_venv.group("test"))

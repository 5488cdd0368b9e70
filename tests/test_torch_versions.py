"""Versions of torch that tests run with: the oldest is the one that the package asks for; a public host runs both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch_versions
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that are run, each of which then succeeds."""
    found: list[tuple[str, ...]] = []

    def run(*command: str) -> bool:
        if command[1:3] == ("-m", "venv"):
            (Path(command[3]) / "bin").mkdir(parents=True)
        found.append(command)
        return True

    monkeypatch.setattr(torch_versions, "run", run)
    monkeypatch.setattr(torch_versions, "config_of", lambda pip: "")
    return found


def test_the_oldest_is_the_one_that_the_package_asks_for() -> None:
    asked = re.search(r'"torch>=(\d+\.\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert asked is not None
    assert torch_versions.wanted("oldest") == f"torch=={asked[1]}.*"
    assert torch_versions.wanted("newest") == f"torch>={asked[1]}"
    assert torch_versions.wanted("2.10.0") == "torch==2.10.0"
    with pytest.raises(ValueError, match="'latest' is neither oldest nor newest nor a version of torch"):
        torch_versions.wanted("latest")


def test_each_version_has_an_environment_of_its_own(calls: list[tuple[str, ...]], tmp_path: Path) -> None:
    assert torch_versions.main(["oldest", "2.10.0", "--into", str(tmp_path), "--", "tests/codecs", "-x"]) == 0
    pythons = [command[0] for command in calls if command[1:3] == ("-m", "pytest")]
    assert pythons == [str(tmp_path / name / "bin" / "python") for name in ("oldest", "2.10.0")]
    assert all(command[-2:] == ("tests/codecs", "-x") for command in calls if command[1:3] == ("-m", "pytest"))
    pins = (tmp_path / "oldest" / "constraints.txt").read_text().splitlines()
    assert sorted(line.partition("==")[0] for line in pins) == sorted(torch_versions.LIBRARIES)


def test_what_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], calls: list[tuple[str, ...]]
) -> None:
    works = torch_versions.run
    monkeypatch.setattr(torch_versions, "run", lambda *command: works(*command) and command[1:3] != ("-m", "pytest"))
    assert torch_versions.main(["oldest", "--into", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "failed with torch: oldest\n"
    monkeypatch.setattr(torch_versions, "run", lambda *command: False)
    assert torch_versions.main(["newest", "--into", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "failed with torch: newest (not installed)\n"


def test_its_tests_are_there() -> None:
    assert all((ROOT / path).exists() for path in torch_versions.TESTS)


def test_a_public_host_runs_both_and_everything() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["torch"]["strategy"]["matrix"]
    assert matrix["torch"] == ["oldest", "newest"]
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert {".ci/run", "python tools/torch_versions.py ${{ matrix.torch }}"} <= set(runs)
    assert (ROOT / ".ci" / "run").exists()

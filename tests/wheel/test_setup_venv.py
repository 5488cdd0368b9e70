"""Environment that `make` builds: where it takes torch from, and whether it builds PyCUDA."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import setup_venv


@pytest.fixture(autouse=True)
def _no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_INDEX", raising=False)


@pytest.mark.parametrize("config", ["", "global.timeout='60'\n"])
def test_without_settings_torch_comes_from_its_cpu_builds(config: str) -> None:
    assert setup_venv.torch_index(config) == ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]


@pytest.mark.parametrize(
    "config",
    [
        ":env:.find-links='/wheels'",
        "global.index-url='https://example.org/simple'",
        "install.extra-index-url='https://example.org/simple'",
        "global.timeout='60'\nuser.no-index='1'",
    ],
)
def test_pips_own_settings_are_enough(config: str) -> None:
    assert setup_venv.torch_index(config) == []


def test_a_chosen_index_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "https://example.org/cu")
    assert setup_venv.torch_index("global.index-url='x'") == ["--extra-index-url", "https://example.org/cu"]


def test_a_missing_compiler_names_the_fix(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(setup_venv.SetupError, match=r"apt install g\+\+"):
        setup_venv.check_compiler("test")
    assert setup_venv.check_compiler("demo") == ""
    assert "slower" in capsys.readouterr().out


def test_a_missing_venv_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup_venv, "PYTHON", tmp_path / "none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup_venv.SetupError, match="apt install python3-venv"):
        setup_venv.make_venv()


def test_the_compiler_that_the_user_names_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.delenv("OPTGEN_CXX", raising=False)
    monkeypatch.setenv("CXX", "ccache clang++")
    assert setup_venv.check_compiler("test") == "ccache clang++"


@pytest.mark.parametrize(("platform", "skip"), [("darwin", ""), ("linux", "1")])
def test_where_pycuda_is_left_out_a_note_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, platform: str, skip: str
) -> None:
    monkeypatch.setattr(setup_venv, "setup_pycuda", lambda *arguments: pytest.fail("PyCUDA must not be built"))
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("OPTGEN_SKIP_PYCUDA", skip)
    setup_venv.add_pycuda("c++", tmp_path / "constraints.txt")
    assert "tests that need it will be skipped" in capsys.readouterr().out


def test_on_linux_a_pycuda_that_cannot_be_built_ends_the_setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*arguments: object) -> None:
        raise setup_venv.BuildError("the fix")

    monkeypatch.setattr(setup_venv, "setup_pycuda", fail)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("OPTGEN_SKIP_PYCUDA", raising=False)
    with pytest.raises(setup_venv.SetupError, match="the fix"):
        setup_venv.add_pycuda("c++", tmp_path / "constraints.txt")

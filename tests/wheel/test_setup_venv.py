"""Where `make` takes torch from."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("setup_venv", ROOT / "tools" / "setup_venv.py")
assert _spec is not None
assert _spec.loader is not None
setup_venv = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(setup_venv)


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
    setup_venv.check_compiler("demo")
    assert "slower" in capsys.readouterr().out


def test_a_missing_venv_names_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(setup_venv, "PYTHON", tmp_path / "none")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(setup_venv.SetupError, match="apt install python3-venv"):
        setup_venv.make_venv()

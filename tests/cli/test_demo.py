"""The demo, a few steps of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from optgen.demo import picture, run_demo
from optgen.demo.text import load_text
from optgen.demo.training import Run
from optgen.errors import UserError


def test_a_short_demo_prints_a_table_and_saves_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path / "out", 2)
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "." in line}
    for name in ("torch.optim.AdamW", "AdamW", "AdamW8bit", "LAMB8bit"):
        assert name in rows
    assert float(rows["AdamW"][2]) == pytest.approx(8, abs=0.05)
    assert float(rows["AdamW8bit"][2]) == pytest.approx(2.1, abs=0.1)
    assert float(rows["AdamW"][1]) == pytest.approx(float(rows["torch.optim.AdamW"][1]), abs=0.002)
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_text_is_whole() -> None:
    text = load_text()
    assert len(text.training) > 200_000
    assert len(text.held_out) > 20_000
    assert int(text.training.max()) < len(text.alphabet)


def test_labels_of_curves_do_not_overlap() -> None:
    assert picture._spread([1.0, 1.0, 1.0, 3.0], 0.5) == [0.5, 1.0, 1.5, 3.0]
    assert picture._spread([1.0, 2.0], 0.5) == [1.0, 2.0]
    assert picture._spread([1.0, 1.0, 1.6], 0.5) == pytest.approx([0.7, 1.2, 1.7])


def test_a_run_knows_its_last_loss_and_median_step() -> None:
    run = Run("x", {0: 3.0, 20: 1.0, 10: 2.0}, [9.0, 0.001, 0.002])
    assert run.final_loss == 1.0
    assert run.step_milliseconds == 2.0


def test_without_the_package_the_demo_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optgen.demo.STOCK_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="the demo needs no_such_package"):
        run_demo(tmp_path, 1)

"""Claims of README.md are computed again, and each of its parts that claims something names what shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import claims
import pytest
from support.compiling import stock_package

ROOT = Path(__file__).parents[2]
# Compiled once for all tests of a process.
claims.classes = cache(lambda: {info.name: info for info in stock_package().classes})

README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
CLAIMS = [*(one.today() for one in claims.FIGURES), *(one.words for one in claims.SENTENCES)]


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def points(text: str) -> list[str]:
    """The points of a list, each on one line."""
    return [claims.plain(point) for point in re.split(r"(?m)^- ", text)[1:]]


@pytest.mark.parametrize("words", CLAIMS)
def test_the_readme_has_these_words(words: str) -> None:
    assert words in claims.plain(README)


@pytest.mark.parametrize("name", sorted({name for one in claims.SENTENCES for name in one.tests}))
def test_a_sentence_names_tests_that_exist(name: str) -> None:
    assert re.search(r"(?m)^ *def test_", (ROOT / name).read_text())


@pytest.mark.parametrize("point", [*points(section("Why")), *points(section("How things are chosen"))])
def test_every_point_is_shown_by_something(point: str) -> None:
    assert [words for words in CLAIMS if words in point]


def test_figures_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert claims.main(["figures"]) == 0
    assert "37 rules as 92 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("there", "instead"), [("37 rules as", "38 rules as"), ("| `optgen new NAME` |", "| `optgen old NAME` |")]
)
def test_a_claim_that_is_not_so_is_told(
    there: str, instead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "README.md"
    assert there in README
    other.write_text(README.replace(there, instead))
    assert claims.main(["figures"], other) == 1
    assert "\nNO " in capsys.readouterr().out


def test_tests_are_counted(tmp_path: Path) -> None:
    """Of each file its own, whatever became of them."""
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_one(): pass\n"
        "def test_two(): assert 0\n"
        "def test_three(): pytest.skip('so')\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError\n"
        "def test_four(broken): pass\n"
    )
    (tmp_path / "test_some_more.py").write_text("class TestMore:\n    def test_one(self): pass\n")
    files = ["test_some.py", "test_some_more.py"]
    found = claims.outcomes(files, tmp_path / "tests.xml", tmp_path)
    assert found == {
        "test_some.py": {"passed": 1, "failed": 2, "skipped": 1},
        "test_some_more.py": {"passed": 1},
    }


def figures_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """The optimizers of the first table, each with its milliseconds: one for each width of vectors that it has."""
    table = text.partition("\n|")[2].partition("\n\n")[0]
    head, _, *lines = [line.strip("|").split(" | ") for line in table.splitlines()]
    places = [place for place, cell in enumerate(head) if cell.strip().startswith("ms")]
    assert places
    for name, *cells in lines:
        yield name.strip(), [cells[place - 1].strip() for place in places]


def test_a_table_may_have_a_column_for_each_width() -> None:
    table = "\n| optimizer | ms, AVX-512 | roofline | ms, AVX2 |\n|---|---|---|---|\n| AdamW | 1.25 | 9 % | 2.5 |\n"
    assert list(figures_of(table)) == [("AdamW", ["1.25", "2.5"])]
    readme = "\n## Speed\n\n| | a, b | | | | | |\n|---|\n| AdamW | 1 | 2 | 3 | 4 | 5 | 6 |\n"
    assert list(claims.table_of(readme)) == [("AdamW", ("1 / 2", "3 / 4", "5 / 6"))]


def test_speeds_are_those_of_one_run() -> None:
    """The README's table is taken from the tables of docs/performance.md."""
    tables = re.split(r"(?m)^One parameter of|^GPT-2 small's|^1000 tensors of", PERFORMANCE)[1:4]
    rows = [dict(figures_of(table)) for table in tables]
    there = dict(claims.table_of(README))
    assert "AdamW8bit" in there
    for name, cells in there.items():
        for cell, table in zip(cells, rows, strict=True):
            for short, long in zip(cell.split(" / "), table[name], strict=True):
                # Both are roundings of one figure, there to two decimals.
                unit = 0.1 if "." in short else 1.0
                assert abs(float(short) - float(long)) <= unit / 2 + 0.005 + 1e-9, (name, cell)


@pytest.mark.full
def test_the_table_is_measured_anew(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Here on the smallest case alone."""
    monkeypatch.setattr(claims, "CASES", ("1000x1024",))
    text = "\n## Speed\n\n| | a |\n|---|---|\n| AdamW8bit | 3.9 |\n| torch AdamW fused | 6.9 |\n"
    assert claims.show_speed(text, quick=True)
    shown = capsys.readouterr().out.partition("milliseconds a step, here")[2]
    assert re.search(r"(?m)^AdamW8bit +[\d.]+ \(3\.9\)$", shown)
    assert re.search(r"(?m)^torch AdamW fused +[\d.]+ \(6\.9\)$", shown)

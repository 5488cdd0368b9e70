"""Links of the hand-written pages lead somewhere: to files, headings, modules, make's targets."""

from __future__ import annotations

import re
from pathlib import Path

import check_layers
import pytest
from support.compiling import ROOT, stock_package
from typer.main import get_command
from typer.testing import CliRunner

from optgen.bench.request import Request
from optgen.commands import app

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
OF_THE_HOUSE = ("CONTRIBUTING.md", "docs/architecture.md", "docs/glossary.md")  # pages for who changes optgen


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached_from_the_readme() -> None:
    seen = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall((ROOT / "README.md").read_text())}
    assert {page for page in PAGES if page.name != "README.md" and page.parent.name != "catalogue"} <= seen


def test_the_floors_are_those_that_are_checked() -> None:
    """The page of the architecture names every package and module of optgen/, and nothing that there is not."""
    shown = next(block for block in CODE.findall(ARCHITECTURE) if "cli.py" in block)
    named = set(re.findall(r"[\w/]+\.py|\b[\w/]+/", shown))
    there = {path.name if path.is_file() else f"{path.name}/" for path in (ROOT / "optgen").iterdir()}
    assert there - {"__init__.py", "__pycache__/", "py.typed"} == named


def test_the_rooms_are_those_that_are_checked() -> None:
    """It names the rooms of the runtime from the top down, as the check has them, and none else is there."""
    shown = next(block for block in CODE.findall(ARCHITECTURE) if "optimizer.py" in block)
    named = re.findall(r"(?m)^(\w+)(?:\.py|/)", shown)
    assert named == list(check_layers.ROOMS)
    there = {path.stem for path in (ROOT / "optgen" / "runtime").iterdir()}
    assert there - {"__init__", "__pycache__"} == set(named)


@pytest.mark.parametrize("page", OF_THE_HOUSE)
def test_paths_that_pages_of_the_house_name_are_there(page: str) -> None:
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    names = re.findall(r"`((?:\w+/)*[\w.]+(?:/|\.(?:py|yaml|toml|txt|md|h|cpp|cu|j2)))`", text)
    assert len(names) > 9
    folders = ("", "optgen", "optgen/runtime", "templates/include/optgen", "templates/cpu", "templates/cuda")
    folders += ("optgen/runtime/checkpoints", "generated/optgen_optim", "specs")  # a sentence names a folder first
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in folders), name


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"`?\bmake ((?:test|demo|bench|converge|lint|clean)[\w-]*)\b", page.read_text()):
            assert re.search(rf"(?m)^{target}\b.*:", makefile), f"{page.name}: make {target}"


def test_the_bench_page_has_every_option_of_the_command() -> None:
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    table = re.findall(r"(?m)^\| `(--[\w-]+)", page)
    command = get_command(app).commands["bench"]  # type: ignore[attr-defined]
    assert sorted(table) == sorted(option for param in command.params for option in param.opts if option[:2] == "--")


def test_the_bench_pages_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it stands, up to where measuring begins."""
    asked: list[Request] = []
    monkeypatch.setattr("optgen.bench.run_bench", asked.append)
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    commands = re.findall(r"(?m)^optgen (bench.*?)(?: +#.*| >.*)?$", page)
    for command in commands:
        done = CliRunner().invoke(app, command.partition(" >")[0].split())
        assert done.exit_code == 0, f"{command}: {done.output}"
    assert [one.like for one in asked if one.classes == ("LAMB8bit", "Lion8bit")] == ["bert-base"]
    assert len(asked) == len(commands) > 3
    for one in asked:
        assert set(one.classes) <= {info.name for info in stock_package().classes}

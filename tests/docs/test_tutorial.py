"""docs/tutorial.md is run as it stands: its files written, its commands and Python run, what they print compared."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
from support.compiling import ROOT
from support.machine import require_compiler
from typer.testing import CliRunner

from optgen.commands import app

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
MATCH = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LINES = {"calm": 10, "whiten": 20}  # as the page says
PERCENT = re.compile(r"(\d+)%")
PERCENT_ALLOWED = 3  # processors round differently, which a hundred steps make visible


def matches(shown: str, printed: str) -> bool:
    """Check whether an output is the one that is shown: `...` stands for anything, percentages may differ a little."""
    wanted, found = ([int(value) for value in PERCENT.findall(text)] for text in (shown, printed))
    close = len(wanted) == len(found) and all(abs(a - b) <= PERCENT_ALLOWED for a, b in zip(wanted, found, strict=True))
    if "..." not in shown and not close:
        return False
    plain = [PERCENT.sub("N%", text) if close else text for text in (shown, printed)]
    return doctest.OutputChecker().check_output(*plain, MATCH)


def run_command(line: str) -> str:
    """Run a command and return what it prints, on both streams."""
    words = shlex.split(line)
    if words[0] == "sed":
        # s/a/b/ FILE > OTHER, so that the page needs no shell.
        _, old, new, _ = words[1].split("/")
        Path(words[4]).write_text(Path(words[2]).read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
        return ""
    assert words[0] == "optgen", line
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code in (0, 1), done.output
    return done.output


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    names: dict[str, object] = {}
    printed, ran = "", 0
    for kind, text in BLOCKS:
        match kind:
            case "yaml":
                name = text.split()[1]
                assert len(text.splitlines()) == LINES.get(name, len(text.splitlines()))
                Path(f"{name}.yaml").write_text(text, encoding="utf-8")
            case "python":
                with contextlib.redirect_stdout(io.StringIO()) as output:
                    exec(compile(text, "tutorial.md", "exec"), names)
                printed = output.getvalue()
            case "text":
                assert matches(text, printed), f"shown:\n{text}\nprinted:\n{printed}"
            case "console":
                for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, flags=re.MULTILINE):
                    found = run_command(command)
                    assert matches(shown, found), f"$ {command}\nshown:\n{shown}\nprinted:\n{found}"
                    ran += 1
    assert ran == 11
    assert Path("calm.html").stat().st_size > 10_000


def test_the_comparison_sees_differences() -> None:
    assert matches("a 98% b\n", "a 97% b\n")
    assert not matches("a 98% b\n", "a 90% b\n")
    assert not matches("a 98%\n", "b 98%\n")
    assert matches("x\n...\ny\n", "x\n1\n2\ny\n")
    assert not matches("x\n...\ny\n", "x\n1\n2\nz\n")

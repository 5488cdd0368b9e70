"""The documentation as a site: made without warnings, with every page, class and heading that pages link to."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import make_site
import optgen_optim
import pytest
from support.compiling import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    tool = ROOT / "tools" / "make_site.py"
    done = subprocess.run([sys.executable, tool, "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return out


@pytest.mark.slow
def test_every_page_is_in_the_side_bar(site: Path) -> None:
    first = (site / "index.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f'href="docs/{page.stem}.html"' in first, page.name
    rules = (site / "docs" / "catalogue.html").read_text(encoding="utf-8")
    for page in (ROOT / "docs" / "catalogue").glob("*.md"):
        assert f'href="catalogue/{page.stem}.html"' in rules, page.name


@pytest.mark.slow
def test_the_reference_has_every_class_and_its_arguments(site: Path) -> None:
    reference = (site / "docs" / "api" / "optimizers.html").read_text(encoding="utf-8")
    documented = re.findall(r'id="optgen_optim\.\w+\.(\w+)"', reference)
    assert sorted(documented) == sorted(optgen_optim.CLASSES)
    methods = (site / "docs" / "api" / "optimizer.html").read_text(encoding="utf-8")
    for name in ("override", "engines", "paged_bytes", "load_state_dict"):
        assert f'id="optgen.runtime.optimizer.Optimizer.{name}"' in methods


@pytest.mark.slow
def test_it_can_be_searched(site: Path) -> None:
    assert "stochast" in (site / "searchindex.js").read_text(encoding="utf-8")


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[there](missing.md)")
    with pytest.raises(FileNotFoundError, match=r"\[there\]\(missing.md\) leads nowhere"):
        make_site.without_folders(page)

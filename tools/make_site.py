"""Makes the documentation as a site: the pages of docs/, README and the other pages, and a reference of the API.

    python tools/make_site.py [--out DIR]

The site is written to build/site (index.html), and has a search. Sphinx reads a copy of the pages, laid out as in the
repository, so that links between pages hold; its warnings are errors, as is a link that leads nowhere. It needs
the dependency group `docs` (`pip install --group docs`).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import shutil
import sys
import tempfile
from pathlib import Path

from sphinx.cmd.build import main as sphinx_build

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "generated")]

LINK = re.compile(r"\[([^\]]*)\]\(((?!https?://)[^)#\s]+)([^)\s]*)\)")
SECTIONS = {
    "Using it": "choosing training migration precision distributed tools environment bench performance kernel-time gpu",
    "Rules": "catalogue matrices tutorial language distributions",
    "Reference": "api/optimizers api/optimizer api/compiler api/integrations",
    "Of the project": "architecture glossary releases",
}
"""Headings of the side bar, and the pages of docs/ below each."""
API = {
    "optimizer": (
        "Methods of every optimizer",
        "What generated classes have beside the methods of `torch.optim.Optimizer`.",
        "optgen.runtime.optimizer:Optimizer optgen.runtime.settings.overrides:GlobalOptimManager"
        " optgen.runtime.checkpoints.misfits:StoredAnewWarning optgen.runtime.rule:Rule",
    ),
    "compiler": (
        "The compiler from Python",
        "Specs compiled and imported at once, and evaluated in float64.",
        "optgen:load optgen:reference optgen:SpecError optgen:SpecWarning optgen:UserError",
    ),
    "integrations": (
        "Integrations",
        "Functions that join optimizers to training libraries.",
        "optgen.integrations.transformers:optimizer optgen.integrations.overrides:override_modules",
    ),
}
"""Pages of the reference: title, text, and the objects on each."""


def make_site(out: Path) -> int:
    """Write the site to a folder; returns the exit status of Sphinx."""
    with tempfile.TemporaryDirectory(prefix="optgen-site-") as folder:
        source = Path(folder)
        copy_pages(source)
        write_api(source / "docs" / "api")
        shutil.copy2(ROOT / "docs" / "conf.py", source / "conf.py")
        status = sphinx_build(["-q", "-W", "--keep-going", "-b", "html", str(source), str(out)])
    if not status:
        shutil.copy2(out / "README.html", out / "index.html")
    return status


def copy_pages(source: Path) -> None:
    """Copy the pages and what they show; the first one gets the side bar's contents."""
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.*"),
        *ROOT.glob("examples/*.py"),
        ROOT / "tests/README.md",
    ]:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            target.write_text(without_folders(path), encoding="utf-8")
        else:
            shutil.copy2(path, target)
    with (source / "README.md").open("a", encoding="utf-8") as first:
        for caption, names in SECTIONS.items():
            first.write(toctree(caption, (f"docs/{name}" for name in names.split())))
        others = [path.stem for path in sorted(ROOT.glob("*.md")) if path.stem != "README"]
        first.write(toctree("More", [*others, "tests/README"]))
    with (source / "docs" / "catalogue.md").open("a", encoding="utf-8") as catalogue:
        rules = sorted((ROOT / "docs" / "catalogue").glob("*.md"))
        catalogue.write(toctree("", (f"catalogue/{path.stem}" for path in rules)))


def without_folders(page: Path) -> str:
    """A page's text, in which links to folders and to files that the site lacks are plain text.

    Raises:
        FileNotFoundError: for a link that leads nowhere.
    """

    def kept(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        if not target.exists():
            raise FileNotFoundError(f"{page}: [{link[1]}]({link[2]}) leads nowhere")
        there = target.suffix in (".md", ".png") or target.parent == ROOT / "examples"
        return link[0] if there and target.is_file() else link[1]

    return LINK.sub(kept, page.read_text(encoding="utf-8"))


def toctree(caption: str, names: object) -> str:
    """Contents of the side bar, as MyST has them."""
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}" if caption else "", "", *names, "```", ""])


def write_api(folder: Path) -> None:
    """Write the pages of the reference, for Sphinx to fill from docstrings."""
    folder.mkdir(parents=True)
    for name, (title, text, objects) in API.items():
        parts = [f"# {title}", text, *(automatic(*place.split(":")) for place in objects.split())]
        (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    import optgen_optim

    parts = ["# Generated optimizers", "Each class of `optgen_optim`, with its arguments."]
    parts.append(automatic("optgen_optim", "create"))
    for name in sorted(optgen_optim.CLASSES, key=str.lower):
        made = getattr(optgen_optim, name)
        parts += [f"## {name}", automatic(made.__module__, name, members=False)]
    (folder / "optimizers.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def automatic(module: str, name: str, members: bool = True) -> str:
    """The directive that takes an object's documentation from its docstring."""
    kind = "class" if inspect.isclass(getattr(importlib.import_module(module), name)) else "function"
    options = ["   :members:"] if kind == "class" and members else []
    return "\n".join(["```{eval-rst}", f".. auto{kind}:: {module}.{name}", *options, "```"])


def main() -> int:
    """Make the site."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder of the site")
    return make_site(parser.parse_args().out)


if __name__ == "__main__":
    raise SystemExit(main())

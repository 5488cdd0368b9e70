"""Sphinx's settings for the documentation's site, which tools/make_site.py makes."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

from optgen import __version__

project = "optgen"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
html_theme = "furo"
html_title = f"optgen {__version__}"
html_show_sourcelink = False
html_show_copyright = False
myst_heading_anchors = 6
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False


def setup(app: Sphinx) -> None:
    """Docstrings are plain text with code in backticks: what else reStructuredText takes for markup is text."""
    app.connect("autodoc-process-docstring", _escape, priority=400)


def _escape(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    for index, line in enumerate(lines):
        parts = re.split(r"(`[^`]*`)", line)
        lines[index] = "".join(
            part if part.startswith("`") else re.sub(r"[|*\\]|_\b", r"\\\g<0>", part) for part in parts
        )

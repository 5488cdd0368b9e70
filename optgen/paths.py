"""Folders of optgen's data: the templates, the C++ headers and the stock specs.

In an installed package they are data inside it (`optgen/_data`); in a source checkout they stand beside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _data(name: str) -> Path:
    """Return the folder `name` of the package's data if it has one, else that of the source checkout."""
    packaged = _PACKAGE / "_data" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name


def templates_dir() -> Path:
    """Return the folder of the templates, one folder a target."""
    return _data("templates")


def include_dir() -> Path:
    """Return the folder to give to a C++ compiler with -I: `#include <optgen/int8.h>` is found below it."""
    return templates_dir() / "include"


def specs_dir() -> Path:
    """Return the folder of the stock specs, with `shared.yaml` and `classes.yaml`."""
    return _data("specs")

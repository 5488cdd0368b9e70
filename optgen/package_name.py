"""Name of a generated package, and its folder, where the user gives none."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optgen.errors import UserError
from optgen.paths import specs_dir

STOCK_PACKAGE = "optgen_optim"
DEFAULT_SPECS = Path("specs")
OUTPUT_DIRECTORY = Path("generated")

_TAKEN = {"optgen", "torch", "numpy"}


class PackageNameError(ValueError):
    """The package cannot have this name; the message says what to give instead."""


@dataclass(frozen=True)
class Destination:
    """The name of a package and the directory it is written to."""

    package: str
    directory: Path


def is_stock(specs: Sequence[Path]) -> bool:
    """Check whether `specs` is the directory of the specs that come with optgen, and nothing else."""
    return len(specs) == 1 and specs[0].resolve() == specs_dir().resolve()


def destination(specs: Sequence[Path], package: str | None = None, out: Path | None = None) -> Destination:
    """Name the package of `specs` and its directory.

    The stock specs make `optgen_optim`. Any others make `package`, else a package named after the directory `out`,
    else after the single spec file or the directory that holds the specs. The directory is `generated/<package>`.

    Raises:
        PackageNameError: if the name is not an identifier, hides another module, or is that of the stock package.
        UserError: nobody named the directory, and on the way to it is a link that leads elsewhere.
    """
    stock = is_stock(specs)
    name = package or (STOCK_PACKAGE if stock else _identifier(_natural_name(specs, out)))
    if not name.isidentifier() or keyword.iskeyword(name):
        raise PackageNameError(f"{name!r} cannot be imported: a package name is a Python identifier; give --package")
    if name == STOCK_PACKAGE and not stock:
        raise PackageNameError(
            f"{STOCK_PACKAGE} is the package of optgen's own specs ({specs_dir()}); give another name with --package"
        )
    if name in _TAKEN or name in sys.stdlib_module_names:
        raise PackageNameError(f"a package named {name} would hide the module {name}; give another with --package")
    own = OUTPUT_DIRECTORY / name
    for place in (OUTPUT_DIRECTORY, own):
        if out is None and place.is_symlink():
            raise UserError(f"{place} is a link to {place.resolve()}; to write there, say so: --out {own}")
    return Destination(name, out or own)


def _natural_name(specs: Sequence[Path], out: Path | None) -> str:
    if out is not None:
        return out.resolve().name
    first = specs[0].resolve()
    if first.suffix in {".yaml", ".yml"}:
        return first.stem if len(specs) == 1 else first.parent.name
    return first.name


def _identifier(name: str) -> str:
    """The name with everything an identifier cannot hold replaced by underscores."""
    plain = re.sub(r"\W", "_", name) or "_"
    return f"_{plain}" if plain[0].isdigit() else plain

"""Figures of all classes of some specs, as `optgen list` shows them: compiled once, and kept in the cache.

What is kept is keyed by the content of the specs and of the compiler, and is data: numbers and texts as JSON.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from optgen.console import brief, print_table, print_text
from optgen.diagnostics import printable, suggest
from optgen.errors import UserError
from optgen.package_name import STOCK_PACKAGE, is_stock
from optgen.paths import specs_dir
from optgen.runtime.building.private_dir import publish, read_own, remove_unused, scratch, wanted_dir, why_not_usable

Record = dict[str, Any]
KEPT = re.compile(r"catalogue-[0-9a-f]{32}\.json")
KEPT_DAYS = 30.0
_OF_THE_RUNTIME = ("runtime", "integrations")


def asked_for(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The specs and the patterns among some words: specs are YAML files, folders, and what is written as a path."""
    paths = [Path(word) for word in words if "/" in word or word.endswith((".yaml", ".yml")) or Path(word).is_dir()]
    return paths, [word for word in words if Path(word) not in paths]


def records(paths: Sequence[Path], onto: str | None = None) -> list[Record]:
    """A record of each class of some specs, in the order of their table.

    Args:
        onto: What the files are put on, if they are stages.

    Raises:
        SpecError: all mistakes of all files at once.
    """
    key = _key(paths, onto)
    directory = wanted_dir()
    if key is None or why_not_usable(directory):
        return _compiled(paths, onto)
    place = directory / f"catalogue-{key}.json"
    kept = _kept(place)
    if kept is not None:
        return kept
    made = _compiled(paths, onto)
    with suppress(OSError), scratch(directory) as temporary:
        written = temporary / "catalogue.json"
        written.touch(mode=0o600)
        written.write_text(json.dumps(made), encoding="utf-8")
        publish(written, place)
        remove_unused(directory, KEPT, KEPT_DAYS)
    return made


def matching(found: Sequence[Record], patterns: Sequence[str]) -> list[Record]:
    """The records in which some pattern is found: a part of the class's name, of its rule's or of its title.

    Capitals do not matter. A pattern with `*`, `?` or `[` is one of the shell's, for a whole name.

    Raises:
        UserError: if there are patterns, and nothing matches.
    """
    if not patterns:
        return list(found)
    meant = [record for record in found if any(_is_meant(record, pattern.lower()) for pattern in patterns)]
    if not meant:
        hints = [hint for pattern in patterns if (hint := suggest(pattern, [str(one["class"]) for one in found]))]
        shown = ", ".join(map(printable, patterns))
        raise UserError(f"no class or rule matches {shown}{': ' if hints else ''}{'; '.join(hints)}")
    return meant


def print_records(found: Sequence[Record]) -> None:
    """Print what the rules are, and figures of their classes."""
    print_table(("rule", "what it is"), dict.fromkeys((one["family"], one["title"]) for one in found))
    print_text()
    words = {"class": "class", "rule": "family", "bits": "bits", "states": "states"}
    figures = {
        "state B/param": "state_bytes_per_parameter",
        "passes": "passes",
        "traffic B/param": "traffic_bytes_per_parameter",
    }
    rows = [[_shown(one[key]) for key in (*words.values(), *figures.values())] for one in found]
    print_table((*words, *figures), rows, right=("bits", *figures))


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else brief(value) if isinstance(value, float) else str(value)


def _is_meant(record: Record, pattern: str) -> bool:
    names = [str(record[key]).lower() for key in ("class", "family")]
    if set(pattern) & set("*?["):
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)
    return any(pattern in text for text in (*names, str(record["title"]).lower()))


def _compiled(paths: Sequence[Path], onto: str | None) -> list[Record]:
    from optgen.compiler import compile_specs
    from optgen.explain import class_record
    from optgen.garbage import garbage_left

    with garbage_left():
        package = compile_specs(paths, STOCK_PACKAGE if is_stock(paths) else None, onto)
    return [class_record(info) for info in package.classes]


def _kept(place: Path) -> list[Record] | None:
    data = read_own(place)
    if data is None:
        return None
    with suppress(ValueError):
        found = json.loads(data)
        if isinstance(found, list) and all(isinstance(one, dict) and "title" in one for one in found):
            return found
    return None


def _key(paths: Sequence[Path], onto: str | None) -> str | None:
    """The hash of all that decides the records; None where specs cannot be read twice, as from a pipe."""
    digest = hashlib.sha256()
    try:
        beside = [] if onto is None or not Path(onto).exists() else [Path(onto)]
        given = [file for path in (*paths, *beside) for file in _read_with(path)]
        for path in (*_compiler(), *given, *_yaml(specs_dir())):
            if not path.is_file():
                return None
            for part in (str(path).encode("utf-8", "surrogateescape"), path.read_bytes()):
                digest.update(struct.pack("<Q", len(part)) + part)
    except OSError:
        return None
    digest.update("\0".join((str(onto), *map(str, paths))).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _compiler() -> Iterator[Path]:
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in _OF_THE_RUNTIME:
            yield path


def _read_with(path: Path) -> Iterator[Path]:
    """The files that are read for a path, and those beside it that may be."""
    if path.is_dir():
        yield from _yaml(path)
    else:
        yield path
        yield from _yaml(path.parent)


def _yaml(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
